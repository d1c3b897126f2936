"""The user's controls as one number for each query: the bias on the logits of an identity.

``bias = log(strength * schedule * region / R)``, -inf where a query does not read at all. The merge of attention states
with a weight w is ``(e^{L_v} o_v + w e^{L_r} o_r) / (e^{L_v} + w e^{L_r})``: weights multiply, and 0 is the base model.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .checks import check_number, checked_masks
from .errors import UserError
from .latents import frames_of, largest_in_each
from .words import shown

MOST_STRENGTH = 1000.0  # and of a factor on it: the weight of an identity must stay a finite number


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The part of the sampling in which the video reads an identity.

    start_percent, end_percent: 0 to 1.

    Raises UserError for other numbers, and where the end is not above the start.
    """

    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self):
        check_number(self.start_percent, "start_percent", 0, 1)
        check_number(self.end_percent, "end_percent", 0, 1)
        if self.start_percent >= self.end_percent:
            raise UserError(f"start_percent is {self.start_percent:g} and end_percent {self.end_percent:g}, so the "
                            "identity would never be read: set end above start.")

    def has(self, percent_to_sigma: Callable[[float], float], t: torch.Tensor) -> bool:
        """Whether a model call lies in it.

        t: [B] sigmas of the call.
        """
        if self.start_percent <= 0 and self.end_percent >= 1:
            return True  # without asking the device for t
        first, end = (percent_to_sigma(percent) for percent in (self.start_percent, self.end_percent))
        return end < sigma_of(t) <= first


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls(Span):
    """How strongly an identity is read, when and where, where the method gives it a weight.

    strength: weight of the identity, at most MOST_STRENGTH; 1 is what it was trained with, 0 the base model bit for
        bit.
    schedule: (percent, factor) in rising order, a factor on strength, linear in sigma between them; empty for 1.
    region: [F, H, W] in 0..1, pixels of the video; each video token reads the identity by how much of it is covered.
        F is 1, or the number of frames, or of latent frames. None is everywhere.

    Raises UserError for values that cannot work together.
    """

    strength: float = 1.0
    schedule: tuple[tuple[float, float], ...] = ()
    region: torch.Tensor | None = None

    def __post_init__(self):
        check_number(self.strength, "strength", 0, MOST_STRENGTH,
                     hint="0 is the base model, 1 what the adapter was trained with")
        Span.__post_init__(self)
        percents = [percent for percent, _ in self.schedule]
        if (percents != sorted(set(percents)) or any(not 0 <= percent <= 1 for percent in percents)
                or any(not 0 <= factor <= MOST_STRENGTH for _, factor in self.schedule)):
            raise UserError("the strength schedule must be rising percents from 0 to 1 with factors from 0 to "
                            f"{MOST_STRENGTH:g}, such as 0:0, 0.2:1, but is {shown(list(self.schedule))}.")


def parse_schedule(text: str) -> tuple[tuple[float, float], ...]:
    """ "0:0, 0.2:1" -> ((0.0, 0.0), (0.2, 1.0)), percents and factors; an empty text is no schedule."""
    points = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        percent, _, factor = part.partition(":")
        try:
            points.append((float(percent), float(factor)))
        except ValueError as error:
            raise UserError("each part of the strength schedule must be percent:factor, such as 0:0, 0.2:1, but one is "
                            f"{shown(part)!r}.") from error
    return tuple(points)


def strength_at(controls: Controls, percent_to_sigma: Callable[[float], float], t: torch.Tensor) -> float:
    """The strength at the noise of a model call, 0 outside start and end.

    t: [B] sigmas of the call.
    """
    if not controls.has(percent_to_sigma, t):
        return 0.0
    if not controls.schedule:
        return controls.strength  # without asking the device for t
    return controls.strength * _factor(controls.schedule, percent_to_sigma, sigma_of(t))


def sigma_of(t: torch.Tensor) -> float:
    """The noise of a model call, [B] sigmas, as it is compared with that of a percentage: a step that begins exactly
    there meets it only up to the rounding of fp32 sigmas.
    """
    return float(t.max()) * (1 - 1e-6)


def _factor(schedule: tuple[tuple[float, float], ...], percent_to_sigma: Callable[[float], float],
            sigma: float) -> float:
    """Linear in sigma between the points, constant before the first and after the last."""
    points = [(percent_to_sigma(percent), factor) for percent, factor in schedule]
    if not points or sigma >= points[0][0]:
        return points[0][1] if points else 1.0
    for (high, before), (low, after) in itertools.pairwise(points):
        if sigma >= low:
            return after + (before - after) * (sigma - low) / (high - low)
    return points[-1][1]


def query_bias(strength: float, shared_by: int, region: torch.Tensor | None, readers: torch.Tensor | None,
               device: torch.device) -> torch.Tensor:
    """The bias on the logits of an identity for each query, [B or 1, N_vid or 1] float32.

    shared_by: R, among how many photos the strength is divided; 1 where each has all of it.
    region: from region_weights, on the device.
    readers: [B] bool, which of the batch read the identity; None for all.
    """
    bias = torch.full((1, 1), math.log(strength), device=device)
    bias -= math.log(shared_by)
    if region is not None:
        bias = bias + region.log().unsqueeze(0)
    if readers is not None:
        bias = bias.masked_fill(~readers.to(device).unsqueeze(1), -math.inf)
    return bias


def kept_tokens(mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The indices of the tokens that any of the masks touches, [n].

    mask: ComfyUI's MASK, [R or 1, H, W] or [H, W], of the reference images.
    grid: (h, w) of their tokens.

    Raises UserError for what is no mask, and if no mask touches any token.
    """
    masks = checked_masks(mask, "reference_mask").cpu()
    touched = torch.nn.functional.adaptive_max_pool2d(masks, grid).amax(dim=0).flatten() > 0
    if not bool(touched.any()):
        raise UserError("the reference mask is empty, so no identity token would be left: connect the mask of Face "
                        "Preprocess, or nothing.")
    return touched.nonzero()[:, 0]


def region_weights(region: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """The share of each video token that a region covers, [t * h * w].

    region: [F, H, W] or [H, W] in 0..1; F is 1, t, or the 4t - 3 frames that t latent frames hold. The largest value
        among the frames of a latent frame counts.
    grid: (t, h, w) of the video in tokens.

    Raises UserError for another F.
    """
    frames, height, width = grid
    region = (region if region.ndim == 3 else region[None]).float().clamp(0, 1)
    if len(region) == frames_of(frames):
        region = largest_in_each(region)
    if len(region) not in (1, frames):
        raise UserError(f"the region must have 1 mask, {frames} (one for each latent frame of the video) or "
                        f"{frames_of(frames)} (one for each frame), but has {len(region)}.")
    pooled = torch.nn.functional.adaptive_avg_pool2d(region, (height, width))
    return pooled.expand(frames, -1, -1).reshape(-1)
