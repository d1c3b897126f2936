"""How the frames of a video lie in the frames of its latent: the first alone, then four in each (Wan's VAE)."""
from __future__ import annotations

import torch

FRAMES_PER_LATENT = 4


def frames_of(latent_frames: int) -> int:
    """How many frames so many latent frames hold."""
    return FRAMES_PER_LATENT * (latent_frames - 1) + 1


def largest_in_each(mask: torch.Tensor) -> torch.Tensor:
    """mask: [4k+1, H, W], one for each frame -> [k+1, H, W], the largest value of the frames of each latent frame."""
    first, rest = mask[:1], mask[1:]
    return torch.cat((first, rest.unflatten(0, (-1, FRAMES_PER_LATENT)).amax(dim=1))) if len(rest) else first
