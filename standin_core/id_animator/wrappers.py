"""What a patched model carries between runs: three wrappers on the ModelPatcher, under one key.

OUTER_SAMPLE opens the run and closes it at its end; SAMPLER_SAMPLE notes which conditions are positive; APPLY_MODEL has
the cross-attentions read the face in that one call, whatever other nodes put there before or after.
"""
from __future__ import annotations

from comfy.patcher_extension import WrappersMP

from ..controls import strength_at
from ..guidance import latents_sampled
from ..runs import install_wrappers, opened
from .applied import Identity
from .run import IDAnimatorRun
from .unet import reading

KEY = "id_animator"


def install(model, identity: Identity) -> None:
    """model: a ModelPatcher of the caller's own, without an identity."""
    install_wrappers(model, KEY, {WrappersMP.OUTER_SAMPLE: _OuterSample(identity),
                                  WrappersMP.APPLY_MODEL: apply_model})


class _OuterSample:
    """The wrapper that needs the identity. No ``.to``: ComfyUI would call it."""

    def __init__(self, identity: Identity):
        self.identity = identity

    def __call__(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        with opened(IDAnimatorRun(self.identity, len(sigmas) - 1), executor.class_obj, KEY):
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """In this one call of the model the cross-attentions read the face.

    x: [B, 4, h, w], the pictures or frames of all conditions of the call.
    t: [B] sigmas.
    """
    options = {} if transformer_options is None else transformer_options
    arguments = (x, t, c_concat, c_crossattn, control)
    run: IDAnimatorRun | None = options.get(KEY)
    if run is None:
        return executor(*arguments, options, **kwargs)
    base = executor.class_obj
    grid = latents_sampled(options), *x.shape[2:]
    run.model_called(type(base.model_config).__name__, grid, run.reported)
    strength = strength_at(run.identity.controls, base.model_sampling.percent_to_sigma, t)
    if strength == 0:
        return executor(*arguments, options, **kwargs)
    with reading(base, run.identity.places, run.faces(x, base.get_dtype_inference(), options, strength),
                 options) as face_options:
        output = executor(*arguments, face_options, **kwargs)
    run.note_identity_call()
    return output
