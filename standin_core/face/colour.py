"""Colour and exposure of a photo brought to a common ground."""
from __future__ import annotations

import cv2
import numpy as np

DARKEST, BRIGHTEST = 1, 99  # percentiles that become black and white


def balanced(photo: np.ndarray) -> np.ndarray:
    """photo: [H, W, 3] uint8 -> the same, made grey in the median and its lightness stretched to the full range.

    The grey-world assumption (Buchsbaum 1980) in Lab, over the whole photo, because over the face alone it would bleach
    skin; the median because one large coloured thing (a suit, a wall) moves the mean.
    """
    lab = cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab[..., 1:] -= np.median(lab[..., 1:], axis=(0, 1))
    dark, bright = np.percentile(lab[..., 0], (DARKEST, BRIGHTEST))
    lab[..., 0] = np.clip((lab[..., 0] - dark) * (100 / max(bright - dark, 1.0)), 0, 100)
    return (cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255).round().astype(np.uint8)
