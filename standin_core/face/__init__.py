"""A photo in, a square face crop on a plain background out: detect, crop, parse.

The geometry is the authors' (WeChatCV/Stand-In, ``preprocessor/image_input_preprocessor.py``).
"""
from __future__ import annotations

import numpy as np
import torch

from ..contracts import FaceCrop, StandInError
from .detectors import DETECTORS, Face, load_detector
from .geometry import square_crop
from .models import missing
from .parsing import BISENET_FILE, load_parser

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
    ready = load_detector(detector)
    no_parser = missing(BISENET_FILE)
    subject_mask = None if no_parser else load_parser()
    crops, masks, verdicts = [], [], []
    fill = BACKGROUNDS[background]
    for photo in (image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy():
        face = max(ready.find(photo), key=lambda face: face.area, default=None)
        crop, mask = square_crop(photo, None if face is None else face.box, crop_scale, size, fill)
        if subject_mask is not None:
            mask = subject_mask(crop)
            crop[~mask] = fill
        crops.append(torch.from_numpy(crop))
        masks.append(torch.from_numpy(mask))
        verdicts.append(_verdict(photo, face, ready.name))
    verdicts += [*ready.notes, f"background kept: {no_parser}" if no_parser else "background removed by BiSeNet"]
    return FaceCrop(torch.stack(crops).float() / 255, torch.stack(masks).float(), "\n".join(verdicts))


def _verdict(photo: np.ndarray, face: Face | None, detector: str) -> str:
    if face is not None:
        left, top, right, bottom = face.box
        share = 100 * (bottom - top) / photo.shape[0]
        return f"face of {right - left}x{bottom - top} px, {share:.0f} % of the photo's height, by {detector}"
    if detector == "none":
        return "no detector: the whole image, padded to a square"
    return f"no face found by {detector}: the whole image, padded to a square"
