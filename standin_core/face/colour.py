"""White balance and exposure of a photo."""
from __future__ import annotations

import cv2
import numpy as np

DARKEST, BRIGHTEST = 1, 99  # percentiles that become black and white


def balanced(photo: np.ndarray) -> np.ndarray:
    """The photo without its colour cast, and with its lightness stretched to the full range.

    The method is the grey-world assumption (Buchsbaum 1980) in Lab. It reads the whole photo, because measured on the
    face alone it would bleach skin. It takes the median, because one large coloured thing (a suit, a wall) moves the
    mean.

    photo: [H, W, 3] uint8; the result has the same shape and type.
    """
    lab = cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab[..., 1:] -= np.median(lab[..., 1:], axis=(0, 1))
    dark, bright = np.percentile(lab[..., 0], (DARKEST, BRIGHTEST))
    lab[..., 0] = np.clip((lab[..., 0] - dark) * (100 / max(bright - dark, 1.0)), 0, 100)
    return (cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255).round().astype(np.uint8)
