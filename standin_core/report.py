"""What a run did, in words for the user and as JSON to save, and who listens to it.

Every method reports by a ``RunReport`` of its own, which adds fields and lines to the common ones, and fills it in a run
of its own, a ``ReportedRun``.
"""
from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

log = logging.getLogger(__name__)

LISTENER = "identity_report_sink"  # the key in ComfyUI's transformer_options


class ReportedIdentity(Protocol):
    """What one identity of a run was told: a dataclass of its method."""

    @property
    def strength(self) -> float: ...

    @property
    def start_percent(self) -> float: ...

    @property
    def end_percent(self) -> float: ...

    def lines(self, video_grid: tuple[int, int, int]) -> list[str]:
        """One fact a line, about a run in which it was read. video_grid: as in RunReport."""


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

    An object and not a list, because ComfyUI copies the dicts and lists of ``model_options`` for every run (0.3.64 with
    ``deepcopy``, hence ``__deepcopy__``).
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


class ReportedRun:
    """One run and its report. Lives in ``transformer_options`` as an opaque object and dies with the run.

    Several devices may call the model at a time (ComfyUI's multi-GPU), hence the lock.
    """

    def __init__(self, method: str, report: RunReport):
        """method: its name, for ComfyUI's log."""
        self.method = method
        self.report = report
        self.lock = threading.Lock()
        self.started: float | None = None

    def __deepcopy__(self, memo):
        return self

    @contextlib.contextmanager
    def lives_in(self, options: dict, key: str) -> Iterator[None]:
        """Be found in ``transformer_options`` until the block ends, and close then, whatever ends it."""
        options[key] = self
        finished = False
        try:
            yield
            finished = True
        finally:
            options.pop(key, None)
            self.close(finished, ReportSink.of(options))

    def first_call(self, model: str, grid: tuple[int, int, int]) -> bool:
        """Count a call of the model, with the lock held. model, grid: as model and video_grid in RunReport.

        Returns whether it is the first.
        """
        first = self.started is None
        if first:
            self.started = time.perf_counter()
            self.report.model = model
            self.report.video_grid = grid
        self.report.model_calls += 1
        return first

    def close(self, finished: bool, sink: ReportSink | None) -> None:
        """Let go of what the run held; hand the report over if the run came to its end."""
        if finished:
            self.hand_over(sink)

    def hand_over(self, sink: ReportSink | None, once_ms: float = 0.0) -> None:
        """To who listens, else to ComfyUI's log. once_ms: what was computed once for the whole run took so long."""
        if self.started is not None and self.report.steps:
            elapsed_ms = (time.perf_counter() - self.started) * 1000
            self.report.ms_per_step = (elapsed_ms - once_ms) / self.report.steps
        if sink is None:
            log.info("%s: %s", self.method, as_text(self.report))
        else:
            sink.reports.append(self.report)


def as_text(report: RunReport) -> str:
    """One fact a line."""
    if report.identity_calls == 0:
        windows = "; ".join(f"strength {identity.strength:g}, {identity.start_percent:g} to {identity.end_percent:g}"
                            for identity in report.identities)
        return (f"{report.model}: identity not applied ({windows}); {report.steps} steps, {report.ms_per_step:.0f} ms "
                "each")
    assert report.video_grid is not None  # a model call has read the identity
    return "\n".join([  # the first lines are what a node has room for
        f"{report.model}: identity read in {report.identity_calls} of {report.model_calls} model calls",
        f"{report.steps} steps, {report.ms_per_step:.0f} ms each",
        *(line for identity in report.identities for line in identity.lines(report.video_grid)),
        *report.lines(),
    ])


def as_json(reports: list[RunReport]) -> str:
    """A list with one object for each run, in the order they ran."""
    return json.dumps([dataclasses.asdict(report) for report in reports], indent=1)
