"""A training run: a folder that holds its checkpoint, its losses and its pictures, and that it goes on from."""
from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import safetensors
import torch

from ..contracts import StandInError
from ..evaluation.chart import BLUE, ORANGE, Series, as_image, line_chart
from ..files import append_line, read_lines, write_lines
from .loop import Trainer
from .weights import save_adapter

CHECKPOINT, LOSSES, LOSS_PICTURE, SAMPLES = "checkpoint.pt", "loss.jsonl", "loss.png", "samples"
SMOOTHED = 0.05  # of the steps so far, the width of the mean that is drawn over the losses


class TrainingRun:
    """folder: of this run. name: of the adapter's files. every: steps between two checkpoints, 0 for one at the end
    alone; draw: makes the picture of a checkpoint, [H, W, 3] uint8. is_main: whether this process writes the files.
    """

    def __init__(self, trainer: Trainer, folder: Path, name: str, every: int = 0,
                 draw: Callable[[], np.ndarray] | None = None, is_main: bool = True):
        self.trainer, self.folder, self.name = trainer, folder, name
        self.every, self.draw, self.is_main = every, draw, is_main

    def steps(self) -> Iterator[tuple[int, float]]:
        """Train up to the last step, from the checkpoint if there is one; yields (steps done, loss) after each.

        However it ends, by an error, an interrupt, or because nobody asks for the next step, what was learnt is in the
        checkpoint. Raises StandInError where that cannot be written; the one before it is then still there.
        """
        trainer = self.trainer
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / CHECKPOINT).exists():
            trainer.resume(self.folder / CHECKPOINT)
        if self.is_main:  # a killed run has losses of steps that it has to take again
            write_lines(self.folder / LOSSES, [line for line in read_lines(self.folder / LOSSES)
                                               if line["step"] <= trainer.step])
        saved = trainer.step
        try:
            while trainer.step < trainer.settings.steps:
                began = time.monotonic()
                loss = trainer.train_step()
                if self.is_main:
                    with self._writing():
                        append_line(self.folder / LOSSES, {
                            "step": trainer.step, "loss": loss if math.isfinite(loss) else None,
                            "rate": trainer.settings.rate(trainer.step - 1),
                            "seconds": round(time.monotonic() - began, 3)})
                if trainer.step == trainer.settings.steps or (self.every and trainer.step % self.every == 0):
                    self._checkpoint()
                    saved = trainer.step
                yield trainer.step, loss
        finally:
            if trainer.step != saved and trainer.whole:
                self._checkpoint(pictures=False)

    def finish(self, file: Path) -> None:
        """Write the adapter to where Load Stand-In finds it."""
        if self.is_main:
            with self._writing():
                file.parent.mkdir(parents=True, exist_ok=True)
                save_adapter(self.trainer.trained, file, self._metadata())

    def _metadata(self) -> dict[str, str]:
        lines = read_lines(self.folder / LOSSES)
        return {**self.trainer.origin, "steps": str(self.trainer.step), "seed": str(self.trainer.settings.seed),
                "skipped_steps": str(sum(line["loss"] is None for line in lines))}

    def _checkpoint(self, pictures: bool = True) -> None:
        if not self.is_main:
            return
        step = self.trainer.step
        drawn = self.draw() if pictures and self.draw is not None else None
        with self._writing():
            self.trainer.save(self.folder / CHECKPOINT)
            save_adapter(self.trainer.trained, self.folder / f"{self.name}_{step:06d}.safetensors", self._metadata())
            loss_picture([line["loss"] for line in read_lines(self.folder / LOSSES)]).save(self.folder / LOSS_PICTURE)
            if drawn is not None:
                (self.folder / SAMPLES).mkdir(exist_ok=True)
                PIL.Image.fromarray(drawn).save(self.folder / SAMPLES / f"step_{step:06d}.png")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # in turn Python's, torch's, safetensors'
            raise StandInError(f"step {self.trainer.step} could not be written to {self.folder} ({error}): make room "
                               "there and start again; it goes on from the last checkpoint.") from error


def check_replaceable(file: Path, origin: dict[str, str]) -> None:
    """Raises StandInError where file is there and was not made by a training of this origin."""
    if not file.exists():
        return
    with safetensors.safe_open(file, "pt") as weights:
        said = weights.metadata() or {}
    if any(said.get(key, "") != value for key, value in origin.items()):
        raise StandInError(f"{file} is there already, and not of this training: take another name.")


def run_pictures(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture of the losses and the last one of samples, or where there is none the losses again; [1, H, W, 3]."""
    loss = loss_picture([line["loss"] for line in read_lines(folder / LOSSES)])
    samples = sorted((folder / SAMPLES).glob("step_*.png"))
    return as_image(loss), as_image(PIL.Image.open(samples[-1]) if samples else loss)


def loss_picture(losses: list[float | None]) -> PIL.Image.Image:
    """Every loss, and their mean over the steps around; what was no number is a gap."""
    values = np.array([math.nan if loss is None else loss for loss in losses], float)
    width = max(1, round(SMOOTHED * len(values)))
    known, window = ~np.isnan(values), np.ones(width)
    counted = np.convolve(known, window, "same")
    mean = np.convolve(np.where(known, values, 0), window, "same") / np.where(counted, counted, np.nan)
    highest = float(np.nanmax(values)) if known.any() else 1.0
    step = 10 ** math.floor(math.log10(highest))
    step /= next(part for part in (5, 2, 1) if highest / (step / part) <= 10)
    return line_chart([Series(f"mean of {width} steps", ORANGE, mean, dots=False),
                       Series("loss of each step", BLUE, values, dots=False)],
                      "step", step * np.arange(math.ceil(highest / step) + 1))
