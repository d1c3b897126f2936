"""What a model is given: the identity, as keys and values of every cross-attention, and how strongly it is read."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ..controls import Controls
from .adapter import Adapter
from .unet import CrossAttention


@dataclass(frozen=True, slots=True)
class Identity:
    """One person on a model; shared, unchanged, by every clone of it.

    photos: how many there are.
    places: the model's cross-attentions.
    faces: key and value of each, [2, n, C] float32 on the CPU: first of the photos, for positive conditions, then of
        no face, for the others.
    lora_strength: with which the low-rank weights were added to the model.
    """

    adapter: Adapter
    controls: Controls
    photos: int
    places: tuple[CrossAttention, ...]
    faces: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    lora_strength: float
