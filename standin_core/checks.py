"""Rules for what comes in from a user or another node, each with its sentence.

Whoever takes an input checks it by one of these, once, where it enters; what stands behind relies on it. Every rule
raises UserError with the name of the input, what it must be and what it is.
"""
from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any, get_args

import torch

from .errors import UserError
from .words import shown

MOST_CHOICES = 30  # listed in a sentence
# how far pixel values may lie beyond 0 and 1: filters and upscalers overshoot by less, bytes from 0 to 255 by more
OVERSHOOT = 1.0
MOST_IN_LATENT = torch.finfo(torch.float16).max  # a model may compute in fp16, which holds no more


def check_number(value, name: str, least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf,
                 below: float = math.inf, whole: bool = False, hint: str = "") -> None:
    """A finite number from least to most, both included.

    above, below: limits that are not included.
    whole: refuse fractions.
    hint: what to do, as the end of the sentence.
    """
    kind: Any = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        came = f"of type {type(value).__name__}"
    elif least <= value <= most and above < value < below:
        return
    else:
        came = _in_words(value)
    needed = f"a {'whole' if whole else 'finite'} number{_limits(least, most, above, below)}"
    raise UserError(f"{name} must be {needed}, but is {came}{f': {hint}' if hint else ''}.")


def check_choice(value, name: str, known: Iterable[str]) -> None:
    """One of the known words."""
    known = list(known)
    if isinstance(value, str) and value in known:
        return
    came = shown(value) if isinstance(value, str) else f"of type {type(value).__name__}"
    more = f" and {len(known) - MOST_CHOICES} more" if len(known) > MOST_CHOICES else ""
    raise UserError(f"{name} must be one of {', '.join(map(shown, known[:MOST_CHOICES]))}{more}, but is {came}.")


def check_text(value, name: str) -> None:
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text, but is of type {type(value).__name__}.")


def check_made(value, name: str, kind, made_by: str) -> None:
    """An object of the pack's own.

    kind: its class, or ``list[a class]``.
    made_by: which output of which nodes gives it, in words.
    """
    inner = get_args(kind)
    if isinstance(value, list if inner else kind) and all(isinstance(each, inner) for each in (value if inner else ())):
        return
    raise UserError(f"{name} must be {made_by}, but is of type {type(value).__name__}: connect that output.")


def check_switch(value, name: str) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{name} must be on or off, but is of type {type(value).__name__}.")


def check_finite(values: torch.Tensor, name: str, most: float = math.inf) -> None:
    """Numbers none of which is NaN, infinite or beyond most on either side.

    values: [...] of any real dtype, not empty.
    """
    low, high = _finite_extent(values, name)
    if max(-low, high) > most:
        raise UserError(f"the values of {name} must lie between -{most:g} and {most:g}, but are from {low:g} to "
                        f"{high:g}: check the node it comes from.")


def extent(values: torch.Tensor) -> tuple[float, float]:
    """The least and the largest value, both NaN where any is.

    values: [...] of any real dtype, not empty.
    """
    # aminmax takes one pass and no copy; dtypes of 8 bits have none
    low, high = (values.float() if values.dtype.itemsize == 1 else values).aminmax()
    return float(low), float(high)


def oddity(tensor: torch.Tensor) -> str | None:
    """Why the tensor is no dense one of real numbers, as a word after "is", or None if it is."""
    odd = {"nested": tensor.is_nested, "without data": tensor.is_meta, "quantized": tensor.is_quantized,
           "complex": tensor.is_complex(), "sparse": tensor.layout != torch.strided}
    return next((word for word, is_so in odd.items() if is_so), None)


def checked_pictures(value, name: str) -> torch.Tensor:
    """ComfyUI's IMAGE as [B, H, W, 3 or 4] float32 in 0..1, none of B, H and W zero; the fourth channel is alpha.

    A picture of one channel is grey. What overshoots 0..1 by less than OVERSHOOT is clamped.
    """
    images = _real(value, name, "a batch of pictures")
    if images.ndim != 4 or 0 in images.shape or images.shape[-1] not in (1, 3, 4):
        raise UserError(f"{name} must have the shape [number, height, width, channels] with 1, 3 or 4 channels and "
                        f"none of them 0, but has {_shape(images)}: connect pictures.")
    images = _in_unit_range(images, name)
    return images.expand(-1, -1, -1, 3) if images.shape[-1] == 1 else images


def checked_masks(value, name: str, of: tuple[int, int, int] | None = None) -> torch.Tensor:
    """ComfyUI's MASK as [B, H, W] float32 in 0..1, none of B, H and W zero.

    value: [H, W], [B, H, W] or [B, 1, H, W].
    of: number, height and width of the pictures that it belongs to. B is then that number or 1.
    """
    masks = _real(value, name, "a mask")
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    elif masks.ndim == 2:
        masks = masks[None]
    if masks.ndim != 3 or 0 in masks.shape:
        raise UserError(f"{name} must have the shape [number, height, width] with none of them 0, but has "
                        f"{_shape(value)}: connect a mask.")
    if of is not None and (masks.shape[0] not in (1, of[0]) or tuple(masks.shape[1:]) != of[1:]):
        raise UserError(f"{name} must be of the picture's size, {list(of)} (number, height, width), but is "
                        f"{list(masks.shape)}: make the mask from this picture.")
    return _in_unit_range(masks, name)


def checked_latent(value, name: str) -> torch.Tensor:
    """The samples of ComfyUI's LATENT, finite and not empty, in the dtype that they came in."""
    if not isinstance(value, dict) or "samples" not in value:
        raise UserError(f"{name} must be a latent, but is of type {type(value).__name__}: connect an empty latent or "
                        "an encoded picture or video.")
    samples = _real(value["samples"], name, "a latent")
    if 0 in samples.shape or not samples.is_floating_point():
        raise UserError(f"{name} must hold floating point numbers and have no side of 0, but has dtype "
                        f"{_dtype(samples)} and shape {_shape(samples)}: make it with EmptyHunyuanLatentVideo, or "
                        "encode a picture or video.")
    check_finite(samples, name, MOST_IN_LATENT)
    return samples


def checked_size(value, name: str) -> tuple[int, int]:
    """Height and width of ComfyUI's LATENT of a video, in latent pixels."""
    samples = checked_latent(value, name)
    if samples.ndim != 5:
        raise UserError(f"{name} must have the shape of a video, [B, 16, T, h, w], but has {_shape(samples)}: connect "
                        "the latent that is sampled, such as that of EmptyHunyuanLatentVideo.")
    height, width = samples.shape[-2:]
    return height, width


def _real(value, name: str, needed: str) -> torch.Tensor:
    """A plain tensor of real numbers, without gradients."""
    if not isinstance(value, torch.Tensor):
        raise UserError(f"{name} must be {needed}, but is of type {type(value).__name__}.")
    odd = oddity(value)
    if odd is not None:
        raise UserError(f"{name} must be {needed} of plain numbers, but is a tensor that is {odd}.")
    return value.detach()


def _finite_extent(values: torch.Tensor, name: str) -> tuple[float, float]:
    low, high = extent(values)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"the values of {name} must be finite, but some are NaN or infinite: check the node that it "
                        "comes from; a VAE in half precision makes NaN.")
    return low, high


def _in_unit_range(values: torch.Tensor, name: str) -> torch.Tensor:
    low, high = _finite_extent(values, name)
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise UserError(f"the values of {name} must lie between 0 and 1, but are from {low:g} to {high:g}: divide them "
                        "by their largest, or check the node it comes from.")
    values = values.float()
    return values.clamp(0, 1) if low < 0 or high > 1 else values


def _limits(least: float, most: float, above: float, below: float) -> str:
    if least != -math.inf and most != math.inf:
        return f" from {_in_words(least)} to {_in_words(most)}"
    limits = {"at least": least, "more than": above, "at most": most, "less than": below}
    said = [f"{words} {_in_words(limit)}" for words, limit in limits.items() if abs(limit) != math.inf]
    return f" of {' and '.join(said)}" if said else ""


def _in_words(number: float) -> str:
    if isinstance(number, numbers.Integral):
        return str(number) if abs(number) < 10**20 else "a number of more than 20 digits"
    return f"{number:g}"


def _shape(values: torch.Tensor) -> list[int]:
    return list(values.shape)


def _dtype(values: torch.Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
