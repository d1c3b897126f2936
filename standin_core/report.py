"""What a run did, in words for the user and as a record to save."""
from __future__ import annotations

import dataclasses
import json

from .contracts import RunReport


class ReportSink:
    """Takes the reports of the runs it is handed to.

    An object and not a list, because ComfyUI copies the dicts and lists of ``model_options`` for every run (0.3.64 with
    ``deepcopy``, hence ``__deepcopy__``).
    """

    def __init__(self):
        self.reports: list[RunReport] = []

    def __deepcopy__(self, memo):
        return self


def as_text(report: RunReport) -> str:
    """One fact a line."""
    if report.identity_calls == 0:
        return (f"{report.model}: identity not applied (strength {report.strength:g}, {report.start_percent:g} to "
                f"{report.end_percent:g}); {report.steps} steps, {report.ms_per_step:.0f} ms each")
    lines = [
        f"{report.model}: identity of {report.adapter_file} (sha256 {report.adapter_sha256[:12]}, rank "
        f"{report.adapter_rank})",
        f"reference {report.reference_size[0]}x{report.reference_size[1]} latent, {report.identity_tokens} identity "
        f"tokens beside {_video_tokens(report)} video tokens, at frame {report.time_offset}",
        f"strength {report.strength:g} from {report.start_percent:g} to {report.end_percent:g}: in "
        f"{report.identity_calls} of {report.model_calls} model calls",
        f"attention: {report.attention}",
        *(f"  passed over {refusal}" for refusal in report.refusals),
        f"identity K/V: {report.cache_bytes / 2**20:.1f} MiB, built {_times(report.builds)} in {report.build_ms:.0f} "
        f"ms, read {report.reads} times",
        f"{report.steps} steps, {report.ms_per_step:.0f} ms each",
    ]
    return "\n".join(lines)


def as_json(reports: list[RunReport]) -> str:
    """A list with one record for each run, in the order they ran."""
    return json.dumps([dataclasses.asdict(report) for report in reports], indent=1)


def _video_tokens(report: RunReport) -> int:
    frames, height, width = report.video_grid
    return frames * height * width


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
