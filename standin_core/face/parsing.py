"""Face parsing: a label for every pixel of a crop, such as skin, hair or background."""
from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch

from .models import BISENET, ManagedNetwork

PARSED_PX = 512  # what BiSeNet was trained at

# BiSeNet's labels (CelebAMask-HQ): 0 background, 1-13 face with ears, glasses and earrings, 14 neck, 15 necklace,
# 16 cloth, 17 hair, 18 hat
FACE, EARRING, NECK, HAIR, HAT = tuple(range(1, 14)), 9, 14, 17, 18
EVERYTHING, ALL_BUT_BACKGROUND = "everything", "all but background"
KEPT_LABELS = {
    EVERYTHING: tuple(range(19)),
    ALL_BUT_BACKGROUND: (*FACE, NECK, 15, 16, HAIR, HAT),
    "head with hat": (*FACE, HAIR, HAT),
    "face and hair": (*FACE, HAIR),
    "face, hair and neck": (*(label for label in FACE if label != EARRING), NECK, HAIR),
    "face": FACE,
}

# mean and standard deviation of pixels in 0..1, for each channel
NORMALIZATIONS = {
    "0.5": (np.full(3, 0.5, np.float32), np.full(3, 0.5, np.float32)),
    "imagenet": (np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)),
}


def load_parser(normalization: str) -> Callable[[np.ndarray], np.ndarray]:
    """facexlib's BiSeNet as a function that takes a crop, [H, W, 3] uint8 RGB, and returns its labels, [H, W] uint8.

    normalization: one of NORMALIZATIONS.

    ``models.file_refusal(BISENET)`` must be None.
    """
    from facexlib.parsing.bisenet import BiSeNet  # imports half of scipy and numba: 2 s

    managed = ManagedNetwork(BiSeNet(num_class=19), BISENET)
    mean, deviation = NORMALIZATIONS[normalization]

    def labels(crop: np.ndarray) -> np.ndarray:
        managed.load()
        parsed = cv2.resize(crop, (PARSED_PX, PARSED_PX), interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy((parsed.astype(np.float32) / 255 - mean) / deviation)
        scores = managed.network(pixels.permute(2, 0, 1)[None].to(managed.device))[0]
        found = scores.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
        return cv2.resize(found, crop.shape[1::-1], interpolation=cv2.INTER_NEAREST)

    return labels
