"""A photo in, a square face crop on a plain background out: detect, crop, parse.

The geometry is the authors' (WeChatCV/Stand-In, ``preprocessor/image_input_preprocessor.py``).
"""
from __future__ import annotations

import numpy as np
import torch

from ..contracts import FaceCrop, StandInError
from .detectors import DETECTORS, Face, detect
from .geometry import square_crop
from .models import missing
from .parsing import BISENET_FILE, subject_mask

__all__ = ["BACKGROUNDS", "DETECTORS", "crop_face"]

BACKGROUNDS = {"white": 255, "grey": 128, "black": 0}


def crop_face(image: torch.Tensor, detector: str = "auto", crop_scale: float = 1.5, size: int = 512,
              background: str = "white") -> FaceCrop:
    """image: [B, H, W, 3 or 4] float in 0..1 -> FaceCrop of B crops.

    The largest face is cropped to crop_scale times its box; without a face the whole image is padded to a square, as
    the authors do for subjects that have none. Raises StandInError for an empty image or a detector that cannot run.
    """
    if image.numel() == 0:
        raise StandInError(f"the image is empty, its shape is {list(image.shape)}: connect a photo.")
    images, masks, verdicts = [], [], []
    for photo in (image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy():
        crop, mask, verdict = _crop_one(photo, detector, crop_scale, size, BACKGROUNDS[background])
        images.append(torch.from_numpy(crop))
        masks.append(torch.from_numpy(mask))
        verdicts.append(verdict)
    return FaceCrop(torch.stack(images).float() / 255, torch.stack(masks).float(), "\n".join(verdicts))


def _crop_one(photo: np.ndarray, detector: str, crop_scale: float, size: int,
              fill: int) -> tuple[np.ndarray, np.ndarray, str]:
    found = detect(photo, detector)
    face = max(found.faces, key=lambda face: face.area, default=None)
    crop, inside = square_crop(photo, None if face is None else face.box, crop_scale, size, fill)
    verdict = [_detection_verdict(photo, face, found.detector), *found.notes]
    reason = missing(BISENET_FILE)
    if reason is not None:
        verdict.append(f"background kept: {reason}")
        return crop, inside, "\n".join(verdict)
    mask = subject_mask(crop)
    crop[~mask] = fill
    verdict.append("background removed by BiSeNet")
    return crop, mask, "\n".join(verdict)


def _detection_verdict(photo: np.ndarray, face: Face | None, detector: str) -> str:
    if face is not None:
        left, top, right, bottom = face.box
        share = 100 * (bottom - top) / photo.shape[0]
        return f"face of {right - left}x{bottom - top} px, {share:.0f} % of the photo's height, by {detector}"
    if detector == "none":
        return "no detector: the whole image, padded to a square"
    return f"no face found by {detector}: the whole image, padded to a square"
