"""SD1.5 with the golden data's small weights, in ComfyUI's own loaders and samplers, and ID-Animator on it."""
import functools
import json
from pathlib import Path

import comfy.clip_vision
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch

from golden_cases import Case, load_case
from standin_core.id_animator.adapter import load_adapter
from standin_core.id_animator.apply import apply_face_tokens, apply_photos
from standin_core.report import ReportSink

# The bars of the golden data: ComfyUI without an adapter reproduces the authors' model to 3e-6 (max abs, outputs of
# order 1), and a sampling loop adds up the differences of its steps.
ONE_CALL = 1e-4
WHOLE_LOOP = 1e-3

STILL, MOTION = "id_animator_small", "id_animator_motion_small"


def in_fp32(path: Path) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in safetensors.torch.load_file(path).items()}


class AuthorsSchedule(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """Betas linear from 0.00085 to 0.012, which ComfyUI calls sqrt_linear."""

    def __init__(self):
        super().__init__()
        self._register_schedule(beta_schedule="sqrt_linear", linear_start=0.00085, linear_end=0.012)


def load(weights: dict[str, torch.Tensor], width: int, context: int, dtype=torch.float32):
    """By ComfyUI's loader, which tells SD1.5 by two widths; with the authors' schedule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(comfy.supported_models.SD15.unet_config, "model_channels", width)
        patch.setitem(comfy.supported_models.SD15.unet_config, "context_dim", context)
        model = comfy.sd.load_diffusion_model_state_dict(dict(weights), model_options={"dtype": dtype})
    model.add_object_patch("model_sampling", AuthorsSchedule())
    return model


def unet(case: Case, dtype=torch.float32, changed: dict[str, torch.Tensor] | None = None):
    """changed: weights in place of the golden data's."""
    weights = in_fp32(case.folder / "base.safetensors") | (changed or {})
    return load(weights, case.settings["block_out_channels"][0], case.settings["cross_attention_dim"], dtype)


@functools.cache
def clip_vision():
    """The golden data's small encoder, in ComfyUI's class for a ViT-H."""
    case = load_case(STILL)
    vit_h = json.loads((Path(comfy.clip_vision.__file__).parent / "clip_vision_config_h.json").read_text())
    encoder = comfy.clip_vision.ClipVisionModel(vit_h | case.settings["clip_vision"])
    missing, unexpected = encoder.load_sd(in_fp32(case.folder / "clip_vision.safetensors"))
    assert not missing and not unexpected
    return encoder


@functools.cache
def face(*names: str) -> torch.Tensor:
    """The golden data's aligned faces at the size that CLIP takes, as a batch, [R, 224, 224, 3]."""
    crops = load_case(STILL).io
    enlarged = [np.asarray(PIL.Image.fromarray(crops[f"face_crop.{name}"].numpy()).resize((224, 224)))
                for name in names]
    return torch.from_numpy(np.stack(enlarged)).float() / 255


def with_face(model, case: Case, *names: str, **settings):
    """The identity of one or several of the faces "a" and "b"."""
    return apply_photos(model, load_adapter(case.folder / "animator.safetensors"), clip_vision(),
                        face(*(names or "a")), **settings)


def with_tokens(model, case: Case, name: str, **settings):
    """For the case that has face tokens and no encoder.

    name: "a", "b" or their "mean".
    """
    tokens = torch.cat([case.io[f"face_tokens.{each}"] for each in (name, "zero")])
    return apply_face_tokens(model, load_adapter(case.folder / "animator.safetensors"), tokens, **settings)


def predictions(model, case: Case, cfg: float = 2.0, latent: torch.Tensor | None = None, timesteps=None,
                area: dict | None = None) -> list[list[torch.Tensor]]:
    """For each timestep what the model predicts of the noise in the golden latent, [F, 4, h, w], by ComfyUI's
    CFGGuider: for the positive context, and with a cfg above 1 for the negative one.
    """
    latent = case.io["latent"] if latent is None else latent
    timesteps = case.io["timesteps"] if timesteps is None else timesteps
    found = []

    def note(args):
        found.append([(args["input"] - each) / args["sigma"][0]
                      for each in (args["conds_out"][:1] if cfg == 1 else args["conds_out"])])
        return args["conds_out"]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(note)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(case.conditioning("positive"), case.conditioning("negative"))
    guider.set_cfg(cfg)
    probe(guider, latent, timesteps)
    return found


def probe(guider, latent: torch.Tensor, timesteps) -> list[torch.Tensor]:
    """What the guider makes of the noised latent at each timestep, [F, 4, h, w], through all of a run."""
    all_sigmas = guider.model_patcher.get_model_object("model_sampling").sigmas
    found = []

    def run(model_k, x, sigmas, extra_args, callback, disable):
        for sigma in sigmas[:-1]:
            noised = latent * (1 + sigma**2).sqrt()
            found.append((noised - model_k(noised, sigma.expand(len(latent)), **extra_args)) / sigma)
        return x

    sigmas = torch.stack([*(all_sigmas[int(each)] for each in timesteps), torch.tensor(0.0)])
    empty = torch.zeros_like(latent)
    guider.sample(empty, empty, comfy.samplers.KSAMPLER(run), sigmas, seed=0)
    return found


def whole_loop(model, case: Case, steps: int | None = None):
    """The authors' loop in ComfyUI's words -> (sampled, model space; reports of the run).

    steps: None for as many as the authors take.
    """
    model, sink = model.clone(), ReportSink()
    sink.listen(model)
    empty, first = torch.zeros_like(case.io["start"]), case.io["sigmas"][0]
    noise = case.io["start"] * (1 + first**2).sqrt() / first  # ComfyUI multiplies by the first sigma
    sampled = comfy.sample.sample(
        model, noise, steps or case.settings["steps"], case.settings["cfg"], "ddim", "ddim_uniform",
        case.conditioning("positive"), case.conditioning("negative"), empty, disable_pbar=True, seed=0)
    return model.model.process_latent_in(sampled), sink.reports


def largest_difference(a, b):
    assert a.shape == b.shape
    return float((a - b).abs().max())


def check(found, case, scale=None, kinds=("cond", "uncond")):
    """That predictions are the authors'.

    found: of ``predictions``.
    scale: of the golden tensors, None for those without an adapter.
    """
    compared = 0
    for k, of_step in enumerate(found):
        for kind, prediction in zip(kinds, of_step):
            name = f"base.{k}" if scale is None else f"{kind}.{scale}.{k}"
            if name in case.io:
                assert largest_difference(prediction, case.io[name]) < ONE_CALL, name
                compared += 1
    assert compared >= len(kinds)
