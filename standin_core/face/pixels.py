"""ComfyUI's pictures as OpenCV's."""
from __future__ import annotations

import numpy as np
import torch

from ..contracts import StandInError


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """image: float in 0..1 -> the same shape in uint8, rounded. Raises StandInError for values that are no numbers."""
    if not bool(torch.isfinite(image).all()):
        raise StandInError("the image holds values that are not numbers (NaN or infinite): check the node it comes "
                           "from, a VAE in half precision makes them.")
    return (image.cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
