"""Face parsing: which pixels of a crop are the person."""
from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch

from .models import ManagedNetwork

BISENET_FILE = "parsing_bisenet.pth"
PARSED_PX = 512  # what BiSeNet was trained at
BACKGROUND = 0


def load_parser() -> Callable[[np.ndarray], np.ndarray]:
    """facexlib's BiSeNet, ready: crop [S, S, 3] uint8 RGB -> [S, S] bool, all labels but background.

    ``models.missing(BISENET_FILE)`` must have no reason. Input scaled to -1..1, as the authors' inference code does
    (their ComfyUI preprocessor uses ImageNet's statistics).
    """
    from facexlib.parsing.bisenet import BiSeNet  # imports half of scipy and numba: 2 s

    managed = ManagedNetwork(BiSeNet(num_class=19), BISENET_FILE)

    def subject_mask(crop: np.ndarray) -> np.ndarray:
        managed.load()
        size = crop.shape[0]
        parsed = cv2.resize(crop, (PARSED_PX, PARSED_PX), interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(parsed).to(managed.device).permute(2, 0, 1).float()[None] / 127.5 - 1
        labels = managed.network(pixels)[0].argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
        return cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST) != BACKGROUND

    return subject_mask
