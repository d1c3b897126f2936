"""The identity put on a ModelPatcher."""
from __future__ import annotations

import torch

from ..checks import checked_pictures
from ..contracts import UserError
from ..controls import Controls
from ..runs import is_installed
from .adapter import Adapter
from .applied import Identity
from .photo import keys_values, tokens_of_photos
from .unet import CrossAttention, add_low_rank, check_fit, cross_attentions
from .wrappers import KEY, install


def apply_photos(model, adapter: Adapter, clip_vision, image: torch.Tensor, **settings: float):
    """As ``apply_face_tokens``, from face crops.

    clip_vision: ComfyUI's CLIP vision model, ViT-H.
    image: ComfyUI's IMAGE, whose tokens are averaged.

    A model that the adapter does not fit, and what is no picture, is refused before the encoder works.
    """
    _places(model, adapter)
    photos = checked_pictures(image, "reference_image")
    return apply_face_tokens(model, adapter, tokens_of_photos(adapter, clip_vision, photos), len(photos), **settings)


def apply_face_tokens(model, adapter: Adapter, tokens: torch.Tensor, photos: int = 1, strength: float = 1.0,
                      start_percent: float = 0.0, end_percent: float = 1.0, lora_strength: float = 1.0):
    """A clone of the ModelPatcher whose runs read this identity.

    tokens: [2, n, c] float32 on the CPU, of the face and of nobody.
    photos: of how many the tokens of the face are the mean, for the report.
    strength, start_percent, end_percent: of Controls.
    lora_strength: of the low-rank weights, which change the model in every step and for every prompt.

    Raises UserError for a model that is not SD1.5 or reads an identity already, and for controls that cannot work
    together.
    """
    places = _places(model, adapter)
    controls = Controls(strength=strength, start_percent=start_percent, end_percent=end_percent)
    identity = Identity(adapter, controls, photos, places, keys_values(adapter, tokens), lora_strength)
    patched = model.clone()
    if lora_strength != 0:
        add_low_rank(patched, adapter, places, lora_strength)
    install(patched, identity)
    return patched


def _places(model, adapter: Adapter) -> tuple[CrossAttention, ...]:
    """Where the model reads; raises UserError unless the adapter fits it and nothing is applied to it yet."""
    places = cross_attentions(model.model)
    check_fit(adapter, places)
    if is_installed(model, KEY):
        raise UserError("the model reads an ID-Animator identity already, and its low-rank weights would be added "
                        "twice: use one Apply ID-Animator, and connect several photos as one batch.")
    return places
