"""A tiny random Wan in ComfyUI's own loader and sampler, and the identity on it."""
import functools

import comfy.sample
import comfy.samplers
import comfy.sd
import torch

from golden_cases import velocities
from small_world.tiny_models import TinyWan, adapter_weights
from standin_core.report import ReportSink
from standin_core.stand_in.adapter import parse_adapter
from standin_core.stand_in.apply import apply_identity_branch

WAN = TinyWan(text_dim=32)
LATENT = (1, 16, 3, 8, 12)
STEPS = 3


@functools.cache
def adapter():
    return parse_adapter(adapter_weights(), "tiny_stand_in.safetensors", sha256="0" * 64)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load(weights=None, dtype=torch.float32):
    return comfy.sd.load_diffusion_model_state_dict(
        dict(weights or WAN.weights()), model_options={"dtype": dtype}, metadata=WAN.metadata())


def with_identity(model, seed=1, **controls):
    """The reference has 32 tokens, 4 x 8, so that height and width cannot be mixed up unseen."""
    return apply_identity_branch(model, adapter(), random(1, 16, 1, 8, 16, seed=seed), **controls)


def prompt(length=5, seed=2):
    return [[random(1, length, WAN.text_dim, seed=seed), {}]]


def velocity(model, x, context):
    """What the model predicts for x [B, 16, T, h, w], model space, at the first step of ComfyUI's sampling."""
    (found,) = velocities(model, x, torch.tensor([1000.0]), [[context, {}]])
    return found


def sample(model, latent=None, positive=None, negative=None, cfg=4.0, steps=STEPS, callback=None, seed=7, noise=None):
    """Through ComfyUI's KSampler -> (latent, reports of the runs)."""
    model, sink = model.clone(), ReportSink()
    sink.listen(model)
    latent = torch.zeros(LATENT) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
    samples = comfy.sample.sample(
        model, noise, steps, cfg, "euler", "simple", positive or prompt(), negative or prompt(seed=3), latent,
        disable_pbar=True, callback=callback, seed=seed)
    return samples, sink.reports
