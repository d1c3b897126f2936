"""ComfyUI's pictures in the form that OpenCV takes."""
from __future__ import annotations

import numpy as np
import torch


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """The picture in uint8, rounded.

    image: float in 0..1, of any shape.
    """
    return (image.cpu() * 255).round().to(torch.uint8).numpy()
