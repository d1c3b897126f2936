"""A method is trained on the small world's base model with the pack's own trainer."""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from standin_core.train import SampleSettings, TrainSettings
from standin_core.train.checkpoints import TrainingRun
from standin_core.train.method import Method
from standin_core.train.session import training_run

from .data import training_examples
from .models import WAN_FILE, base_model

BATCH = 32
REPORTED_EVERY = 100  # steps


def settings_of(steps: int, seed: int, **method: float) -> TrainSettings:
    """What all methods share, and what a method sets for itself."""
    return TrainSettings(steps=steps, batch_size=BATCH, together=BATCH, cosine=True, ema=0.995, shift=2.0,
                         checkpointing=False, seed=seed, **method)


def train_method(method: Method, settings: TrainSettings, file: Path, cache: Path, people: int = 1,
                 on_step: Callable[[TrainingRun, int], None] | None = None) -> None:
    """Train to the end and write the method's file and a log beside it.

    file: its stem is the name of the run, which lies in the cache and goes on where it was stopped.
    cache: the folder of the latents and the runs.
    people: how many a clip shows.
    on_step: called with the run and how many steps are done.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    run = training_run(base_model(), method, training_examples(cache, people), cache / f"{file.stem}_{settings.seed}",
                       settings, SampleSettings(every=500), base_model=WAN_FILE.name)
    losses, started = [], time.monotonic()
    for step, loss in run.steps():
        losses.append(loss)
        if on_step is not None:
            on_step(run, step)
        if step % REPORTED_EVERY == 0:
            record = {"seed": settings.seed, "minutes": round((time.monotonic() - started) / 60, 1), "step": step,
                      "loss": round(sum(losses) / len(losses), 4)}
            losses.clear()
            with file.with_suffix(".log").open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            sys.stdout.write(f"{record}\n")
            sys.stdout.flush()
    run.finish(file)
