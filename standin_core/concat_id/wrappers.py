"""What a patched model carries between runs: four wrappers on the ModelPatcher, under one key.

OUTER_SAMPLE opens the run and closes it in ``finally``; SAMPLER_SAMPLE notes which conditions are positive;
PREPARE_SAMPLING tells ComfyUI's memory manager the bytes that will be needed; APPLY_MODEL appends the reference to that
one call. That is outside of a cache's skipped steps and of what torch.compile traces, and inside of context windows.
"""
from __future__ import annotations

import torch
from comfy.patcher_extension import WrappersMP

from ..errors import UserError
from ..guidance import OWN_SCALE, OwnScale
from ..runs import WINDOW, announced, install_wrappers, opened
from ..wan import Wan
from .applied import AppendedReference
from .forward import references_appended
from .run import ConcatIDRun, check_place, extra_bytes

KEY = "concat_id"
WITHOUT = "concat_id_without"  # set for a call in which the reference is zeros
APPENDED = "time_dim_concat"  # ComfyUI's: frames that the model takes behind the video's


def install(model, applied: AppendedReference) -> None:
    """model: a ModelPatcher of the caller's own, without a reference."""
    wrappers = _Wrappers(applied)
    install_wrappers(model, KEY, {WrappersMP.OUTER_SAMPLE: wrappers.outer_sample,
                                  WrappersMP.PREPARE_SAMPLING: wrappers.prepare_sampling,
                                  WrappersMP.APPLY_MODEL: apply_model})
    if applied.guidance == OWN_SCALE:
        model.set_model_sampler_pre_cfg_function(OwnScale(KEY, WITHOUT))


class _Wrappers:
    """The wrappers that need the reference. No ``.to``: ComfyUI would call it on them."""

    def __init__(self, applied: AppendedReference):
        self.applied = applied

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        check_place(self.applied, noise.shape)
        run = ConcatIDRun(self.applied, len(sigmas) - 1)
        run.passes.check(guider)
        with opened(run, guider, KEY):
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def prepare_sampling(self, executor, model, noise_shape, conds, *args, **kwargs):
        with announced(extra_bytes(self.applied, Wan(model.model), noise_shape)):
            return executor(model, noise_shape, conds, *args, **kwargs)


def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """This one call of the model takes the reference behind its video.

    x: [B, 16, T, h, w], model space.
    t: [B] sigmas.
    """
    options = {} if transformer_options is None else transformer_options
    run: ConcatIDRun | None = options.get(KEY)
    if run is None:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    if APPENDED in kwargs:
        raise UserError("another node appends frames of its own to the video (as WanPhantomSubjectToVideo does), but "
                        "Concat-ID's reference must be the only one: take that node out.")
    check_place(run.applied, x.shape, options.get(WINDOW))
    base = executor.class_obj
    wan = Wan(base)
    grid = wan.grid(x.shape)
    run.model_called(type(base).__name__, grid, lambda: run.reported(wan))
    readers = _readers(run, base, x, t, options)
    timestep = base.model_sampling.timestep(t).float()
    with references_appended(wan, grid, len(run.applied.latent), timestep, run.own(x.device, wan.dtype),
                             options.get("rope_options")):
        output = executor(x, t, c_concat, c_crossattn, control, options,
                          **{**kwargs, APPENDED: run.appended(x.shape, readers, x.device)})
    if readers is None or bool(readers.any()):
        run.note_identity_call()
    return output


def _readers(run: ConcatIDRun, base, x: torch.Tensor, t: torch.Tensor, options: dict) -> torch.Tensor | None:
    """[B] bool, which of the batch read the reference, or None for all."""
    if options.get(WITHOUT) or not run.applied.has(base.model_sampling.percent_to_sigma, t):
        return torch.zeros(len(x), dtype=torch.bool)
    return run.passes.readers(options, len(x))
