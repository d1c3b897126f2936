"""The swapped video put back over the source."""
from __future__ import annotations

import comfy.model_management
import comfy.utils
import cv2
import numpy as np
import torch

from ..checks import checked_masks, checked_pictures
from ..errors import UserError

COLOR_REGIONS = ("surroundings", "face")
FEWEST_PIXELS = 64  # fewer pixels give no statistics
# A standard deviation in Lab units that counts as noise. The deviation of a plain wall is near 0: a ratio of two such
# deviations would mean nothing, and would take all contrast from the face.
NOISE = 4.0


def composite_swap(source: torch.Tensor, images: torch.Tensor, mask: torch.Tensor, feather: int, color_match: float,
                   color_region: str) -> torch.Tensor:
    """The swapped video over the middle of the source: F frames of the source's size.

    Colours are matched by mean and standard deviation in Lab (Reinhard et al. 2001), with NOISE added to both
    deviations.

    source: [>= F, >= H, >= W, 3] float in 0..1.
    images: [F, H, W, 3] float in 0..1, from the middle of the source, as Face Swap Prepare cut them.
    mask: [F or 1, H, W].
    feather: in pixels, over which the mask fades on either side of its edge; farther out every pixel is the source's.
    color_match: 0 to 1, how far the colours of the images are brought to those of the source.
    color_region: where colours are measured. "surroundings" is outside the mask, which undoes a drift of colour and
        leaves the new skin as it is; "face" is inside it.

    Raises UserError for what is no video or no mask, and if the video does not fit into the source.
    """
    source, images = checked_pictures(source, "source"), checked_pictures(images, "images")
    _check(source, images)
    count, height, width = images.shape[:3]
    masks = checked_masks(mask, "mask", (count, height, width)).cpu().numpy()
    top, left = (source.shape[1] - height) // 2, (source.shape[2] - width) // 2
    fade = fade_to_margins(height, width, source.shape[1] > height, source.shape[2] > width, feather)
    result = source[:count, ..., :3].clone()
    progress = comfy.utils.ProgressBar(count)
    for i in range(count):
        comfy.model_management.throw_exception_if_processing_interrupted()
        inside = masks[i if len(masks) > 1 else 0]
        region = result[i, top:top + height, left:left + width]
        front = images[i, ..., :3].cpu().numpy()
        if color_match:
            front = match_colors(front, region.cpu().numpy(), inside, color_region, color_match)
        alpha = torch.from_numpy(np.minimum(feathered(inside, feather), fade))[..., None].to(region)
        region += alpha * (torch.from_numpy(front).to(region) - region)
        progress.update(1)
    return result


def match_colors(image: np.ndarray, target: np.ndarray, mask: np.ndarray, region: str, amount: float) -> np.ndarray:
    """The image with the colours of the target.

    image, target: [H, W, 3] float32 in 0..1.
    mask: [H, W] in 0..1, where the face is.
    region: of COLOR_REGIONS, where colours are measured.
    amount: 0 to 1.
    """
    where = mask > 0.5 if region == "face" else mask == 0
    if where.sum() < FEWEST_PIXELS:
        return image
    lab, wanted = cv2.cvtColor(image, cv2.COLOR_RGB2LAB), cv2.cvtColor(target, cv2.COLOR_RGB2LAB)
    mean, deviation = lab[where].mean(axis=0), lab[where].std(axis=0)
    wanted_mean, wanted_deviation = wanted[where].mean(axis=0), wanted[where].std(axis=0)
    ratio = np.sqrt((wanted_deviation**2 + NOISE**2) / (deviation**2 + NOISE**2))
    matched = (lab - mean) * ratio + wanted_mean
    return cv2.cvtColor((lab + amount * (matched - lab)).astype(np.float32), cv2.COLOR_LAB2RGB).clip(0, 1)


def feathered(mask: np.ndarray, feather: int) -> np.ndarray:
    if not feather:
        return mask
    return cv2.GaussianBlur(mask, (2 * feather + 1, 2 * feather + 1), feather / 2)


def fade_to_margins(height: int, width: int, above: bool, beside: bool, feather: int) -> np.ndarray:
    """[height, width] float32: 1, falling to 0 at those borders beyond which the source goes on."""
    fade = np.ones((height, width), np.float32)
    if feather:
        for axis, has_margin in ((0, above), (1, beside)):
            side = fade.shape[axis]
            ramp = np.minimum(np.arange(side), np.arange(side)[::-1]).astype(np.float32) / feather
            if has_margin:
                fade = np.minimum(fade, ramp[:, None] if axis == 0 else ramp[None])
    return fade


def _check(source: torch.Tensor, images: torch.Tensor) -> None:
    if any(have < need for have, need in zip(source.shape[:3], images.shape[:3])):
        raise UserError(f"the source is {list(source.shape[:3])} (frames, height, width) and the swapped video "
                        f"{list(images.shape[:3])}, which must fit into it: connect the frames that went into Face "
                        "Swap Prepare.")
