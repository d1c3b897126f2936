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

from standin_core.train.data.shards import Example, write_shards

from .captions import caption_contexts
from .models import FRAMES, HEIGHT, WIDTH, encoder_hash, new_vae, to_model_space, to_pixels
from .people import Person, split
from .photos import photo
from .render import video
from .scenes import Scene, caption, photo_scene, random_pair, random_scene

CLIPS, PHOTOS = 20_000, 2
PAIRS, BUSY = 0.1, 0.3  # shares: clips with two people, photos before clutter
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
        """[frames, HEIGHT, WIDTH, 3] uint8"""
        (person, scene), *beside = self.cast
        return video(person, scene, frames, WIDTH, HEIGHT, *beside)


def random_clip(people: Sequence[Person], rng: np.random.Generator) -> Clip:
    """Anybody of the people; in one of ten two of them."""
    if rng.random() < PAIRS:
        return Clip(tuple(zip((people[i] for i in rng.choice(len(people), 2, replace=False)), random_pair(rng))))
    return Clip(((people[rng.integers(len(people))], random_scene(rng)),))


def random_photo(person: Person, rng: np.random.Generator) -> np.ndarray:
    """[PHOTO_SIDE, PHOTO_SIDE, 3] uint8, on white or before clutter."""
    return photo(person, photo_scene(rng, busy=bool(rng.random() < BUSY)))


def training_clip(number: int) -> tuple[Clip, np.random.Generator]:
    """The clip of a number, of the people to train on; the generator is for what else is drawn."""
    rng = np.random.default_rng([0, number])
    return random_clip(split().train, rng), rng
