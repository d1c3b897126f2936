"""A tiny random Concat-ID, on the tiny Wan of ``tiny`` or one of another depth, and its reference on a ModelPatcher."""
import dataclasses
import functools

import torch

import tiny
from small_world.tiny_models import concat_id_weights
from standin_core.concat_id.apply import apply_concat_id
from standin_core.concat_id.model import parse_concat_id


@functools.cache
def record(adaln=True, blocks=tiny.WAN.blocks):
    wan = dataclasses.replace(tiny.WAN, blocks=blocks)
    return parse_concat_id(concat_id_weights(wan, adaln), "tiny_concat_id.safetensors", "0" * 64)[1]


def with_reference(model, seed=1, adaln=True, shape=tiny.LATENT, reference=None, **settings):
    """reference: [1, 16, 1, h, w], VAE space; random of the seed where it is None."""
    if reference is None:
        reference = tiny.random(1, 16, 1, *shape[-2:], seed=seed)
    return apply_concat_id(model, record(adaln, len(model.model.diffusion_model.blocks)),
                           {"samples": torch.zeros(shape)}, latent={"samples": reference}, **settings)


def zeros(model):
    """The reference that training took for none: a latent of zeros in model space."""
    return model.model.process_latent_out(torch.zeros(1, 16, 1, *tiny.LATENT[-2:]))
