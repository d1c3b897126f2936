"""The reference put on a ModelPatcher."""
from __future__ import annotations

import torch

from ..checks import checked_pictures, checked_size
from ..errors import UserError
from ..latents import PIXELS_PER_LATENT
from ..person import Person, Use
from ..reference import fitted, reference_from
from ..runs import is_installed
from .applied import AppendedReference, check_count
from .model import ConcatID, check_fit
from .wrappers import KEY, install


def apply_concat_id(model, concat_id: ConcatID, video: dict, vae=None, image: torch.Tensor | None = None,
                    latent: dict | None = None, person: Person | None = None, **settings):
    """A clone of the ModelPatcher that appends a reference to its video.

    concat_id: of the file that the model came from.
    video: the ComfyUI LATENT that will be sampled, whose size the reference takes.
    vae, image: Wan's VAE and pictures [M, H, W, 3], from left to right, which are fitted into the video; or
    latent: a ComfyUI LATENT of the references, of the video's size; or
    person: whose first photo is read.
    settings: of ``AppendedReference``.

    Raises UserError for a model or a reference that does not fit, before the VAE works.
    """
    check_fit(concat_id, model)
    if is_installed(model, KEY):
        faces = concat_id.references
        more = f", and connect a batch of {faces} faces to the other" if faces > 1 else ""
        raise UserError("this model has a reference by Concat-ID already: take out one of the two Apply Concat-ID"
                        f"{more}.")
    height, width = checked_size(video, "latent")
    if person is not None:
        if concat_id.references > 1:
            raise UserError(f"one person came and {concat_id.name} was trained with {concat_id.references} in a video: "
                            f"disconnect it, and connect a batch of {concat_id.references} faces, from left to right.")
        image, latent = person.in_place_of(image, latent, Use.CONCAT_ID, vae, 1, (height, width))
    if image is not None:
        pictures = checked_pictures(image, "reference_image")
        check_count(concat_id, len(pictures))
        image = torch.stack([fitted(each[..., :3], PIXELS_PER_LATENT * height, PIXELS_PER_LATENT * width)
                             for each in pictures])
    reference = reference_from(vae, image, latent)
    if tuple(reference.shape[1:]) != (model.model.latent_format.latent_channels, 1, height, width):
        raise UserError(f"the reference latent must be of the video's size, [{concat_id.references}, 16, 1, {height}, "
                        f"{width}], but has shape {list(reference.shape)}: encode a picture of the video's size with "
                        "Wan 2.1's VAE, or connect reference_image.")
    patched = model.clone()
    install(patched, AppendedReference(concat_id=concat_id, latent=model.model.process_latent_in(reference),
                                       **settings))
    return patched
