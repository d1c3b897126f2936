"""What training reads: encoded clips, many in a safetensors file.

A shard that is there is whole, so a run that was interrupted goes on with the next.
"""
from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import comfy.model_management
import comfy.utils
import safetensors
import safetensors.torch
import torch

from ...errors import UserError
from ...files import replacing
from ...words import shown
from .dropped import Drop

CLIPS_IN_SHARD = 16  # of 832x480, 81 frames, with 5 photos and a caption: about 6 MB each
STORED = torch.float16
VIDEO = "video/"  # before the name of an example, the key of its latent


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A clip and what belongs to it, in model space.

    video: [16, T, h, w]
    photos: [P, 16, M, h, w], P choices of a reference: M latent frames, one for each person of the clip.
    context: [N, text dim], the encoded caption.
    """

    video: torch.Tensor
    photos: torch.Tensor
    context: torch.Tensor


class Examples(Protocol):
    """What a training draws from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def write_shards(folder: Path, names: list[str],
                 encode: Callable[[set[str]], Iterator[tuple[str, Example | Drop]]], fit: str = "") -> Iterator[str]:
    """Write the shards that are not there, or that lack some of their examples; yields a line for each.

    names: of all examples, in their order.
    encode: gives the examples of a set of names in the order of ``names``, or why there is none.
    fit: how the photos were brought to their size, one of ``recipe.FITS``; "" leaves it unsaid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = (names[first:first + CLIPS_IN_SHARD] for first in range(0, len(names), CLIPS_IN_SHARD))
    missing = {file: shard for number, shard in enumerate(shards)
               if not _is_complete(file := folder / f"shard_{number:05d}.safetensors")}
    examples = encode({name for shard in missing.values() for name in shard})
    progress = comfy.utils.ProgressBar(sum(map(len, missing.values())))
    for file, shard in missing.items():
        tensors: dict[str, torch.Tensor] = {}
        dropped: dict[str, str] = {}
        for name, example in itertools.islice(examples, len(shard)):
            if isinstance(example, Drop):
                dropped[name] = str(example)
            else:
                tensors |= {f"{part}/{name}": tensor for part, tensor in _stored(example).items()}
            progress.update(1)
        with replacing(file) as part:
            safetensors.torch.save_file(tensors, part, metadata={"dropped": json.dumps(dropped), "fit": fit})
        yield f"{file.name}: {len(shard) - len(dropped)} clips" + "".join(
            f"; {name} dropped: {why}" for name, why in dropped.items())


class CachedExamples:
    """The examples of a folder of shards, read from the disk as they are asked for.

    fit: of ``write_shards``; "" in the shards of an earlier version.

    Raises UserError where there are none, for a shard that is damaged or was removed, and where shards disagree on
    ``fit``.
    """

    def __init__(self, folder: Path):
        self._files: dict[str, Path] = {}
        fits = set()
        for file in sorted(folder.glob("shard_*.safetensors")):
            comfy.model_management.throw_exception_if_processing_interrupted()
            with _refusing_damage(file), safetensors.safe_open(file, "pt") as shard:
                keys = shard.offset_keys()
                fits.add((shard.metadata() or {}).get("fit", ""))
            self._files |= {key.removeprefix(VIDEO): file for key in keys if key.startswith(VIDEO)}
        said = sorted(fits - {""})
        if len(said) > 1:
            raise UserError(f"the shards in {folder} are of different data, with photos {shown(' and '.join(said))}: "
                            "delete that folder and prepare the data again.")
        self.fit = next(iter(said), "")
        self.names = list(self._files)
        if not self.names:
            raise UserError(f"there is nothing to train on in {folder}: see what was dropped while it was made.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        name = self.names[index]
        file = self._files[name]
        with _refusing_damage(file), safetensors.safe_open(file, "pt") as shard:
            video, photos, context = (shard.get_tensor(f"{part}/{name}").float()
                                      for part in ("video", "photos", "context"))
            padding = int(shard.get_tensor(f"padding/{name}"))
        return Example(video, photos, torch.nn.functional.pad(context, (0, 0, 0, padding)))


@contextlib.contextmanager
def _refusing_damage(file: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): prepare the data again, which makes what is missing.") from error


def _is_complete(file: Path) -> bool:
    """Whether a shard is there and holds all it should: what failed is tried again the next time."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    if not file.exists():
        return False
    try:
        with safetensors.safe_open(file, "pt") as shard:
            return not json.loads(shard.metadata()["dropped"])
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError):  # damaged, in the data or in what it says
        return False


def _stored(example: Example) -> dict[str, torch.Tensor]:
    """The tensors to write. Text encoders pad with zeros, 512 tokens of 4,096 numbers: those are only counted."""
    used = int(example.context.abs().sum(dim=1).count_nonzero())
    return {"video": example.video.to(STORED).cpu().contiguous(),
            "photos": example.photos.to(STORED).cpu().contiguous(),
            "context": example.context[:used].to(STORED).cpu().clone(),
            "padding": torch.tensor(len(example.context) - used)}
