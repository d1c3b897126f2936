"""How a video lies in its latent (Wan's VAE) and in its tokens: sizes, frames and masks.

The first frame is a latent frame alone, then four make one; 8x8 pixels make a latent pixel, and 2x2 of those a token.
"""
from __future__ import annotations

import torch

FRAMES_PER_LATENT = 4
PIXELS_PER_LATENT = 8
PIXELS_PER_TOKEN = 16
CHANNELS = 16
TIME = 2  # the dimension of a latent [B, 16, T, h, w]


def in_pixels(size: tuple[int, ...]) -> str:
    """Width and height of a picture in words.

    size: (..., h, w) of its latent.
    """
    return f"{PIXELS_PER_LATENT * size[-1]}x{PIXELS_PER_LATENT * size[-2]}"


def frames_of(latent_frames: int) -> int:
    """How many frames so many latent frames hold."""
    return FRAMES_PER_LATENT * (latent_frames - 1) + 1


def latent_frames_of(frames: int) -> int:
    """How many latent frames so many frames fill; what is left over is fewer than four."""
    return (frames - 1) // FRAMES_PER_LATENT + 1


def largest_in_each(mask: torch.Tensor) -> torch.Tensor:
    """mask: [4k+1, H, W], one for each frame -> [k+1, H, W], the largest value of the frames of each latent frame."""
    first, rest = mask[:1], mask[1:]
    return torch.cat((first, rest.unflatten(0, (-1, FRAMES_PER_LATENT)).amax(dim=1))) if len(rest) else first
