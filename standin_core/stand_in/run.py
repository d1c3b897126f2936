"""One run: from the sampler's first call to its last, or to the exception that ends it.

Four wrappers on the ModelPatcher, under one key, are all that a patched model carries. OUTER_SAMPLE opens the run and
frees everything in ``finally``; SAMPLER_SAMPLE notes which conditions are positive; PREPARE_SAMPLING tells ComfyUI's
memory manager the bytes that will be needed; APPLY_MODEL builds the identity K/V on first use and installs the
restricted attention for that one call.
"""
from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import uuid

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ..attention import (
    FLASH_ATTN,
    PYTORCH,
    SAGE,
    AttentionChoice,
    AttentionInUse,
    choose_attention,
    restricted_attention,
)
from ..contracts import StandInError
from ..controls import kept_tokens, query_bias, region_weights, strength_at
from ..reference import reference_from
from ..report import ReportSink, as_text
from ..wan import OVERRIDE, Reading, Wan
from .adapter import Adapter, check_fit
from .attention_map import AttentionRecorder
from .kv_cache import IdentityCache, IdentityCacheSpec, hold
from .positions import identity_positions
from .run_report import StandInReport, ToldIdentity
from .settings import IdentityBranch
from .stream import identity_layers

log = logging.getLogger(__name__)

KEY = "stand_in"
WINDOW = "context_window"  # ComfyUI's: the part of the video that a call of the model sees
TIME = 2  # the dimension of a latent [B, 16, T, h, w]
WITHOUT = "stand_in_without"  # set for the one more pass of guidance "own scale"


def apply_reference(model, adapter: Adapter, vae, image: torch.Tensor | None, latent: dict | None,
                    mask: torch.Tensor | None = None, **controls):
    """As ``apply_identity_branch``, from reference images [R, H, W, 3] and Wan's VAE or from a ComfyUI LATENT.

    mask: [R or 1, H, W], tokens of the reference where it is 0 in every photo are left out. A model that the adapter
    does not fit is refused before the VAE works.
    """
    _check_fit(model, adapter)
    reference = reference_from(vae, image, latent)
    if mask is not None:
        controls["kept_tokens"] = kept_tokens(mask, Wan(model.model).grid(reference.shape)[1:])
    return apply_identity_branch(model, adapter, reference, **controls)


def apply_identity_branch(model, adapter: Adapter, reference_latent: torch.Tensor, **controls):
    """A clone of the ModelPatcher whose runs read this identity, beside those that the model reads already.

    reference_latent: [R, 16, 1, h, w], VAE space. controls: as in IdentityBranch. Raises StandInError for a model that
    is not Wan, or that the adapter or the reference does not fit, before any work.
    """
    _check_fit(model, adapter)
    needed, came = model.model.latent_format.latent_channels, reference_latent.shape[1]
    if came != needed:
        raise StandInError(f"the reference latent has {came} channels, this model's latents have {needed}: encode the "
                           "reference with the VAE of this model.")
    branch = IdentityBranch(adapter, model.model.process_latent_in(reference_latent), **controls)
    blocks = len(Wan(model.model).blocks)
    if not branch.blocks(blocks):
        raise StandInError(f"the identity is read in blocks {branch.first_block} to {branch.last_block}, and the model "
                           f"has blocks 0 to {blocks - 1}: set the first below the last (-1 is the last there is).")
    branches = (*applied_branches(model), branch)
    shared = ("attention", "cache", "guidance", *(("guidance_scale",) if branch.guidance == "own scale" else ()))
    for name in shared:
        if len({getattr(each, name) for each in branches}) > 1:
            raise StandInError(f"{name} differs between the identities of this model, and one run has one: set it "
                               "alike in every Apply Identity Branch.")
    patched = remove_identity_branch(model)
    wrappers = _Wrappers(branches)
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, wrappers.outer_sample),
                          (WrappersMP.SAMPLER_SAMPLE, wrappers.sampler_sample),
                          (WrappersMP.PREPARE_SAMPLING, wrappers.prepare_sampling),
                          (WrappersMP.APPLY_MODEL, apply_model)):
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    if branch.guidance == "own scale":
        patched.set_model_sampler_pre_cfg_function(guide_identity)
    return patched


def applied_branches(model) -> tuple[IdentityBranch, ...]:
    """The identities that a ModelPatcher reads, in the order they were applied."""
    for wrapper in model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        return wrapper.__self__.branches
    return ()


def _check_fit(model, adapter: Adapter) -> None:
    wan = Wan(model.model)
    check_fit(adapter, len(wan.blocks), wan.dim)


def remove_identity_branch(model):
    """A clone of the ModelPatcher without any identity."""
    plain = model.clone()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREPARE_SAMPLING,
                 WrappersMP.APPLY_MODEL):
        plain.remove_wrappers_with_key(kind, KEY)
    functions = plain.model_options.get("sampler_pre_cfg_function", [])
    if guide_identity in functions:
        plain.model_options["sampler_pre_cfg_function"] = [each for each in functions if each is not guide_identity]
    return plain


class Run:
    """The state of one run; lives in ``transformer_options`` as an opaque object and dies with the run.

    Several devices may call the model at a time (ComfyUI's multi-GPU), hence the lock.
    """

    def __init__(self, branches: tuple[IdentityBranch, ...], steps: int, hook_groups: int,
                 whole: tuple[int, int, int], maps_attention: bool = False):
        """whole: (t, h, w) of the video in tokens. maps_attention: record where the identity is read."""
        self.branches = branches
        self.whole = whole
        self.positive: frozenset[uuid.UUID] = frozenset()  # ComfyUI's uuids of the positive conditions
        self.guided_calls = 0
        self.plain_uuids: dict[uuid.UUID, uuid.UUID] = {}
        self.regions: dict[tuple, torch.Tensor] = {}
        self.hook_groups = hook_groups
        self.caches = [IdentityCache(entries=hook_groups) for _ in branches]
        self.modes: dict[torch.device, str] = {}
        self.choices: dict[torch.device, AttentionChoice] = {}
        self.started: float | None = None
        self.lock = threading.Lock()
        self.maps_attention = maps_attention
        self.recorder: AttentionRecorder | None = None
        self.report = StandInReport(steps=steps)

    def __deepcopy__(self, memo):
        return self

    def model_called(self, base, wan: Wan, grid: tuple[int, int, int]) -> None:
        with self.lock:
            if self.started is None:
                self.started = time.perf_counter()
                self.report.model = type(base).__name__
                self.report.video_grid = grid
                self.report.identities = [_identity_report(branch, wan) for branch in self.branches]
                if self.maps_attention:
                    self.recorder = AttentionRecorder(len(self.branches), len(wan.blocks))
            self.report.model_calls += 1

    def identity_read(self, blocks: int) -> None:
        with self.lock:
            self.report.identity_calls += 1
            self.report.reads += blocks

    def attention(self, wan: Wan, device: torch.device, options: dict) -> AttentionChoice:
        """Chosen once for each device."""
        with self.lock:
            if device not in self.choices:
                self.choices[device] = _choose(self.branches, wan, device, options)
                chosen = self.choices.values()
                self.report.attention = "; ".join(dict.fromkeys(map(str, chosen)))
                self.report.refusals = list(dict.fromkeys(refusal for choice in chosen for refusal in choice.refusals))
            return self.choices[device]

    def cache_mode(self, wan: Wan, device: torch.device) -> str:
        """Chosen once for each device, when the model is loaded and the free memory is known."""
        with self.lock:
            if device not in self.modes:
                self.modes[device] = _cache_mode(self.branches, wan, device, self.hook_groups)
                self.report.cache = "; ".join(dict.fromkeys(self.modes.values()))
            return self.modes[device]

    def layers(self, index: int, base, wan: Wan, device: torch.device):
        """K (before rotation) and V of every block for one identity, from the cache or built now."""
        hooks = getattr(base.current_patcher, "current_hooks", None)
        strengths = None if hooks is None else tuple((id(hook), round(hook.strength, 6)) for hook in hooks.hooks)
        branch, mode = self.branches[index], self.cache_mode(wan, device)

        def build():
            latent = branch.reference_latent.to(device=device, dtype=wan.dtype)
            blocks = branch.blocks(len(wan.blocks))
            return itertools.islice(identity_layers(wan, latent, branch.adapter, branch.kept_tokens), blocks.start,
                                    blocks.stop)

        def synchronize():
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return self.caches[index].layers((device, wan.dtype, id(wan.model)), strengths,
                                         lambda: hold(mode, build, device, wan.heads), synchronize)

    def region(self, index: int, grid: tuple[int, int, int], device: torch.device,
               window=None) -> torch.Tensor | None:
        """The weights of one identity's region, pooled once.

        window: as in ``check_place``.
        """
        region = self.branches[index].region
        if region is None:
            return None
        self.check_place(grid, window, "a region")
        key = index, device
        with self.lock:
            if key not in self.regions:
                self.regions[key] = region_weights(region, self.whole).to(device)
            weights = self.regions[key]
        if window is None:
            return weights
        # the window knows which frames it has, the one before its first among them (causal_window_fix)
        return window.get_tensor(weights.unflatten(0, (self.whole[0], -1)), dim=0).flatten()

    def check_place(self, grid: tuple[int, int, int], window, what: str) -> None:
        """Raises StandInError where it is not known which part of the picture a model call sees.

        window: ComfyUI's IndexListContextWindow where it sees some of the frames, else None.
        """
        if window is not None and window.dim != TIME:
            raise StandInError(f"{what} cannot follow context windows along height or width: set their dim to {TIME}, "
                               f"or take out {what}.")
        seen = grid if window is None else (window.total_frames, *grid[1:])
        if seen != self.whole:
            raise StandInError("the model sees a part of the picture, as it does for a prompt with an area, and "
                               f"{what} would not lie where it should: take out the area, or {what}.")

    def note_bytes(self) -> None:
        with self.lock:
            held = sum(cache.device_bytes for cache in self.caches)
            self.report.cache_bytes = max(self.report.cache_bytes, held)

    def close(self, finished: bool, sink: ReportSink | None) -> None:
        """Let the identity K/V go; hand the report over if the run came to its end."""
        report = self.report
        if report.cache != "streaming":
            report.builds = sum(cache.builds for cache in self.caches)
        report.build_ms = sum(cache.build_ms for cache in self.caches)
        for cache in self.caches:
            cache.clear()
        self.regions.clear()
        if not finished:
            return
        if self.started is not None and report.steps:
            elapsed_ms = (time.perf_counter() - self.started) * 1000
            report.ms_per_step = (elapsed_ms - report.build_ms) / report.steps
        if sink is None:
            log.info("Stand-In: %s", as_text(report))
            return
        sink.reports.append(report)
        recorded = None if self.recorder is None else self.recorder.map()
        if recorded is not None:
            sink.maps.append(recorded)


def _identity_report(branch: IdentityBranch, wan: Wan) -> ToldIdentity:
    references, _, _, height, width = branch.reference_latent.shape
    blocks = branch.blocks(len(wan.blocks))
    return ToldIdentity(
        adapter_file=branch.adapter.name, adapter_sha256=branch.adapter.sha256, adapter_rank=branch.adapter.rank,
        reference_size=(height, width), references=references,
        tokens=_tokens(branch, wan), strength=branch.strength,
        start_percent=branch.start_percent, end_percent=branch.end_percent, time_offset=branch.time_offset,
        blocks=(blocks[0], blocks[-1]), controls=", ".join(branch.controls))


class _Wrappers:
    """The wrappers that need the branches. No ``.to``: ComfyUI would call it on them."""

    def __init__(self, branches: tuple[IdentityBranch, ...]):
        self.branches = branches

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        options = guider.model_options.setdefault("transformer_options", {})
        _check_guider(self.branches[0], guider)
        maps_attention = _maps_attention(options)
        if maps_attention:
            _check_map(self.branches[0])
        whole = Wan(guider.model_patcher.model).grid(noise.shape)
        run = options[KEY] = Run(self.branches, len(sigmas) - 1, _hook_groups(guider.conds), whole, maps_attention)
        finished = False
        try:
            output = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            finished = True
            return output
        finally:
            options.pop(KEY, None)
            run.close(finished, ReportSink.of(options))

    def sampler_sample(self, executor, guider, *args, **kwargs):
        """Where a prompt has an area, ComfyUI gives the other prompts a condition with that area, made from a copy of
        the first, uuid and all. It gets one of its own, so that the positive ones can be told.
        """
        run: Run | None = guider.model_options.get("transformer_options", {}).get(KEY)
        if run is not None:
            positive = frozenset(cond["uuid"] for cond in guider.conds.get("positive", ()))
            for name, conds in guider.conds.items():
                for cond in conds if name != "positive" else ():
                    if cond["uuid"] in positive:
                        cond["uuid"] = uuid.uuid4()
            run.positive = positive
        return executor(guider, *args, **kwargs)

    def prepare_sampling(self, executor, model, noise_shape, conds, *args, model_options=None, **kwargs):
        options = (model_options or {}).get("transformer_options", {})
        extra = extra_bytes(model, self.branches, noise_shape, _hook_groups(conds), options)
        comfy.model_management.EXTRA_RESERVED_VRAM += extra
        try:
            return executor(model, noise_shape, conds, *args, model_options=model_options, **kwargs)
        finally:
            comfy.model_management.EXTRA_RESERVED_VRAM -= extra


def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """The APPLY_MODEL wrapper: this one call of the model reads the identities whose time it is.

    x: [B, 16, T, h, w], model space; t: [B] sigmas.
    """
    options = {} if transformer_options is None else transformer_options
    arguments = (x, t, c_concat, c_crossattn, control, options)
    run: Run | None = options.get(KEY)
    if run is None:
        return executor(*arguments, **kwargs)
    base = executor.class_obj
    wan = Wan(base)
    grid = wan.grid(x.shape)
    run.model_called(base, wan, grid)
    readings = [] if options.get(WITHOUT) else _readings(run, base, wan, grid, x, t, options)
    if not readings:
        return executor(*arguments, **kwargs)
    attend = restricted_attention(run.attention(wan, x.device, options))
    note_mass = None
    if run.recorder is not None:
        run.check_place(grid, options.get(WINDOW), "an attention map")
        note_mass = run.recorder.for_call(grid, options.get(WINDOW))
    with wan.identity_installed(readings, attend, note_mass) as reads:
        output = executor(*arguments, **kwargs)
        run.identity_read(reads())
    run.note_bytes()
    return output


def _readings(run: Run, base, wan: Wan, grid: tuple[int, int, int], x: torch.Tensor, t: torch.Tensor,
              options: dict) -> list[Reading]:
    readings = []
    for index, branch in enumerate(run.branches):
        strength = strength_at(branch, base.model_sampling.percent_to_sigma, t)
        reads = _reads(branch, run.positive, options, len(x))
        if strength == 0 or (reads is not None and not bool(reads.any())):
            continue
        identity_grid = wan.grid(branch.reference_latent.shape)
        positions = identity_positions(grid[1:], identity_grid[1:], branch.time_offset, options.get("rope_options"),
                                       x.device)
        if branch.kept_tokens is not None:
            positions = positions[:, branch.kept_tokens.to(x.device)]
        region = run.region(index, grid, x.device, options.get(WINDOW))
        readings.append(Reading(index, run.layers(index, base, wan, x.device), wan.rotation(positions),
                                query_bias(strength, len(branch.reference_latent) if branch.normalize_references else 1,
                                           region, reads, x.device), branch.blocks(len(wan.blocks))))
    return readings


def _check_guider(branch: IdentityBranch, guider) -> None:
    """Raises StandInError where the passes are not those of plain classifier-free guidance."""
    if branch.guidance == "both passes":
        return
    if type(guider).predict_noise is not comfy.samplers.CFGGuider.predict_noise:
        raise StandInError(f"guidance is set to {branch.guidance}, and {type(guider).__name__} makes passes of its "
                           "own: sample with KSampler, CFGGuider or StandInSampler, or set guidance to both passes.")
    if branch.guidance == "own scale" and guider.cfg == 0:
        raise StandInError("guidance is set to own scale, which needs a cfg above 0: cfg 1 is the prompt without "
                           "guidance.")


def _reads(branch: IdentityBranch, positive: frozenset[uuid.UUID], options: dict, batch: int) -> torch.Tensor | None:
    """[B] bool, which of the batch read the identity, or None for all. ComfyUI puts several conditions in one batch."""
    if branch.guidance == "both passes":
        return None
    passes = torch.tensor([each in positive for each in options["uuids"]])
    return passes.repeat_interleave(batch // len(passes))


def guide_identity(args: dict) -> list[torch.Tensor]:
    """ComfyUI's sampler_pre_cfg_function of guidance "own scale".

    With D_0 of the negative prompt, D_p of the positive and D_i of the positive with the identity, the guided result is
    ``D_0 + cfg (D_p - D_0) + s (D_i - D_p)``: the prompt and the identity have scales of their own, as in guidance with
    two conditions (InstructPix2Pix, arXiv 2211.09800, section 3.2.1). D_p is one more pass. ComfyUI goes on with
    ``D_0 + cfg (D - D_0)``, to which ``D = D_p + s / cfg (D_i - D_p)`` is handed.
    """
    run: Run | None = args["model_options"]["transformer_options"].get(KEY)
    # where this step's pass did not read the identity, there is nothing to scale
    if run is None or run.report.identity_calls == run.guided_calls:
        return args["conds_out"]
    run.guided_calls = run.report.identity_calls
    with_identity, *others = args["conds_out"]
    options = args["model_options"].copy()
    options["transformer_options"] = {**options["transformer_options"], WITHOUT: True}
    # under another name, since EasyCache remembers by it what a condition gave
    plain = [{**cond, "uuid": run.plain_uuids.setdefault(cond["uuid"], uuid.uuid4())} for cond in args["conds"][0]]
    (positive,) = comfy.samplers.calc_cond_batch(args["model"], [plain], args["input"], args["timestep"], options)
    scale = run.branches[0].guidance_scale / args["cond_scale"]
    return [positive + scale * (with_identity - positive), *others]


def extra_bytes(model, branches: tuple[IdentityBranch, ...], noise_shape: tuple[int, ...], hook_groups: int,
                options: dict) -> int:
    """What a run needs on one device beside the plain model: the identity K/V, and what the attention path holds.

    Twice the batch, as ComfyUI's own estimate has it: positive and negative go through the model together.
    """
    branches = tuple(branch for branch in branches if branch.strength > 0)
    if not branches:
        return 0
    wan = Wan(model.model)
    specs = [_spec(branch, wan, hook_groups) for branch in branches]
    choice = _choose(branches, wan, model.load_device, options)
    held = sum(spec.device_bytes(branch.cache) for spec, branch in zip(specs, branches))
    return held + choice.peak_bytes(2 * noise_shape[0], math.prod(wan.grid(noise_shape)),
                                    sum(spec.tokens for spec in specs), wan.heads, wan.dim // wan.heads,
                                    wan.dtype.itemsize)


def _spec(branch: IdentityBranch, wan: Wan, hook_groups: int) -> IdentityCacheSpec:
    blocks = len(branch.blocks(len(wan.blocks)))
    return IdentityCacheSpec(blocks, _tokens(branch, wan), wan.dim, wan.heads, wan.dtype, hook_groups)


def _tokens(branch: IdentityBranch, wan: Wan) -> int:
    """Of all references together."""
    each = math.prod(wan.grid(branch.reference_latent.shape)) if branch.kept_tokens is None else len(branch.kept_tokens)
    return len(branch.reference_latent) * each


def _cache_mode(branches: tuple[IdentityBranch, ...], wan: Wan, device: torch.device, hook_groups: int) -> str:
    """What is set, or what fits: resident while half of the free memory holds it, which leaves room to sample."""
    requested = branches[0].cache
    if requested == "fp8" and device.type == "mps":
        raise StandInError("cache is set to fp8, which this device (MPS) does not know: set it to auto or offloaded.")
    if requested != "auto":
        return requested
    needed = sum(_spec(branch, wan, hook_groups).device_bytes("resident") for branch in branches)
    if device.type == "cpu" or 2 * needed <= comfy.model_management.get_free_memory(device):
        return "resident"
    return "offloaded"


def _hook_groups(conds: dict) -> int:
    """Distinct LoRA-hook groups among the conditions; each has weights, and so identity K/V, of its own."""
    return max(1, comfy.samplers.get_total_hook_groups_in_conds(conds))


def _check_map(branch: IdentityBranch) -> None:
    """Raises StandInError where the attention gives no log-sum-exp to make a map of."""
    if branch.attention == "concatenate":
        raise StandInError("an attention map needs log-sum-exps, and attention is set to concatenate: set it to auto "
                           "or merge in Apply Identity Branch, or switch attention_map off.")


def _maps_attention(options: dict) -> bool:
    sink = ReportSink.of(options)
    return sink is not None and sink.maps_attention


def _choose(branches: tuple[IdentityBranch, ...], wan: Wan, device: torch.device, options: dict) -> AttentionChoice:
    weighting = next((branch.weighting for branch in branches if branch.weighting is not None),
                     "the attention map" if _maps_attention(options) else None)
    return choose_attention(branches[0].attention, weighting, _attention_in_use(options), device, wan.dtype,
                            wan.dim // wan.heads)


def _attention_in_use(options: dict) -> AttentionInUse:
    """By the order of choice in comfy/ldm/modules/attention.py."""
    manager = comfy.model_management
    if OVERRIDE in options:
        return AttentionInUse("another node overrides ComfyUI's attention")
    if manager.sage_attention_enabled():
        return AttentionInUse("ComfyUI runs SageAttention", SAGE)
    if manager.flash_attention_enabled():
        return AttentionInUse("ComfyUI runs FlashAttention", FLASH_ATTN)
    if manager.pytorch_attention_enabled() and not manager.xformers_enabled():
        return PYTORCH
    return AttentionInUse("ComfyUI runs an attention other than PyTorch's")
