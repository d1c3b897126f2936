"""What the runs of all methods have in common: the wrappers on a model, how a run begins and ends, what it counts, and
the bytes it announces.
"""
from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .errors import UserError
from .guidance import Passes
from .report import ReportedIdentity, ReportSink, RunReport, as_text

log = logging.getLogger(__name__)

WINDOW = "context_window"  # ComfyUI's: the part of the video that a call of the model sees
ASKED_SECONDS = 0.5  # how long a run that waits goes without asking for the user's interrupt
_guard = threading.Lock()  # of what runs of all models share: the locks, and ComfyUI's EXTRA_RESERVED_VRAM
# ComfyUI's model -> the lock of whoever has a run on it
_holds: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Run:
    """The state of one run of a method, from the sampler's first call to its last, or to the exception that ends it.

    It lives in ``transformer_options`` as an opaque object and dies with the run. Several devices may call the model at
    a time (ComfyUI's multi-GPU), hence the lock.

    once_ms: time in the run that was spent on what serves all of its steps.
    """

    def __init__(self, report: RunReport, passes: Passes):
        self.report = report
        self.passes = passes
        self.once_ms = 0.0
        self.started: float | None = None
        self.lock = threading.Lock()

    def __deepcopy__(self, memo):  # for node packs that deep-copy the options of a run
        return self

    def model_called(self, model: str, grid: tuple[int, int, int],
                     reported: Callable[[], list[ReportedIdentity]]) -> None:
        """Count a call of the model that is about to begin.

        model: the name of its kind.
        grid: (t, h, w) of what it is given, in tokens.
        reported: gives what the report says of the identities; called at the first call.
        """
        with self.lock:
            if self.started is None:
                self.started = time.perf_counter()
                self.report.model = model
                self.report.video_grid = grid
                self.report.identities = reported()
            self.report.model_calls += 1

    def note_identity_call(self) -> None:
        """Count a call of the model in which an identity was read."""
        with self.lock:
            self.passes.identity_read = True
            self.report.identity_calls += 1

    def release(self) -> None:
        """Let go of everything that the run holds; a method with something to hold says how."""

    def close(self, finished: bool, sink: ReportSink | None) -> None:
        """Release everything, and hand the report over if the run came to its end."""
        self.release()
        if not finished:
            return
        if self.started is not None and self.report.steps:
            elapsed_ms = (time.perf_counter() - self.started) * 1000
            self.report.ms_per_step = (elapsed_ms - self.once_ms) / self.report.steps
        if sink is None:
            log.info("%s", as_text(self.report))
        else:
            sink.reports.append(self.report)


@contextlib.contextmanager
def opened(run: Run, guider, key: str) -> Iterator[None]:
    """Within the context, the run has the guider's model for itself and is in its ``transformer_options`` under the
    key; it is closed at the end.

    Raises UserError where a run without an identity had the model at the same time and ended first.
    """
    options = guider.model_options.setdefault("transformer_options", {})
    base = guider.model_patcher.model
    with held(base):
        options[key] = run
        finished = False
        try:
            yield
            finished = True
        except AttributeError as error:
            if error.obj is None and error.name is not None and hasattr(ModelPatcher, error.name):
                raise UserError("another run on this model ended, and ComfyUI unloaded the model: start the runs one "
                                "after the other.") from error
            raise
        finally:
            options.pop(key, None)
            run.close(finished, ReportSink.of(options))


@contextlib.contextmanager
def held(base) -> Iterator[None]:
    """Within the context, no other thread has a run with an identity on the model; where one has, this one waits.

    ComfyUI runs one prompt at a time, but programs that have it for a library may not. Two runs on one model would
    exchange the classes of the same modules, and ComfyUI would patch the same weights for both.

    base: ComfyUI's model, which all clones of a ModelPatcher share.
    """
    with _guard:
        hold = _holds.setdefault(base, threading.RLock())  # methods that are on one model nest in a thread
    while not hold.acquire(timeout=ASKED_SECONDS):
        comfy.model_management.throw_exception_if_processing_interrupted()
    try:
        yield
    finally:
        hold.release()


@contextlib.contextmanager
def announced(extra: int) -> Iterator[None]:
    """Within the context, ComfyUI's memory manager leaves so many bytes free beside what it knows of."""
    with _guard:
        comfy.model_management.EXTRA_RESERVED_VRAM += extra
    try:
        yield
    finally:
        with _guard:
            comfy.model_management.EXTRA_RESERVED_VRAM -= extra


def install_wrappers(model, key: str, wrappers: Mapping[str, Callable]) -> None:
    """Put a method's wrappers on a model, and the one that notes which conditions are positive.

    model: a ModelPatcher of the caller's own.
    key: of the method's run in ``transformer_options``.
    wrappers: kind, one of ComfyUI's WrappersMP -> wrapper. None may have a method ``to``, since ComfyUI would call it.
    """
    for kind, wrapper in {**wrappers, WrappersMP.SAMPLER_SAMPLE: functools.partial(_note_positive, key)}.items():
        model.add_wrapper_with_key(kind, key, wrapper)


def uninstall_wrappers(model, key: str) -> None:
    """The reverse of ``install_wrappers``; nothing where there is nothing."""
    for kind in model.wrappers:
        model.remove_wrappers_with_key(kind, key)


def is_installed(model, key: str) -> bool:
    return bool(model.get_wrappers(WrappersMP.OUTER_SAMPLE, key))


def has_identity(model) -> bool:
    """Whether any method has put an identity on a ModelPatcher."""
    return any(isinstance(wrapper, functools.partial) and wrapper.func is _note_positive
               for wrapper in model.get_all_wrappers(WrappersMP.SAMPLER_SAMPLE))


def _note_positive(key: str, executor, guider, *args, **kwargs):
    run: Run | None = guider.model_options.get("transformer_options", {}).get(key)
    if run is not None:
        run.passes.note_positive(guider)
    return executor(guider, *args, **kwargs)
