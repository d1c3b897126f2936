"""From face crops to face tokens, and to the keys and values of every cross-attention."""
from __future__ import annotations

import torch
from torch.nn.functional import linear

from ..clip_vision import hidden_states
from ..errors import UserError
from .adapter import Adapter
from .resampler import face_tokens


def tokens_of_photos(adapter: Adapter, clip_vision, image: torch.Tensor) -> torch.Tensor:
    """As ``tokens_of_hidden_states``, from face crops.

    clip_vision: ComfyUI's CLIP vision model, ViT-H.
    image: [R, H, W, 3] in 0..1.
    """
    return tokens_of_hidden_states(adapter, hidden_states(clip_vision, image))


def tokens_of_hidden_states(adapter: Adapter, hidden: torch.Tensor) -> torch.Tensor:
    """The face tokens of the photos and of nobody, [2, n, c] float32 on the CPU; of several photos they are averaged.

    hidden: [R + 1, L, w] float32 on the CPU, see ``clip_vision.hidden_states``.

    Raises UserError for those of another encoder.
    """
    if hidden.shape[-1] != adapter.clip_width:
        raise UserError(f"the CLIP vision model gives features of width {hidden.shape[-1]}, {adapter.name} takes "
                        f"{adapter.clip_width}: load the ViT-H with Load CLIP Vision "
                        "(CLIP-ViT-H-14-laion2B-s32B-b79K).")
    tokens = face_tokens(adapter.resampler, adapter.depth, hidden)
    return torch.stack((tokens[:-1].mean(dim=0), tokens[-1]))


def keys_values(adapter: Adapter, tokens: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Key and value of each cross-attention, [2, n, C].

    tokens: [2, n, c] float32 on the CPU.
    """
    return tuple((linear(tokens, place.key.float()), linear(tokens, place.value.float()))
                 for place in adapter.projections)
