"""The reference picture in the size of the video, as the authors fit it (``ImageProcessor.resize_pad_crop``)."""
from __future__ import annotations

import torch


def fitted(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The picture, scaled until it fits, in the middle of black: [H, W, 3] float32 in 0..1, whole levels of 8 bits.

    Overshoot of the bicubic filter is clamped, as in the authors' training; their inference lets it wrap around to
    white dots along dark edges.

    image: [h, w, 3] in 0..1.
    height, width: of the video in pixels.
    """
    scale = min(height / image.shape[0], width / image.shape[1])
    size = int(image.shape[0] * scale), int(image.shape[1] * scale)
    scaled = torch.nn.functional.interpolate(image.float().movedim(-1, 0)[None], size, mode="bicubic", antialias=True)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    padded = torch.nn.functional.pad(scaled, (left, width - size[1] - left, top, height - size[0] - top))
    return (padded[0].movedim(0, -1).clamp(0, 1) * 255).to(torch.uint8).float() / 255
