"""The swapped video put back over the source."""
from __future__ import annotations

import comfy.model_management
import comfy.utils
import cv2
import numpy as np
import torch

from ..contracts import StandInError
from ..face import check_finite, checked_masks

COLOR_REGIONS = ("surroundings", "face")
FEWEST_PIXELS = 64  # fewer give no statistics
# Deviation in Lab units that is noise rather than contrast: beside a plain wall, whose deviation is near 0, the ratio
# of two deviations would say nothing and take all contrast from the face.
NOISE = 4.0


def composite_swap(source: torch.Tensor, images: torch.Tensor, mask: torch.Tensor, feather: int, color_match: float,
                   color_region: str) -> torch.Tensor:
    """source: [>= F, >= H, >= W, 3], images: [F, H, W, 3], mask: [F or 1, H, W] -> F frames of the source's size.

    images lie in the middle of the source, as Face Swap Prepare cut them. feather: pixels over which the mask fades on
    either side of its edge; farther out every pixel is the source's own. color_match: 0 to 1, how far mean and
    deviation of the images in Lab are brought to the source's (Reinhard et al. 2001), measured outside the mask
    ("surroundings": undoes a drift of colour and leaves the new skin alone) or in it ("face"); NOISE is added to both
    deviations.
    """
    _check(source, images)
    count, height, width = images.shape[:3]
    masks = checked_masks(mask, "mask", count, height, width).numpy()
    top, left = (source.shape[1] - height) // 2, (source.shape[2] - width) // 2
    fade = _fade_to_margins(height, width, source.shape[1] > height, source.shape[2] > width, feather)
    result = source[:count, ..., :3].clone()
    progress = comfy.utils.ProgressBar(count)
    for i in range(count):
        comfy.model_management.throw_exception_if_processing_interrupted()
        check_finite(images[i], "swapped video")
        inside = masks[i if len(masks) > 1 else 0]
        region = result[i, top:top + height, left:left + width]
        front = images[i, ..., :3].cpu().float().numpy()
        if color_match:
            where = inside > 0.5 if color_region == "face" else inside == 0
            front = _matched(front, region.cpu().float().numpy(), where, color_match)
        alpha = torch.from_numpy(np.minimum(_feathered(inside, feather), fade))[..., None].to(region)
        region += alpha * (torch.from_numpy(front).to(region) - region)
        progress.update(1)
    return result


def _matched(image: np.ndarray, target: np.ndarray, where: np.ndarray, amount: float) -> np.ndarray:
    """image, target: [H, W, 3] float32 in 0..1; where: [H, W] bool"""
    if where.sum() < FEWEST_PIXELS:
        return image
    lab, wanted = cv2.cvtColor(image, cv2.COLOR_RGB2LAB), cv2.cvtColor(target, cv2.COLOR_RGB2LAB)
    mean, deviation = lab[where].mean(axis=0), lab[where].std(axis=0)
    wanted_mean, wanted_deviation = wanted[where].mean(axis=0), wanted[where].std(axis=0)
    ratio = np.sqrt((wanted_deviation**2 + NOISE**2) / (deviation**2 + NOISE**2))
    matched = (lab - mean) * ratio + wanted_mean
    return cv2.cvtColor((lab + amount * (matched - lab)).astype(np.float32), cv2.COLOR_LAB2RGB).clip(0, 1)


def _feathered(mask: np.ndarray, feather: int) -> np.ndarray:
    if not feather:
        return mask
    return cv2.GaussianBlur(mask, (2 * feather + 1, 2 * feather + 1), feather / 2)


def _fade_to_margins(height: int, width: int, above: bool, beside: bool, feather: int) -> np.ndarray:
    """[height, width] float32: 1, falling to 0 where the source goes on beyond the border of the swapped video."""
    fade = np.ones((height, width), np.float32)
    if feather:
        for axis, has_margin in ((0, above), (1, beside)):
            side = fade.shape[axis]
            ramp = np.minimum(np.arange(side), np.arange(side)[::-1]).astype(np.float32) / feather
            if has_margin:
                fade = np.minimum(fade, ramp[:, None] if axis == 0 else ramp[None])
    return fade


def _check(source: torch.Tensor, images: torch.Tensor) -> None:
    if images.ndim != 4 or images.numel() == 0:
        raise StandInError(f"the swapped video is empty, its shape is {list(images.shape)}: connect VAE Decode.")
    if any(have < need for have, need in zip(source.shape[:3], images.shape[:3])):
        raise StandInError(f"the source is {list(source.shape[:3])} (frames, height, width) and the swapped video "
                           f"{list(images.shape[:3])}, which must fit into it: connect the frames that went into Face "
                           "Swap Prepare.")
