"""What the small world's models are trained on: clips of one or two people, their photos, a caption.

Clip, photos and caption follow from a number; latents are made once and kept in the trainer's shards.
"""
from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from standin_core.face import geometry
from standin_core.train.data.shards import Example, write_shards

from .captions import caption_contexts
from .models import FRAMES, SIDE, encoder_hash, new_vae, to_model_space, to_pixels
from .people import Person, split
from .photos import photo
from .render import picture, video
from .scenes import Scene, caption, photo_scene, random_pair, random_scene
from .tiny_models import text_encoder_weights

CLIPS = {1: 18_000, 2: 2_000}  # by the number of people in them
PHOTOS = 2
BUSY = 0.3  # share of photos before clutter
ENCODED_TOGETHER = 8
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Clip:
    """cast: who does what, from the left; one or two."""

    cast: tuple[tuple[Person, Scene], ...]

    @property
    def caption(self) -> str:
        return caption(self.cast[0][1], len(self.cast))

    def video(self, frames: int = FRAMES) -> np.ndarray:
        """[frames, SIDE, SIDE, 3] uint8"""
        (person, scene), *beside = self.cast
        return video(person, scene, frames, SIDE, *beside)

    def picture(self, t: float) -> np.ndarray:
        """[SIDE, SIDE, 3] uint8, at time t, 0 to 1."""
        (person, scene), *beside = self.cast
        return picture(person, scene, t, SIDE, *beside)


def random_clip(people: Sequence[Person], rng: np.random.Generator, count: int | None = None) -> Clip:
    """A clip of people drawn from a list.

    count: 1 or 2; None for two as often as in the clips that are trained on.
    """
    count = count or (2 if rng.random() < CLIPS[2] / sum(CLIPS.values()) else 1)
    scenes = random_pair(rng) if count == 2 else (random_scene(rng),)
    return Clip(tuple(zip((people[i] for i in rng.choice(len(people), count, replace=False)), scenes)))


def random_photo(person: Person, rng: np.random.Generator) -> np.ndarray:
    """[SIDE, SIDE, 3] uint8, on white or before clutter."""
    return photo(person, photo_scene(rng, busy=bool(rng.random() < BUSY)))


def training_clip(number: int, people: int = 1) -> tuple[Clip, np.random.Generator]:
    """The clip of a number with one or two of those to train on; the generator is for what else is drawn."""
    rng = np.random.default_rng([0, people, number])
    return random_clip(split().train, rng, people), rng


def training_examples(cache: Path, people: int = 1) -> Path:
    """The folder of the shards of clips with one or two people, below cache, made where it is not there.

    It is named by all that the shards follow from.
    """
    count = CLIPS[people]
    folder = cache / f"shards_{people}_{count}_{_hash()}"
    names = [f"clip {number:05d}" for number in range(count)]
    for line in write_shards(folder, names, lambda missing: _encoded(names, missing, people)):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    return folder


def _hash() -> str:
    """The hash of files and weights alone: what a model computes differs in its last bits from machine to machine."""
    files = [HERE / f"{name}.py" for name in ("people", "scenes", "render", "photos", "captions", "data")]
    drawn = b"".join(file.read_bytes() for file in (*files, Path(geometry.__file__)))
    # its other tensor is the tokenizer's file
    read = b"".join(tensor.numpy().tobytes() for _, tensor in sorted(text_encoder_weights().items())
                    if tensor.is_floating_point())
    return hashlib.sha256(f"{encoder_hash()} {FRAMES} {SIDE}".encode() + drawn + read).hexdigest()[:12]


def _encoded(names: list[str], missing: set[str], people: int) -> Iterator[tuple[str, Example]]:
    if not missing:
        return
    vae, contexts = new_vae().eval(), caption_contexts()
    wanted = [(number, name) for number, name in enumerate(names) if name in missing]
    for first in range(0, len(wanted), ENCODED_TOGETHER):
        group = wanted[first:first + ENCODED_TOGETHER]
        drawn = [(name, *training_clip(number, people)) for number, name in group]
        shown = [np.stack([random_photo(person, rng) for _ in range(PHOTOS) for person, _ in clip.cast])
                 for _, clip, rng in drawn]
        with torch.inference_mode():
            videos, photos = (to_model_space(vae.encode(to_pixels(torch.from_numpy(pixels)))) for pixels in (
                np.stack([clip.video() for _, clip, _ in drawn]), np.concatenate(shown)[:, None]))
        for (name, clip, _), latent, of_clip in zip(drawn, videos, photos.split([len(each) for each in shown])):
            of_cast = of_clip.unflatten(0, (PHOTOS, len(clip.cast))).squeeze(3).movedim(1, 2)
            yield name, Example(latent, of_cast, contexts[clip.caption][0])
