"""What the small world's models are trained on: clips, two photos of the person, a caption, in the trainer's shards."""
from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from standin_core.train.data.shards import Example, write_shards

from .captions import caption_contexts
from .models import FRAMES, SIDE, encoder_hash, new_vae, to_model_space, to_pixels
from .people import Person, split
from .render import picture, video
from .scenes import Scene, photo_scene, random_scene

CLIPS, PHOTOS = 3200, 2
ENCODED_TOGETHER = 8
HERE = Path(__file__).resolve().parent


def training_clip(number: int) -> tuple[Person, Scene, np.random.Generator]:
    """Who and what is in a clip: somebody of the people to train on; the generator is for what else is drawn."""
    people, _ = split()
    rng = np.random.default_rng([0, number])
    return people[rng.integers(len(people))], random_scene(rng), rng


def training_examples(cache: Path, count: int = CLIPS) -> Path:
    """The folder of shards of so many clips, below cache, made where it is not there; named by all they follow from."""
    folder = cache / f"shards_{count}_{_hash()}"
    names = [f"clip {number:05d}" for number in range(count)]
    for line in write_shards(folder, names, lambda missing: _encoded(names, missing)):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    return folder


def _hash() -> str:
    drawn = b"".join((HERE / f"{name}.py").read_bytes() for name in ("people", "scenes", "render", "data"))
    read = b"".join(context.numpy().tobytes() for context in caption_contexts().values())
    return hashlib.sha256(encoder_hash().encode() + drawn + read).hexdigest()[:12]


def _encoded(names: list[str], missing: set[str]) -> Iterator[tuple[str, Example]]:
    if not missing:
        return
    vae, contexts = new_vae().eval(), caption_contexts()
    wanted = [(number, name) for number, name in enumerate(names) if name in missing]
    for first in range(0, len(wanted), ENCODED_TOGETHER):
        group, drawn = wanted[first:first + ENCODED_TOGETHER], []
        for number, _ in group:
            person, scene, rng = training_clip(number)
            drawn.append((scene.caption, video(person, scene, FRAMES, SIDE),
                          np.stack([picture(person, photo_scene(rng), 0.0, SIDE) for _ in range(PHOTOS)])))
        with torch.inference_mode():
            videos, photos = (to_model_space(vae.encode(to_pixels(torch.from_numpy(pixels)))) for pixels in (
                np.stack([clip for _, clip, _ in drawn]), np.concatenate([shown for _, _, shown in drawn])[:, None]))
        for (_, name), (caption, _, _), latent, shown in zip(group, drawn, videos, photos.split(PHOTOS)):
            yield name, Example(latent, shown, contexts[caption][0])
