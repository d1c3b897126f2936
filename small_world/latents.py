"""Where the heads of a clip are, in its pixels or in its latent."""
from __future__ import annotations

import numpy as np
import torch

from .data import Clip
from .models import SIDE

CELL, TOKEN = 8, 16  # pixels
HEAD_WEIGHT, HEAD_SPREAD = 5.0, 0.35  # added to 1 in the middle of a head; in heights of the head


def head_weights(clip: Clip, cell: int = CELL) -> torch.Tensor:
    """How much each place of a frame counts, [1, 1, SIDE / cell, SIDE / cell] float32 with a mean of 1.

    Heads count up to six times as much as the rest, where they are in the middle of the clip.

    cell: side of a place in pixels.
    """
    middles = (np.arange(SIDE // cell) + 0.5) * cell / SIDE
    weight = np.ones((len(middles), len(middles)), np.float32)
    for _, scene in clip.cast:
        pose = scene.at(0.5)
        apart = (middles[:, None] - pose.y) ** 2 + (middles[None, :] - pose.x) ** 2
        weight += HEAD_WEIGHT * np.exp(-apart / (2 * (HEAD_SPREAD * pose.size) ** 2)).astype(np.float32)
    return torch.from_numpy(weight / weight.mean())[None, None]


def nearest(clip: Clip) -> np.ndarray:
    """Who of the cast is nearest to each token in the middle of the clip, [SIDE / 16, SIDE / 16] int64."""
    middles = (np.arange(SIDE // TOKEN) + 0.5) * TOKEN / SIDE
    poses = [scene.at(0.5) for _, scene in clip.cast]
    return np.argmin([(middles[:, None] - pose.y) ** 2 + (middles[None, :] - pose.x) ** 2 for pose in poses], axis=0)
