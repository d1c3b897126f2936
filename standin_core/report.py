"""What a run did, in words for the user and as JSON to save, and who listens to it.

Every method reports by a ``RunReport`` of its own, which adds fields and lines to the common ones.
"""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Protocol

from .words import counted

LISTENER = "identity_report_sink"  # the key in ComfyUI's transformer_options


class ReportedIdentity(Protocol):
    """What a run was set to do with one identity: a dataclass of its method."""

    @property
    def when(self) -> str:
        """In which part of the sampling it was to be read, and how strongly."""

    def lines(self, video_grid: tuple[int, int, int]) -> list[str]:
        """One fact a line, about a run in which the identity was read.

        video_grid: as in RunReport.
        """


@dataclass(slots=True)
class RunReport:
    """What one run did; filled by the run that owns it, read-only once the run is over.

    video_grid: (t, h, w) in tokens, of the first model call.
    model_calls, identity_calls: all, and those that read an identity.
    ms_per_step: wall time from the first model call to the end of the run, without what was computed once for all of
        it, for each of ``steps`` sampler steps.
    """

    identities: list[ReportedIdentity] = field(default_factory=list)
    model: str = ""
    video_grid: tuple[int, int, int] | None = None
    model_calls: int = 0
    identity_calls: int = 0
    steps: int = 0
    ms_per_step: float = 0.0

    def lines(self) -> list[str]:
        """What the method has to say of a run in which an identity was read, one fact a line."""
        return []


class ReportSink:
    """Takes the reports of the runs of the models that it listens to, and their attention maps.

    An object and not a list, because ComfyUI copies the dicts and lists of ``model_options`` for every run. Some node
    packs deep-copy them (ComfyUI-Spectrum-KSampler does), hence ``__deepcopy__``.
    """

    def __init__(self, maps_attention: bool = False):
        """maps_attention: ask for a map of how much of the attention goes to the identity."""
        self.reports: list[RunReport] = []
        self.maps_attention = maps_attention
        self.maps: list = []

    def __deepcopy__(self, memo):
        return self

    def listen(self, model) -> None:
        """model: a ModelPatcher of the caller's own, whose runs report here from now on."""
        model.model_options.setdefault("transformer_options", {})[LISTENER] = self

    @staticmethod
    def of(transformer_options: dict) -> ReportSink | None:
        """Who listens to a run with these options."""
        return transformer_options.get(LISTENER)


def as_text(report: RunReport) -> str:
    """One fact a line."""
    steps = f"{counted(report.steps, 'step')}, {report.ms_per_step:.0f} ms each"
    if report.identity_calls == 0:
        when = "; ".join(identity.when for identity in report.identities)
        return f"{report.model}: identity not applied ({when}); {steps}"
    assert report.video_grid is not None  # a model call has read the identity
    return "\n".join([  # the first lines are what a node has room for
        f"{report.model}: identity read in {report.identity_calls} of {counted(report.model_calls, 'model call')}",
        steps,
        *(line for identity in report.identities for line in identity.lines(report.video_grid)),
        *report.lines(),
    ])


def as_json(reports: list[RunReport]) -> str:
    """A list with one object for each run, in the order they ran."""
    return json.dumps([dataclasses.asdict(report) for report in reports], indent=1)
