"""What a run did, in words for the user and as a record to save."""
from __future__ import annotations

import dataclasses
import json
import math

from .contracts import AttentionMap, IdentityReport, RunReport


class ReportSink:
    """Takes the reports of the runs it is handed to, and their attention maps.

    An object and not a list, because ComfyUI copies the dicts and lists of ``model_options`` for every run (0.3.64 with
    ``deepcopy``, hence ``__deepcopy__``).
    """

    def __init__(self, maps_attention: bool = False):
        """maps_attention: record how much of the attention goes to the identity."""
        self.reports: list[RunReport] = []
        self.maps_attention = maps_attention
        self.maps: list[AttentionMap] = []

    def __deepcopy__(self, memo):
        return self


def as_text(report: RunReport) -> str:
    """One fact a line."""
    if report.identity_calls == 0:
        windows = "; ".join(f"strength {identity.strength:g}, {identity.start_percent:g} to {identity.end_percent:g}"
                            for identity in report.identities)
        return (f"{report.model}: identity not applied ({windows}); {report.steps} steps, {report.ms_per_step:.0f} ms "
                "each")
    lines = [  # the first lines are what a node has room for
        f"{report.model}: identity read in {report.identity_calls} of {report.model_calls} model calls",
        f"{report.steps} steps, {report.ms_per_step:.0f} ms each",
        *(line for identity in report.identities for line in _identity_lines(report, identity)),
        f"attention: {report.attention}",
        *(f"  passed over {refusal}" for refusal in report.refusals),
        f"identity K/V: {report.cache}, {report.cache_bytes / 2**20:.1f} MiB, {_built(report)}, read {report.reads} "
        "times",
    ]
    return "\n".join(lines)


def _identity_lines(report: RunReport, identity: IdentityReport) -> list[str]:
    photos = "" if identity.references == 1 else f"{identity.references} references of "
    controls = f", with {identity.controls}" if identity.controls else ""
    return [
        f"identity of {identity.adapter_file} (sha256 {identity.adapter_sha256[:12]}, rank "
        f"{identity.adapter_rank})",
        f"{photos or 'reference '}{identity.reference_size[0]}x{identity.reference_size[1]} latent, {identity.tokens} "
        f"identity tokens beside {math.prod(report.video_grid)} video tokens, at frame {identity.time_offset}",
        f"strength {identity.strength:g} from {identity.start_percent:g} to {identity.end_percent:g} in blocks "
        f"{identity.blocks[0]} to {identity.blocks[1]}{controls}",
    ]


def as_json(reports: list[RunReport]) -> str:
    """A list with one record for each run, in the order they ran."""
    return json.dumps([dataclasses.asdict(report) for report in reports], indent=1)


def _built(report: RunReport) -> str:
    if report.cache == "streaming":
        return "computed anew in every call"
    times = "once" if report.builds == 1 else f"{report.builds} times"
    return f"built {times} in {report.build_ms:.0f} ms"
