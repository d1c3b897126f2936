"""One run: from the sampler's first call to its last, or to the exception that ends it.

Three wrappers on the ModelPatcher, under one key, are all that a patched model carries. OUTER_SAMPLE opens the run and
frees everything in ``finally``; PREPARE_SAMPLING tells ComfyUI's memory manager the bytes that will be needed;
APPLY_MODEL builds the identity K/V on first use and installs the restricted attention for that one call.
"""
from __future__ import annotations

import logging
import math
import threading
import time

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from .attention import AttentionChoice, choose_attention, restricted_attention
from .contracts import Adapter, IdentityBranch, RunReport, StandInError
from .identity import identity_layers
from .kv_cache import IdentityCache, IdentityCacheSpec
from .reference import reference_from
from .report import ReportSink, as_text
from .rope import identity_positions
from .wan import OVERRIDE, Wan
from .weights import check_fit

log = logging.getLogger(__name__)

KEY = "stand_in"
SINK = "stand_in_report_sink"


def apply_reference(model, adapter: Adapter, vae, image: torch.Tensor | None, latent: dict | None, **controls):
    """As ``apply_identity_branch``, from a reference image [1, H, W, 3] and Wan's VAE or from a ComfyUI LATENT.

    A model that the adapter does not fit is refused before the VAE works.
    """
    _check_fit(model, adapter)
    return apply_identity_branch(model, adapter, reference_from(vae, image, latent), **controls)


def apply_identity_branch(model, adapter: Adapter, reference_latent: torch.Tensor, **controls):
    """A clone of the ModelPatcher whose runs read this identity; applied again, the new branch replaces the old.

    reference_latent: [1, 16, 1, h, w], VAE space. controls: as in IdentityBranch. Raises StandInError for a model that
    is not Wan, or that the adapter or the reference does not fit, before any work.
    """
    _check_fit(model, adapter)
    needed, came = model.model.latent_format.latent_channels, reference_latent.shape[1]
    if came != needed:
        raise StandInError(f"the reference latent has {came} channels, this model's latents have {needed}: encode the "
                           "reference with the VAE of this model.")
    branch = IdentityBranch(adapter, model.model.process_latent_in(reference_latent), **controls)
    patched = model.clone()
    wrappers = _Wrappers(branch)
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, wrappers.outer_sample),
                          (WrappersMP.PREPARE_SAMPLING, wrappers.prepare_sampling),
                          (WrappersMP.APPLY_MODEL, apply_model)):
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def _check_fit(model, adapter: Adapter) -> None:
    wan = Wan(model.model)
    check_fit(adapter, len(wan.blocks), wan.dim)


def remove_identity_branch(model):
    """A clone of the ModelPatcher without the identity branch."""
    plain = model.clone()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING, WrappersMP.APPLY_MODEL):
        plain.remove_wrappers_with_key(kind, KEY)
    return plain


class Run:
    """The state of one run; lives in ``transformer_options`` as an opaque object and dies with the run.

    Several devices may call the model at a time (ComfyUI's multi-GPU), hence the lock.
    """

    def __init__(self, branch: IdentityBranch, steps: int, hook_groups: int):
        self.branch = branch
        self.cache = IdentityCache(entries=hook_groups)
        self.choices: dict[torch.device, AttentionChoice] = {}
        self.started: float | None = None
        self.lock = threading.Lock()
        *_, height, width = branch.reference_latent.shape
        self.report = RunReport(
            adapter_file=branch.adapter.name, adapter_sha256=branch.adapter.sha256, adapter_rank=branch.adapter.rank,
            reference_size=(height, width), identity_tokens=0, strength=branch.strength,
            start_percent=branch.start_percent, end_percent=branch.end_percent, time_offset=branch.time_offset,
            steps=steps)

    def __deepcopy__(self, memo):
        return self

    def model_called(self, base, grid: tuple[int, int, int]) -> None:
        with self.lock:
            if self.started is None:
                self.started = time.perf_counter()
                self.report.model = type(base).__name__
                self.report.video_grid = grid
            self.report.model_calls += 1

    def identity_read(self, blocks: int) -> None:
        with self.lock:
            self.report.identity_calls += 1
            self.report.reads += blocks

    def attention(self, wan: Wan, device: torch.device, options: dict) -> AttentionChoice:
        """Chosen once for each device."""
        with self.lock:
            if device not in self.choices:
                self.choices[device] = _choose(self.branch, wan, device, options)
                chosen = self.choices.values()
                self.report.attention = "; ".join(dict.fromkeys(map(str, chosen)))
                self.report.refusals = list(dict.fromkeys(refusal for choice in chosen for refusal in choice.refusals))
            return self.choices[device]

    def layers(self, base, wan: Wan, device: torch.device) -> list:
        """K (before rotation) and V of every block, from the cache or built now."""
        hooks = getattr(base.current_patcher, "current_hooks", None)
        strengths = None if hooks is None else tuple((id(hook), round(hook.strength, 6)) for hook in hooks.hooks)

        def build():
            latent = self.branch.reference_latent.to(device=device, dtype=wan.dtype)
            return identity_layers(wan, latent, self.branch.adapter)

        def synchronize():
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        layers = self.cache.layers((device, wan.dtype, id(wan.model)), strengths, build, synchronize)
        with self.lock:
            self.report.cache_bytes = max(self.report.cache_bytes, self.cache.size_bytes)
        return layers

    def close(self, finished: bool, sink: ReportSink | None) -> None:
        """Let the identity K/V go; hand the report over if the run came to its end."""
        report = self.report
        report.builds, report.build_ms = self.cache.builds, self.cache.build_ms
        self.cache.clear()
        if not finished:
            return
        if self.started is not None and report.steps:
            elapsed_ms = (time.perf_counter() - self.started) * 1000
            report.ms_per_step = (elapsed_ms - report.build_ms) / report.steps
        if sink is None:
            log.info("Stand-In: %s", as_text(report))
        else:
            sink.reports.append(report)


class _Wrappers:
    """The wrappers that need the branch. No ``.to``: ComfyUI would call it on them."""

    def __init__(self, branch: IdentityBranch):
        self.branch = branch

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        options = guider.model_options.setdefault("transformer_options", {})
        run = options[KEY] = Run(self.branch, steps=len(sigmas) - 1, hook_groups=_hook_groups(guider.conds))
        finished = False
        try:
            output = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            finished = True
            return output
        finally:
            options.pop(KEY, None)
            run.close(finished, options.get(SINK))

    def prepare_sampling(self, executor, model, noise_shape, conds, *args, model_options=None, **kwargs):
        options = (model_options or {}).get("transformer_options", {})
        extra = extra_bytes(model, self.branch, noise_shape, _hook_groups(conds), options)
        comfy.model_management.EXTRA_RESERVED_VRAM += extra
        try:
            return executor(model, noise_shape, conds, *args, model_options=model_options, **kwargs)
        finally:
            comfy.model_management.EXTRA_RESERVED_VRAM -= extra


def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """The APPLY_MODEL wrapper: this one call of the model reads the identity, if the run has one and it is time.

    x: [B, 16, T, h, w], model space; t: [B] sigmas.
    """
    options = {} if transformer_options is None else transformer_options
    arguments = (x, t, c_concat, c_crossattn, control, options)
    run: Run | None = options.get(KEY)
    if run is None:
        return executor(*arguments, **kwargs)
    base, branch = executor.class_obj, run.branch
    wan = Wan(base)
    grid, identity_grid = wan.grid(x.shape), wan.grid(branch.reference_latent.shape)
    run.model_called(base, grid)
    if branch.strength == 0 or not _is_time(base.model_sampling, branch, t):
        return executor(*arguments, **kwargs)
    run.report.identity_tokens = math.prod(identity_grid)
    attend = restricted_attention(run.attention(wan, x.device, options), math.log(branch.strength))
    rotation = wan.rotation(identity_positions(grid[1:], identity_grid[1:], branch.time_offset,
                                               options.get("rope_options"), x.device))
    with wan.identity_installed(run.layers(base, wan, x.device), rotation, attend) as reads:
        output = executor(*arguments, **kwargs)
        run.identity_read(reads())
    return output


def extra_bytes(model, branch: IdentityBranch, noise_shape: tuple[int, ...], hook_groups: int, options: dict) -> int:
    """What a run needs on one device beside the plain model: the identity K/V, and what the attention path holds.

    Twice the batch, as ComfyUI's own estimate has it: positive and negative go through the model together.
    """
    if branch.strength == 0:
        return 0
    wan = Wan(model.model)
    identity_tokens = math.prod(wan.grid(branch.reference_latent.shape))
    spec = IdentityCacheSpec(len(wan.blocks), identity_tokens, wan.dim, wan.dtype, hook_groups)
    choice = _choose(branch, wan, model.load_device, options)
    return spec.size_bytes + choice.peak_bytes(2 * noise_shape[0], math.prod(wan.grid(noise_shape)), identity_tokens,
                                               wan.heads, wan.dim // wan.heads, wan.dtype.itemsize)


def _hook_groups(conds: dict) -> int:
    """Distinct LoRA-hook groups among the conditions; each has weights, and so identity K/V, of its own."""
    return max(1, comfy.samplers.get_total_hook_groups_in_conds(conds))


def _choose(branch: IdentityBranch, wan: Wan, device: torch.device, options: dict) -> AttentionChoice:
    foreign = None
    if OVERRIDE in options:
        foreign = "another node overrides ComfyUI's attention"
    elif not _pytorch_attention():
        foreign = "ComfyUI runs an attention other than PyTorch's"
    return choose_attention(branch.attention, branch.strength, foreign, device, wan.dtype, wan.dim // wan.heads)


def _pytorch_attention() -> bool:
    """Whether ComfyUI's attention is PyTorch's, by the order of choice in comfy/ldm/modules/attention.py."""
    manager = comfy.model_management
    faster = manager.sage_attention_enabled() or manager.flash_attention_enabled() or manager.xformers_enabled()
    return manager.pytorch_attention_enabled() and not faster


def _is_time(model_sampling, branch: IdentityBranch, t: torch.Tensor) -> bool:
    if branch.start_percent <= 0 and branch.end_percent >= 1:
        return True  # without asking the device for t
    first, end = (model_sampling.percent_to_sigma(percent) for percent in (branch.start_percent, branch.end_percent))
    # a step that begins exactly at a percentage meets it only up to the rounding of fp32 sigmas
    sigma = float(t.max()) * (1 - 1e-6)
    return end < sigma <= first
