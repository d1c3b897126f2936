"""The identity put on a ModelPatcher."""
from __future__ import annotations

import torch

from ..contracts import UserError
from ..controls import Controls
from .adapter import Adapter
from .photo import identity_keys_values
from .settings import Identity
from .unet import add_low_rank, check_fit, cross_attentions
from .wrappers import install, is_installed


def apply_id_animator(model, adapter: Adapter, clip_vision, image: torch.Tensor, lora_strength: float = 1.0,
                      **controls):
    """A clone of the ModelPatcher whose runs read this identity.

    clip_vision: ComfyUI's CLIP vision model, ViT-H.
    image: [R, H, W, 3] in 0..1, face crops, whose tokens are averaged.
    lora_strength: of the low-rank weights, which change the model in every step and for every prompt.
    controls: of Controls.

    Raises UserError for a model that is not SD1.5 or reads an identity already, for another adapter or encoder, and for
    controls that cannot work together.
    """
    places = cross_attentions(model.model)
    check_fit(adapter, places)
    if is_installed(model):
        raise UserError("the model reads an ID-Animator identity already, and its low-rank weights would be added "
                        "twice: use one Apply ID-Animator, and connect several photos as one batch.")
    identity = Identity(adapter, Controls(**controls), len(image), places,
                        identity_keys_values(adapter, clip_vision, image), lora_strength)
    patched = model.clone()
    if lora_strength != 0:
        add_low_rank(patched, adapter, places, lora_strength)
    install(patched, identity)
    return patched
