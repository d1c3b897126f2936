"""Sampling by flow matching, and with every sampler and scheduler of ComfyUI, for one expert or Wan 2.2's two.

Euler flow matching: ``x += v (sigma_next - sigma)`` over ``sigma = shift s / (1 + (shift - 1) s)`` with s evenly
spaced from denoise to 0, ``v = v_uncond + cfg (v_cond - v_uncond)`` (WeChatCV/Stand-In, ``schedulers/flow_match.py``).
"""
from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from .checks import check_choice, check_finite, check_number, checked_latent, extent
from .errors import UserError
from .report import ReportSink
from .wan import Wan

FLOW_MATCHING = "flow_matching"
LEAST_SHIFT = LEAST_DENOISE = 0.01


def scheduler_names() -> list[str]:
    """Flow matching first, then ComfyUI's."""
    return [FLOW_MATCHING, *comfy.samplers.KSampler.SCHEDULERS]


def sampler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SAMPLERS)


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """How to sample; what is not listed here is as in ComfyUI's KSampler.

    shift: of the noise levels.
    boundary: the sigma at which the low-noise expert takes over, 0 to 1.
    attention_map: whether to record where the identity is read.

    Raises UserError for values that cannot be sampled with.
    """

    seed: int
    steps: int = 20
    cfg: float = 5.0
    sampler_name: str = "euler"
    scheduler: str = FLOW_MATCHING
    shift: float = 5.0
    denoise: float = 1.0
    boundary: float = 0.875
    attention_map: bool = False

    def __post_init__(self):
        check_number(self.seed, "seed", 0, 2**64 - 1, whole=True)
        check_number(self.steps, "steps", 1, whole=True, hint="raise steps")
        check_number(self.cfg, "cfg")
        check_choice(self.sampler_name, "sampler_name", sampler_names())
        check_choice(self.scheduler, "scheduler", scheduler_names())
        check_number(self.shift, "shift", LEAST_SHIFT, hint="raise shift, 5 is usual")
        check_number(self.denoise, "denoise", LEAST_DENOISE, 1, hint="to keep the latent as it is, leave sampling out")
        check_number(self.boundary, "boundary", 0, 1)


def flow_matching_sigmas(steps: int, shift: float, denoise: float) -> torch.Tensor:
    """[steps + 1] float32 from shift * denoise / (1 + (shift - 1) * denoise) down to 0."""
    s = torch.linspace(denoise, 0.0, steps + 1, dtype=torch.float64)
    return comfy.model_sampling.time_snr_shift(shift, s).float()


def unshifted(shift: float, sigma: float) -> float:
    """The inverse of ComfyUI's ``time_snr_shift``: which level a shift makes sigma of."""
    return sigma / (shift - (shift - 1) * sigma)


def switch_step(sigmas: torch.Tensor, boundary: float) -> int:
    """The first step of the low-noise expert; the high-noise one takes every step that begins at sigma >= boundary."""
    return int((sigmas[:-1] >= boundary).sum())


def sample(model, low_noise_model, positive, negative, latent: dict,
           settings: SamplerSettings) -> tuple[dict, ReportSink]:
    """Denoise a ComfyUI LATENT ([B, 16, T, h, w], VAE space); low_noise_model may be None.

    The two experts share one schedule, one noise and one clean latent, so a ``noise_mask`` keeps its region through
    the switch; samplers with a history begin it anew there. Returns the LATENT, and the report and attention map of
    each run that had an identity branch. Raises UserError before any work, and for a result that is not finite.
    """
    experts = _experts(model, low_noise_model)
    for expert in experts:
        Wan(expert.model)
    _check(latent)
    samples = _fixed_channels(model, latent)
    for expert in experts:
        _check_latent(expert, samples)
    noise = comfy.sample.prepare_noise(samples, settings.seed, latent.get("batch_index"))
    mask = latent.get("noise_mask")
    output, sink = denoise(model, low_noise_model, positive, negative, samples, noise,
                           None if mask is None else mask.float(), settings)  # interpolation takes no whole numbers
    result = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio")}
    result["samples"] = output
    if not all(map(math.isfinite, extent(output))):
        raise UserError(f"the values of the sampled latent must be finite, but some are NaN or infinite: the model "
                        f"has such weights, or {settings.sampler_name} and {settings.scheduler} cannot sample at shift "
                        f"{settings.shift:g} and denoise {settings.denoise:g}; try euler and flow_matching.")
    return result, sink


def denoise(model, low_noise_model, positive, negative, samples: torch.Tensor, noise: torch.Tensor,
            noise_mask: torch.Tensor | None, settings: SamplerSettings) -> tuple[torch.Tensor, ReportSink]:
    """As ``sample``, from given noise; the result is of the shape of samples.

    samples, noise: [B, 16, T, h, w], VAE space.
    """
    experts = [_with_shift(expert, settings.shift) for expert in _experts(model, low_noise_model)]
    sigmas = _sigmas(experts[0], settings)
    steps = len(sigmas) - 1
    switch = switch_step(sigmas, settings.boundary) if len(experts) == 2 else steps
    preview = latent_preview.prepare_callback(experts[0], steps)
    sink = ReportSink(settings.attention_map)
    unfinished = None
    for expert, (first, last) in zip(experts, ((0, switch), (switch, steps))):
        if first == last:
            continue
        sink.listen(expert)
        expert_sampler = _ExpertSampler(settings.sampler_name, sigmas, unfinished)
        output = comfy.sample.sample_custom(
            expert, noise, settings.cfg, expert_sampler.ksampler, sigmas[first:last + 1], positive, negative, samples,
            noise_mask=noise_mask, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            callback=lambda step, x0, x, _, first=first: preview(first + step, x0, x, steps),
            # the expert that begins at step k must not draw the noise of step 0 again
            seed=(settings.seed + first) % 2**64)
        unfinished = expert_sampler.unfinished
    return output, sink


class _ExpertSampler:
    """One expert's part of the schedule, as a KSAMPLER that may start from where the other expert stopped.

    ComfyUI would scale noise and latent to a new start, which a masked latent does not survive: the kept region is
    blended from the noise and the clean latent at every step, so the second expert needs exactly those of the first,
    and only x itself from where it was left (measured: error of the kept region 18x without this, 8e-8 with it).
    """

    def __init__(self, sampler_name: str, sigmas: torch.Tensor, start: torch.Tensor | None):
        core = comfy.samplers.sampler_object(sampler_name)

        @functools.wraps(core.sampler_function)
        def from_start(model, x, own_sigmas, **kwargs):
            model.sigmas = sigmas  # differential diffusion relates its thresholds to the whole schedule
            self.unfinished = core.sampler_function(model, x if start is None else start, own_sigmas, **kwargs)
            return self.unfinished

        self.unfinished = None
        self.ksampler = comfy.samplers.KSAMPLER(from_start, core.extra_options, core.inpaint_options)


def _experts(model, low_noise_model) -> list:
    return [model] if low_noise_model is None else [model, low_noise_model]


def _check(latent: dict) -> None:
    samples, mask, numbers = (checked_latent(latent, "latent_image"), latent.get("noise_mask"),
                              latent.get("batch_index"))
    if mask is not None:
        if not isinstance(mask, torch.Tensor) or mask.ndim < 2 or 0 in mask.shape:
            raise UserError("the noise mask of latent_image is empty or no mask: connect one to Set Latent Noise Mask.")
        check_finite(mask, "the noise mask of latent_image")
    if numbers is not None and len(numbers) != len(samples):
        raise UserError(f"latent_image has {len(samples)} videos and numbers for {len(numbers)} (batch_index): take "
                        "them from one batch.")


def _check_latent(model, samples: torch.Tensor) -> None:
    channels = model.get_model_object("latent_format").latent_channels
    if samples.ndim != 5 or samples.shape[1] != channels:
        raise UserError(f"the latent must have the shape [B, {channels}, T, h, w] for this model, but has shape "
                        f"{list(samples.shape)}: make it with EmptyHunyuanLatentVideo, or encode a video with the VAE "
                        "of this model.")


class _FlowMatching(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    pass


def _with_shift(model, shift: float):
    """A clone with the flow-matching schedule of this shift, as core's ModelSamplingSD3 sets it."""
    sampling = _FlowMatching(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    patched = model.clone()
    patched.add_object_patch("model_sampling", sampling)
    return patched


def _sigmas(model, settings: SamplerSettings) -> torch.Tensor:
    if settings.scheduler == FLOW_MATCHING:
        return flow_matching_sigmas(settings.steps, settings.shift, settings.denoise)
    core = comfy.samplers.KSampler(model, settings.steps, torch.device("cpu"), settings.sampler_name,
                                   settings.scheduler, settings.denoise, model.model_options)
    return core.sigmas


def _fixed_channels(model, latent: dict) -> torch.Tensor:
    # only ComfyUI versions that take the ratios write them
    ratios = {key: latent[key] for key in ("downscale_ratio_spacial", "downscale_ratio_temporal") if key in latent}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios)
