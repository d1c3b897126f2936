"""SD1.5 with the golden data's small weights, in ComfyUI's own loaders and samplers, and ID-Animator on it."""
import functools
import json
from pathlib import Path
from unittest import mock

import comfy.clip_vision
import comfy.model_sampling
import comfy.samplers
import comfy.sd
import comfy.supported_models
import safetensors.torch
import torch

from golden_cases import Case
from standin_core.id_animator.adapter import load_adapter
from standin_core.id_animator.apply import apply_id_animator

ADAPTER = "animator.safetensors"


def in_fp32(path) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in safetensors.torch.load_file(path).items()}


class AuthorsSchedule(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """Betas linear from 0.00085 to 0.012, which ComfyUI calls sqrt_linear."""

    def __init__(self):
        super().__init__()
        self._register_schedule(beta_schedule="sqrt_linear", linear_start=0.00085, linear_end=0.012)


def unet(case: Case, dtype=torch.float32):
    """By ComfyUI's loader, which tells SD1.5 by two widths, with the authors' schedule."""
    widths = {"model_channels": case.settings["block_out_channels"][0],
              "context_dim": case.settings["cross_attention_dim"]}
    with mock.patch.dict(comfy.supported_models.SD15.unet_config, widths):
        model = comfy.sd.load_diffusion_model_state_dict(in_fp32(case.folder / "base.safetensors"),
                                                         model_options={"dtype": dtype})
    model.add_object_patch("model_sampling", AuthorsSchedule())
    return model


def clip_vision(case: Case):
    """ComfyUI's ViT-H with other sizes."""
    vit_h = json.loads((Path(comfy.clip_vision.__file__).parent / "clip_vision_config_h.json").read_text())
    encoder = comfy.clip_vision.ClipVisionModel(vit_h | case.settings["clip_vision"])
    missing, unexpected = encoder.load_sd(in_fp32(case.folder / "clip_vision.safetensors"))
    assert not missing and not unexpected
    return encoder


def sigma_of(model, timestep) -> torch.Tensor:
    return model.get_model_object("model_sampling").sigmas[int(timestep)]


def predictions(model, case: Case, positive, negative=None, cfg=1.0, timesteps=None, latent=None, guider=None) -> list:
    """What the model predicts of the noise in the golden latent, [F, 4, h, w] at each timestep, through a guider."""
    latent = case.io["latent"] if latent is None else latent
    found = []

    def probe(model_k, x, sigmas, extra_args, callback, disable):
        for sigma in sigmas[:-1]:
            noised = latent * (1 + sigma**2).sqrt()
            found.append((noised - model_k(noised, sigma.expand(len(latent)), **extra_args)) / sigma)
        return x

    if guider is None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, positive if negative is None else negative)
        guider.set_cfg(cfg)
    timesteps = case.io["timesteps"] if timesteps is None else timesteps
    sigmas = torch.stack([*(sigma_of(model, each) for each in timesteps), torch.tensor(0.0)])
    guider.sample(torch.zeros_like(latent), torch.zeros_like(latent), comfy.samplers.KSAMPLER(probe), sigmas, seed=0)
    return found
