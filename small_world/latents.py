"""Where things are in a latent of the small world: a photo in a frame, the heads of a clip."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .data import Clip
from .models import HEIGHT, WIDTH, new_vae, to_model_space

CELL = 8  # pixels
HEAD_WEIGHT, HEAD_SPREAD = 5.0, 0.35  # added to 1 in the middle of a head; in heights of the head


def head_weights(clip: Clip, cell: int = CELL) -> torch.Tensor:
    """How much each place of a frame counts, [1, 1, HEIGHT / cell, WIDTH / cell] float32 with a mean of 1.

    Heads count up to six times as much as the rest, where they are in the middle of the clip.

    cell: side of a place in pixels.
    """
    down, across = ((np.arange(side // cell) + 0.5) * cell / HEIGHT for side in (HEIGHT, WIDTH))
    weight = np.ones((len(down), len(across)), np.float32)
    for _, scene in clip.cast:
        pose = scene.at(0.5)
        apart = (down[:, None] - pose.y) ** 2 + (across[None, :] - pose.x * WIDTH / HEIGHT) ** 2
        weight += HEAD_WEIGHT * np.exp(-apart / (2 * (HEAD_SPREAD * pose.size) ** 2)).astype(np.float32)
    return torch.from_numpy(weight / weight.mean())[None, None]


def on_white() -> Callable[[torch.Tensor, np.random.Generator], torch.Tensor]:
    """A function that lays the latent of a photo, [16, 1, h, w], somewhere in a white frame, [16, 1, h, WIDTH / 8]."""
    with torch.inference_mode():
        white = to_model_space(new_vae().eval().encode(torch.ones(1, 3, 1, HEIGHT, WIDTH)))[0].clone()

    def laid(photo: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        frame, width = white.clone(), photo.shape[-1]
        left = int(rng.integers(frame.shape[-1] - width + 1))
        frame[..., left:left + width] = photo
        return frame

    return laid
