"""Clips, photos and captions encoded once: safetensors shards that training reads instead of pixels.

The folder of the shards is named by a hash of all that they follow from. A shard is written under another name and
moved into its place, so those that are there are whole, and a run that was interrupted goes on with the next.
"""
from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import numpy as np
import safetensors
import safetensors.torch
import torch

from ..contracts import StandInError
from ..reference import encode_reference
from .loop import Example
from .prepare import Clip, DataSettings, read_reference
from .video import clips as read_clips

CLIPS_IN_SHARD = 16  # of 832x480, 81 frames, with 5 photos and a caption: about 6 MB each
STORED = torch.float16
VIDEO = "video/"  # before the name of an example, the key of its latent


@dataclass(frozen=True, slots=True)
class Encoders:
    """vae: ComfyUI's, of Wan 2.1; clip: ComfyUI's text encoder, of Wan."""

    vae: object
    clip: object

    def latent(self, frames: torch.Tensor) -> torch.Tensor:
        """[4k+1, H, W, 3] in 0..1 -> [16, k+1, h, w], model space."""
        return _to_model_space(self.vae.encode(frames))[0]

    def photos(self, pictures: torch.Tensor) -> torch.Tensor:
        """[P, S, S, 3] in 0..1 -> [P, 16, 1, S/8, S/8], model space."""
        return _to_model_space(encode_reference(self.vae, pictures))

    def context(self, caption: str) -> torch.Tensor:
        """[N, text dim]"""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption))[0][0][0]

    def fingerprint(self) -> list[str]:
        """Of both: a hash of their small tensors, which no two checkpoints share."""
        return [_fingerprint(self.vae.first_stage_model), _fingerprint(self.clip.cond_stage_model)]


def data_hash(clips: list[Clip], settings: dict, encoders: list[str]) -> str:
    """Of all that the shards follow from, 16 hexadecimal digits. settings: of ``prepared_settings``; encoders: their
    ``fingerprint``.
    """
    rows = [[clip.name, clip.caption, clip.references] for clip in clips]
    return hashlib.sha256(json.dumps([rows, settings, encoders], sort_keys=True).encode()).hexdigest()[:16]


def encode_clips(folder: Path, clips: list[Clip], videos: dict[str, Path], data: Path, settings: DataSettings,
                 encoders: Encoders) -> Iterator[str]:
    """Write the shards of clips that are not in folder yet; yields a line for each. videos: where each clip's video
    lies; data: the folder below which their reference photos do.
    """
    return write_shards(folder, [clip.name for clip in clips],
                        lambda missing: _encoded([clip for clip in clips if clip.name in missing], videos, data,
                                                 settings, encoders))


def write_shards(folder: Path, names: list[str],
                 encode: Callable[[set[str]], Iterator[tuple[str, Example | str]]]) -> Iterator[str]:
    """Write the shards of the named examples that are not in folder yet, or lack some; yields a line for each.

    encode: gives those of a set of names in the order of names, or why there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = (names[first:first + CLIPS_IN_SHARD] for first in range(0, len(names), CLIPS_IN_SHARD))
    missing = {file: shard for number, shard in enumerate(shards)
               if not _is_complete(file := folder / f"shard_{number:05d}.safetensors")}
    examples = encode({name for shard in missing.values() for name in shard})
    for file, shard in missing.items():
        tensors, dropped = {}, {}
        for name, example in itertools.islice(examples, len(shard)):
            if isinstance(example, str):
                dropped[name] = example
            else:
                tensors |= {f"{part}/{name}": tensor for part, tensor in _stored(example).items()}
        unfinished = file.with_suffix(".part")
        safetensors.torch.save_file(tensors, unfinished, metadata={"dropped": json.dumps(dropped)})
        unfinished.replace(file)
        yield f"{file.name}: {len(shard) - len(dropped)} clips" + "".join(
            f"; {name} dropped: {why}" for name, why in dropped.items())


class CachedExamples(Sequence[Example]):
    """The examples of a folder of shards, read from the disk as they are asked for.

    Raises StandInError where there are none.
    """

    def __init__(self, folder: Path):
        self._files = {}
        for file in sorted(folder.glob("shard_*.safetensors")):
            with safetensors.safe_open(file, "pt") as shard:
                self._files |= {key.removeprefix(VIDEO): file for key in shard.offset_keys() if key.startswith(VIDEO)}
        self.names = list(self._files)
        if not self.names:
            raise StandInError(f"there is nothing to train on in {folder}: see what was dropped while it was made.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        name = self.names[index]
        with safetensors.safe_open(self._files[name], "pt") as shard:
            video, photos, context = (shard.get_tensor(f"{part}/{name}").float()
                                      for part in ("video", "photos", "context"))
            padding = int(shard.get_tensor(f"padding/{name}"))
        return Example(video, photos, torch.nn.functional.pad(context, (0, 0, 0, padding)))


def _example(clip: Clip, frames: np.ndarray, data: Path, encoders: Encoders) -> Example | str:
    try:
        photos = np.stack([read_reference(data / file) for file in clip.references])
    except StandInError as error:
        return str(error)
    return Example(encoders.latent(torch.from_numpy(frames).float() / 255),
                   encoders.photos(torch.from_numpy(photos).float() / 255), encoders.context(clip.caption))


def _is_complete(file: Path) -> bool:
    """Whether a shard is there and holds all it should: what failed is tried again the next time."""
    if not file.exists():
        return False
    with safetensors.safe_open(file, "pt") as shard:
        return not json.loads(shard.metadata()["dropped"])


def _to_model_space(latent: torch.Tensor) -> torch.Tensor:
    return comfy.latent_formats.Wan21().process_in(latent)


def _fingerprint(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        if tensor.ndim == 1:  # of norms and biases
            digest.update(key.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _stored(example: Example) -> dict[str, torch.Tensor]:
    """Text encoders pad with zeros, 512 tokens of 4,096 numbers: that is not stored."""
    used = int(example.context.abs().sum(dim=1).count_nonzero())
    return {"video": example.video.to(STORED).cpu().contiguous(),
            "photos": example.photos.to(STORED).cpu().contiguous(),
            "context": example.context[:used].to(STORED).cpu().clone(),
            "padding": torch.tensor(len(example.context) - used)}


def _encoded(clips: list[Clip], videos: dict[str, Path], data: Path, settings: DataSettings,
             encoders: Encoders) -> Iterator[tuple[str, Example | str]]:
    for video, group in itertools.groupby(clips, key=lambda clip: clip.video):
        waiting = list(group)
        try:
            read = read_clips(videos[video], settings.fps, (settings.width, settings.height),
                              [clip.start for clip in waiting], settings.frames)
            for _, frames in read:
                comfy.model_management.throw_exception_if_processing_interrupted()
                clip = waiting.pop(0)
                yield clip.name, _example(clip, frames, data, encoders)
            why = "the video is shorter than it was"
        except StandInError as error:
            why = str(error)
        for clip in waiting:
            yield clip.name, why
