"""The authors' numbers (tests/golden, WeChatCV/Stand-In at cceec58) and how the real sampler is driven at one point."""
import json
from dataclasses import dataclass
from pathlib import Path

import comfy.samplers
import comfy.sd
import safetensors.torch
import torch

from standin_core.stand_in.adapter import load_adapter
from standin_core.stand_in.apply import apply_identity_branch

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    folder: Path
    settings: dict
    io: dict[str, torch.Tensor]

    def model(self, base: str = "base.safetensors"):
        return comfy.sd.load_diffusion_model(str(self.folder / base), model_options={"dtype": torch.float32})

    def conditioning(self, which: str) -> list:
        return [[self.io[f"context_{which}"], {}]]

    def identity(self, model, adapter: str = "standin.safetensors", **controls):
        latent = model.model.process_latent_out(self.io["reference_latent"])
        return apply_identity_branch(model, load_adapter(self.folder / adapter), latent, **controls)


def load_case(name: str) -> Case:
    folder = GOLDEN / name
    return Case(folder, json.loads((folder / "case.json").read_text()),
                safetensors.torch.load_file(folder / "io.safetensors"))


def velocities(model, latent: torch.Tensor, timesteps: torch.Tensor, conditioning: list) -> list[torch.Tensor]:
    """The model's velocity at each timestep for one fixed latent (model space), through ComfyUI's guider."""
    found = []

    def probe(model_k, x, sigmas, extra_args, callback, disable):
        for sigma in sigmas[:-1]:
            denoised = model_k(latent, sigma[None], **extra_args)
            found.append((latent - denoised) / sigma)
        return x

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    sigmas = torch.cat((timesteps / 1000, torch.zeros(1)))
    guider.sample(torch.zeros_like(latent), torch.zeros_like(latent), comfy.samplers.KSAMPLER(probe), sigmas, seed=0)
    return found
