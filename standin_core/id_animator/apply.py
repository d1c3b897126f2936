"""The identity put on a ModelPatcher."""
from __future__ import annotations

import torch

from ..checks import checked_pictures
from ..controls import Controls
from ..errors import UserError
from ..person import Person, Use
from ..runs import is_installed
from .adapter import Adapter
from .applied import Identity
from .photo import keys_values, tokens_of_hidden_states, tokens_of_photos
from .unet import CrossAttention, add_low_rank, check_fit, cross_attentions
from .wrappers import KEY, install


def apply_photos(model, adapter: Adapter, clip_vision, image: torch.Tensor | None, person: Person | None = None,
                 **settings: float):
    """As ``apply_face_tokens``, from face crops.

    clip_vision: ComfyUI's CLIP vision model, ViT-H.
    image: ComfyUI's IMAGE, whose tokens are averaged; or
    person: whose hidden states are read where they were kept, without the encoder, and whose crops otherwise.

    A model that the adapter does not fit, and what is no picture, is refused before the encoder works. Raises
    UserError where neither an image nor a person came, and where the encoder is needed and did not come.
    """
    _places(model, adapter)
    kept = None
    if person is not None:
        image, _ = person.in_place_of(image, None, Use.ID_ANIMATOR)
        kept = person.hidden_states
    if image is None:
        raise UserError("no face came: connect the face crop to reference_image, or a person from Load Person.")
    image = checked_pictures(image, "reference_image")
    if kept is not None:
        tokens = tokens_of_hidden_states(adapter, kept)
    elif clip_vision is None:
        raise UserError("a face came without a CLIP vision model: connect the ViT-H from Load CLIP Vision.")
    else:
        tokens = tokens_of_photos(adapter, clip_vision, image)
    return apply_face_tokens(model, adapter, tokens, len(image), **settings)


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
