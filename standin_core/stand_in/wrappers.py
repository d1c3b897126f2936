"""What a patched model carries between runs: four wrappers on the ModelPatcher, under one key.

OUTER_SAMPLE opens the run and frees everything in ``finally``; SAMPLER_SAMPLE notes which conditions are positive;
PREPARE_SAMPLING tells ComfyUI's memory manager the bytes that will be needed; APPLY_MODEL builds the identity K/V on
first use and installs the restricted attention for that one call.
"""
from __future__ import annotations

import math

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ..attention import over_ranks, restricted_attention
from ..controls import query_bias, strength_at
from ..errors import UserError
from ..guidance import OWN_SCALE, OwnScale
from ..runs import WINDOW, announced, install_wrappers, opened, uninstall_wrappers
from ..wan import Reading, Wan
from .applied import Applied, Identity
from .attention_map import AttentionRecorder
from .budget import extra_bytes
from .choices import maps_attention
from .positions import POSITIONS
from .run import StandInRun

KEY = "stand_in"
WITHOUT = "stand_in_without"  # set for a call that reads no identity
RANKS = "stand_in_ranks"  # the group of torch.distributed over which the video's tokens are split
guide_identity = OwnScale(KEY, WITHOUT)


def install(model, applied: Applied) -> None:
    """model: a ModelPatcher of the caller's own, without identities."""
    wrappers = _Wrappers(applied)
    install_wrappers(model, KEY, {WrappersMP.OUTER_SAMPLE: wrappers.outer_sample,
                                  WrappersMP.PREPARE_SAMPLING: wrappers.prepare_sampling,
                                  WrappersMP.APPLY_MODEL: apply_model})
    if applied.settings.guidance == OWN_SCALE:
        model.set_model_sampler_pre_cfg_function(guide_identity)


def uninstall(model) -> None:
    """The reverse of ``install``; nothing where there is nothing."""
    uninstall_wrappers(model, KEY)
    functions = model.model_options.get("sampler_pre_cfg_function", [])
    if guide_identity in functions:
        model.model_options["sampler_pre_cfg_function"] = [each for each in functions if each is not guide_identity]


def installed(model) -> Applied:
    """What a ModelPatcher reads."""
    for wrapper in model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        return wrapper.__self__.applied
    return Applied()


class _Wrappers:
    """The wrappers that need the identities. No ``.to``: ComfyUI would call it on them."""

    def __init__(self, applied: Applied):
        self.applied = applied

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        options = guider.model_options.setdefault("transformer_options", {})
        wan, recorder = Wan(guider.model_patcher.model), None
        if maps_attention(options):
            _check_map(self.applied)
            recorder = AttentionRecorder(len(self.applied.identities), len(wan.blocks))
        run = StandInRun(self.applied, len(sigmas) - 1, _hook_groups(guider.conds), wan.grid(noise.shape), recorder)
        run.passes.check(guider)
        with opened(run, guider, KEY):
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def prepare_sampling(self, executor, model, noise_shape, conds, *args, model_options=None, **kwargs):
        options = (model_options or {}).get("transformer_options", {})
        run: StandInRun | None = options.get(KEY)
        own = [] if run is None else run.models_to_load([
            each.load_device for each in (model, *model.get_additional_models_with_key("multigpu"))])
        extra = extra_bytes(model, self.applied, noise_shape, _hook_groups(conds), options)
        with announced(extra):
            base, _, loaded = executor(model, noise_shape, _bringing(conds, own), *args, model_options=model_options,
                                       **kwargs)
        # the run owns what is its own: the sampler would hold on to it after an exception
        return base, conds, [each for each in loaded if each not in own]


def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """One call of the model. The video reads each identity for which the call lies between start and end percent.

    x: [B, 16, T, h, w], model space.
    t: [B] sigmas.
    """
    options = {} if transformer_options is None else transformer_options
    arguments = (x, t, c_concat, c_crossattn, control, options)
    run: StandInRun | None = options.get(KEY)
    if run is None:
        return executor(*arguments, **kwargs)
    base = executor.class_obj
    wan = Wan(base)
    grid = wan.grid(x.shape)
    run.model_called(type(base).__name__, grid, lambda: run.reported(wan))
    readings = [] if options.get(WITHOUT) else _readings(run, base, wan, grid, x, t, options)
    if not readings:
        return executor(*arguments, **kwargs)
    choice = run.attention(wan, x.device, options)
    attend = readings[0].layers.attend if run.applied.is_ordinary else restricted_attention(choice)
    note_mass = None
    if run.recorder is not None:
        run.check_place(grid, options.get(WINDOW), "an attention map")
        note_mass = run.recorder.for_call(grid, options.get(WINDOW))
    group, split_tokens = options.get(RANKS), None
    if group is not None:
        if run.applied.is_ordinary:
            raise UserError("the video is split over several GPUs, but an adapter that was trained with ordinary "
                            "attention cannot follow it: take an adapter of restricted attention, or one GPU.")
        split_tokens = math.prod(grid)
        attend = over_ranks(attend, group, split_tokens)
    fused = run.unfused[x.device] is None
    with wan.identity_installed(readings, attend, note_mass, split_tokens, fused) as count_reads:
        output = executor(*arguments, **kwargs)
        run.note_reads(count_reads())
    return output


def _readings(run: StandInRun, base, wan: Wan, grid: tuple[int, int, int], x: torch.Tensor, t: torch.Tensor,
              options: dict) -> list[Reading]:
    readings = []
    for index, identity in enumerate(run.applied.identities):
        strength = strength_at(identity, base.model_sampling.percent_to_sigma, t)
        readers = run.passes.readers(options, len(x))
        if strength == 0 or (readers is not None and not bool(readers.any())):
            continue
        rotation = _rotation(identity, wan, grid, options, x.device)
        region = run.region(index, grid, x.device, options.get(WINDOW))
        bias = query_bias(strength, identity.shared_by, region, readers, x.device)
        if run.applied.is_ordinary:
            layers = run.joint_stream(identity, wan, len(x), rotation)
        else:
            layers = run.layers(index, base, wan, x.device)
        readings.append(Reading(index, layers, rotation, bias, identity.blocks(len(wan.blocks))))
    return readings


def _rotation(identity: Identity, wan: Wan, grid: tuple[int, int, int], options: dict,
              device: torch.device) -> torch.Tensor:
    place = POSITIONS[identity.adapter.variant.positions]
    positions = place(grid[1:], wan.grid(identity.reference_latent.shape)[1:], identity.time_offset,
                      options.get("rope_options"), device)
    if identity.kept_tokens is not None:
        positions = positions[:, identity.kept_tokens.to(device)]
    return wan.rotation(positions)


def _bringing(conds: dict[str, list[dict]], models: list) -> dict[str, list[dict]]:
    """The conditions, of which the first brings models for ComfyUI to load, as those of core's nodes may."""
    name = next((name for name, each in conds.items() if each), None)
    if not models or name is None:
        return conds
    first, *others = conds[name]
    return {**conds, name: [{**first, "additional_models": [*first.get("additional_models", ()), *models]}, *others]}


def _check_map(applied: Applied) -> None:
    """Raise UserError where the attention gives no log-sum-exp to make a map of."""
    if applied.is_ordinary:
        raise UserError("an attention map needs log-sum-exps, but an adapter that was trained with ordinary attention "
                        "gives none: switch attention_map off, or take an adapter of restricted attention.")
    if applied.settings.attention == "concatenate":
        raise UserError("an attention map needs log-sum-exps, but attention is set to concatenate: set it to auto "
                        "or merge in Apply Identity Branch, or switch attention_map off.")


def _hook_groups(conds: dict) -> int:
    """Distinct LoRA-hook groups among the conditions; each has weights, and so identity K/V, of its own."""
    return max(1, comfy.samplers.get_total_hook_groups_in_conds(conds))
