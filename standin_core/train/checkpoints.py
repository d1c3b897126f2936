"""A training run: a folder that holds its checkpoint, its losses and its pictures, and that it goes on from."""
from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import safetensors
import torch
from comfy.model_management import InterruptProcessingException, throw_exception_if_processing_interrupted

from ..errors import UserError
from ..files import append_line, drop_damaged_lines, drop_unfinished, read_lines, replacing, write_lines
from ..weights import unpickled
from .loop import Trainer
from .pictures import LOSS_PICTURE, LOSSES, SAMPLES, loss_picture
from .settings import TrainSettings

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
FREE = ("steps", "learning_rate", "checkpointing", "together")  # what may differ when a run goes on


def save_checkpoint(trainer: Trainer, file: Path) -> None:
    """Write all that ``resume`` needs; the checkpoint that was there is kept as the one before."""
    with replacing(file) as part:
        torch.save({**trainer.state(), "settings": _told(trainer)}, part)
        if file.exists():
            file.replace(_before(file))


def resume(trainer: Trainer, file: Path) -> None:
    """Go on from a checkpoint, from the one before it where it is damaged or was lost, and from the beginning where
    there is none.

    Raises UserError for one of another training, for one that does not fit into memory, and where all that are there
    are damaged.
    """
    saved = _last_whole(file)
    if saved is None:
        return
    # an earlier version trained with the defaults of the settings that came later
    told = {**dataclasses.asdict(TrainSettings()), **saved["settings"]}
    differing = [name for name, value in _told(trainer).items() if name not in FREE and told.get(name) != value]
    if differing:
        raise UserError(f"{file} is a training with other settings ({', '.join(differing)}): set the former "
                        "ones to go on, or take another name to begin anew.")
    trainer.restore(saved)


def _last_whole(file: Path) -> dict | None:
    damaged = []
    for each in filter(Path.exists, (file, _before(file))):
        try:
            saved = unpickled(each, throw_exception_if_processing_interrupted)
            step, _ = saved["step"], saved["settings"]
        except InterruptProcessingException:
            raise
        except MemoryError as error:
            raise UserError(f"{each.name} in {file.parent} does not fit into memory: close other programs and start "
                            "again.") from error
        except Exception as error:  # torch's readers raise whatever the damage leads them to
            damaged.append(f"{each.name} is damaged ({type(error).__name__})")
            continue
        if damaged:
            log.warning("%s: the training goes on from %s, after step %d", damaged[0], each.name, step)
        return saved
    if damaged:
        raise UserError(f"{' and '.join(damaged)} in {file.parent}: take another name, or delete that folder to begin "
                        "anew.")
    return None


def _before(file: Path) -> Path:
    return file.with_stem(f"{file.stem}_before")


def _told(trainer: Trainer) -> dict:
    """What tells a training from others."""
    return {**dataclasses.asdict(trainer.settings), **trainer.origin}


def check_replaceable(file: Path, origin: dict[str, str]) -> None:
    """Raise UserError where the file is there already and was not made by a training of this origin."""
    if not file.exists():
        return
    said: dict[str, str] | None = None
    with (contextlib.suppress(OSError, safetensors.SafetensorError),  # of a folder, and of a file of another kind
          safetensors.safe_open(file, "pt") as weights):
        said = weights.metadata() or {}
    if said is None or any(said.get(key, "") != value for key, value in origin.items()):
        raise UserError(f"{file} is there already and comes from another training: take another name.")


class TrainingRun:
    """A training, and what it leaves in its folder.

    folder: of this run.
    name: of the method's files.
    every: steps between two checkpoints; 0 for one at the end alone.
    draw: makes the picture of a checkpoint, [H, W, 3] uint8; None for no pictures.
    is_main: whether this process writes the files.
    """

    def __init__(self, trainer: Trainer, folder: Path, name: str, every: int = 0,
                 draw: Callable[[], np.ndarray] | None = None, is_main: bool = True):
        self.trainer, self.folder, self.name = trainer, folder, name
        self.every, self.draw, self.is_main = every, draw, is_main

    def steps(self) -> Generator[tuple[int, float], None, None]:
        """Train up to the last step, from the checkpoint if there is one; yields (steps done, loss) after each.

        However it ends, by an error, an interrupt, or because nobody asks for the next step, what was learnt is in the
        checkpoint. Raises UserError where that cannot be written; the one before it is then still there.
        """
        trainer = self.trainer
        self.folder.mkdir(parents=True, exist_ok=True)
        resume(trainer, self.folder / CHECKPOINT)
        if self.is_main:  # a killed run has losses of steps that it has to take again
            drop_unfinished(self.folder)
            drop_damaged_lines(self.folder / LOSSES, "step", "loss")
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
                            "rate": trainer.settings.learning_rate * trainer.settings.rate_share(trainer.step - 1),
                            "seconds": round(time.monotonic() - began, 3)})
                if trainer.step == trainer.settings.steps or (self.every and trainer.step % self.every == 0):
                    self._checkpoint()
                    saved = trainer.step
                yield trainer.step, loss
        finally:
            if trainer.step != saved and trainer.whole:
                self._checkpoint(pictures=False)

    def finish(self, file: Path) -> None:
        """Write what was trained to where the method's nodes find it."""
        if self.is_main:
            with self._writing():
                file.parent.mkdir(parents=True, exist_ok=True)
                self.trainer.learner.save(self.trainer.trained, file, self._metadata())

    def _metadata(self) -> dict[str, str]:
        lines = read_lines(self.folder / LOSSES)
        return {**self.trainer.origin, "steps": str(self.trainer.step), "seed": str(self.trainer.settings.seed),
                "skipped_steps": str(sum(line["loss"] is None for line in lines))}

    def _checkpoint(self, pictures: bool = True) -> None:
        if not self.is_main:
            return
        step, trainer = self.trainer.step, self.trainer
        drawn = self.draw() if pictures and self.draw is not None else None
        with self._writing():
            save_checkpoint(trainer, self.folder / CHECKPOINT)
            trainer.learner.save(trainer.trained, self.folder / f"{self.name}_{step:06d}.safetensors",
                                 self._metadata())
            _save_picture(loss_picture([line["loss"] for line in read_lines(self.folder / LOSSES)]),
                          self.folder / LOSS_PICTURE)
            if drawn is not None:
                (self.folder / SAMPLES).mkdir(exist_ok=True)
                _save_picture(PIL.Image.fromarray(drawn), self.folder / SAMPLES / f"step_{step:06d}.png")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # in turn Python's, torch's, safetensors'
            raise UserError(f"step {self.trainer.step} could not be written to {self.folder} ({error}): make room "
                            "there and start again; it goes on from the last checkpoint.") from error


def _save_picture(picture: PIL.Image.Image, file: Path) -> None:
    with replacing(file) as part:
        picture.save(part, "PNG")
