"""The identity put on a ModelPatcher, and taken off."""
from __future__ import annotations

import dataclasses

import torch

from ..checks import checked_masks
from ..controls import kept_tokens
from ..errors import UserError
from ..person import Person, Use
from ..reference import reference_from
from ..wan import Wan
from .adapter import Adapter, check_fit
from .applied import Identity, RunSettings
from .wrappers import RANKS, install, installed, uninstall


def apply_reference(model, adapter: Adapter, vae, image: torch.Tensor | None, latent: dict | None,
                    mask: torch.Tensor | None = None, person: Person | None = None, **settings):
    """As ``apply_identity_branch``, from reference images [R, H, W, 3] and Wan's VAE or from a ComfyUI LATENT.

    mask: [R or 1, H, W], tokens of the reference where it is 0 in every photo are left out. A model that the adapter
    does not fit is refused before the VAE works.
    person: in place of image and latent.
    """
    _check_fit(model, adapter)
    if person is not None:
        image, latent = person.in_place_of(image, latent, Use.STAND_IN, vae)
    reference = reference_from(vae, image, latent)
    if mask is not None:
        settings["kept_tokens"] = kept_tokens(mask, Wan(model.model).grid(reference.shape)[1:])
    return apply_identity_branch(model, adapter, reference, **settings)


def apply_identity_branch(model, adapter: Adapter, reference_latent: torch.Tensor, **settings):
    """A clone of the ModelPatcher whose runs read this identity, beside those that the model reads already.

    reference_latent: [R, 16, 1, h, w], VAE space.
    settings: those of Identity and of RunSettings.

    Raises UserError for a model that is not Wan, or that the adapter or the reference does not fit, and for settings
    that cannot work together, before any work.
    """
    _check_fit(model, adapter)
    needed, came = model.model.latent_format.latent_channels, reference_latent.shape[1]
    if came != needed:
        raise UserError(f"the reference latent has {came} channels, this model's latents have {needed}: encode the "
                        "reference with the VAE of this model.")
    if settings.get("region") is not None:
        settings["region"] = checked_masks(settings["region"], "region")
    common = {field.name: settings.pop(field.name) for field in dataclasses.fields(RunSettings)
              if field.name in settings}
    identity = Identity(adapter, model.model.process_latent_in(reference_latent), **settings)
    applied = installed(model).with_identity(identity, RunSettings(**common))
    blocks = len(Wan(model.model).blocks)
    if not identity.blocks(blocks):
        raise UserError(f"the model has blocks 0 to {blocks - 1}, and {identity.first_block} to "
                        f"{identity.last_block} selects none of them: set first_block no higher than last_block (-1 is "
                        "the last block).")
    patched = remove_identity_branch(model)
    install(patched, applied)
    return patched


def remove_identity_branch(model):
    """A clone of the ModelPatcher without any identity."""
    plain = model.clone()
    uninstall(plain)
    return plain


def split_over_ranks(model, group):
    """A clone of the ModelPatcher whose identities are read by a video of which each rank has a part.

    To be called in every process of a host that splits the video's tokens, like raylight, with the same identities in
    each. It replaces the host's self-attention in the blocks that read an identity, by Ulysses.

    group: of torch.distributed, with a backend that knows all-to-all. The ranks have equal parts of the tokens in their
        order, the last of them padded; see ``attention.over_ranks``.
    """
    split = model.clone()
    split.model_options["transformer_options"][RANKS] = group
    return split


def _check_fit(model, adapter: Adapter) -> None:
    wan = Wan(model.model)
    check_fit(adapter, len(wan.blocks), wan.dim)
