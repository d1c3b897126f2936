"""What the reader found in the videos of a benchmark, kept so that a run that was stopped goes on."""
from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from standin_core.files import replacing

from .models import WEIGHTS
from .reader import Readings
from .world import SAMPLED

PARTS = tuple(field.name for field in dataclasses.fields(Readings))


class KeptReadings:
    """Readings of so many cases, below a folder, in one that is named by the weights and how they are sampled."""

    def __init__(self, folder: Path, cases: int):
        said = json.dumps(SAMPLED) + "".join(_hash(file) for file in sorted(WEIGHTS.glob("*.safetensors")))
        self._folder = folder / f"readings_{cases}_{hashlib.sha256(said.encode()).hexdigest()[:12]}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def readings(self, name: str, made: Callable[[], Iterator[Readings]],
                 weights: Path | None = None) -> list[Readings]:
        """Those of a name, made where they are not there.

        weights: the file that the videos are made with, beside those that ship; None where they suffice.
        """
        file = self._folder / (f"{name}.npz" if weights is None else f"{name} {_hash(weights)}.npz")
        if not file.exists():
            fresh = list(made())
            with replacing(file) as unfinished, unfinished.open("wb") as opened:
                np.savez(opened, **{part: np.stack([getattr(reading, part) for reading in fresh]) for part in PARTS})
        with np.load(file) as found:
            arrays = [found[part] for part in PARTS]
        return [Readings(*each) for each in zip(*arrays)]


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
