"""ComfyUI's pictures and masks, checked and in the form that OpenCV takes."""
from __future__ import annotations

import numpy as np
import torch

from ..contracts import UserError


def check_finite(values: torch.Tensor, name: str) -> None:
    """Raises UserError if any of the values is NaN or infinite.

    name: of the input, for the message.
    """
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"the {name} holds values that are not numbers (NaN or infinite): check the node it comes "
                        "from, a VAE in half precision makes them.")


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """The picture in uint8, rounded.

    image: float in 0..1, of any shape.
    """
    check_finite(image, "image")
    return (image.cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def checked_masks(mask: torch.Tensor, name: str, count: int, height: int, width: int) -> torch.Tensor:
    """The mask as [1 or count, height, width] float32 in 0..1 on the CPU.

    mask: ComfyUI's MASK, [H, W] or [B, H, W].
    name: of the input, for messages.
    count, height, width: of the pictures that it belongs to.

    Raises UserError for a mask of another size, and for values that are NaN or infinite.
    """
    masks = mask if mask.ndim == 3 else mask[None]
    if masks.shape[0] not in (1, count) or tuple(masks.shape[1:]) != (height, width):
        raise UserError(f"the {name} is {list(masks.shape)} (number, height, width) and the picture "
                        f"{[count, height, width]}, the same size is needed: make the mask from this picture.")
    check_finite(masks, name)
    return masks.cpu().float().clamp(0, 1)
