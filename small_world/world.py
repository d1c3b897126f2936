"""The trained models of the small world as ComfyUI loads them, and how they are sampled."""
from __future__ import annotations

import comfy.sd
import numpy as np
import torch

from standin_core.sampler import SamplerSettings, sample
from standin_core.stand_in.adapter import Adapter
from standin_core.stand_in.apply import apply_identity_branch

from .captions import caption_contexts
from .cases import Case
from .data import Clip
from .models import FRAMES, SIDE, base_model, encode, long_vae, new_vae, to_pixels
from .reader import load_reader

# by benchmarks/small_world_settings.py
STEPS, CFG, SHIFT = 12, 2.0, 5.0
SAMPLED = {"steps": STEPS, "cfg": CFG, "shift": SHIFT}


class World:
    """The trained models as ComfyUI loads them, and what is needed to ask them."""

    def __init__(self):
        self._plain_vae, self._plain_long_vae = new_vae().eval(), long_vae().eval()
        self.vae, self.long_vae = (comfy.sd.VAE(sd=each.state_dict()) for each in (
            self._plain_vae, self._plain_long_vae))
        self.model = base_model()
        self.contexts = caption_contexts()
        self.reader = load_reader()

    def reference(self, *photos: np.ndarray) -> torch.Tensor:
        """[R, 16, 1, h, w], VAE space"""
        return torch.cat([self.vae.encode(torch.from_numpy(each)[None].float() / 255) for each in photos])

    def generate(self, clip: Clip, seed: int, model=None, frames: int = FRAMES, **settings) -> np.ndarray:
        """[frames, SIDE, SIDE, 3] uint8, of the clip's caption.

        model: None for the base model.
        settings: of the sampler, where they are not SAMPLED.
        """
        positive, negative = ([[self.contexts[words], {}]] for words in (clip.caption, ""))
        settings = SamplerSettings(seed, **SAMPLED | settings)
        latent, _ = sample(model or self.model, None, positive, negative, empty_latent(frames), settings)
        vae = self.long_vae if frames > FRAMES else self.vae
        shown = vae.decode(latent["samples"])[0]
        return (255 * shown.clamp(0, 1)).round().to(torch.uint8).cpu().numpy()

    def through_vae(self, frames: np.ndarray) -> np.ndarray:
        """[frames, H, W, 3] uint8, there and back."""
        return through_vae(self._plain_long_vae if len(frames) > FRAMES else self._plain_vae, frames)

    def with_identity(self, case: Case, adapter: Adapter, **controls):
        return apply_identity_branch(self.model, adapter, self.reference(case.photo), **controls)


def empty_latent(frames: int = FRAMES) -> dict[str, torch.Tensor]:
    """The ComfyUI LATENT of a video of the small world, all zeros."""
    return {"samples": torch.zeros(1, 16, (frames - 1) // 4 + 1, SIDE // 8, SIDE // 8)}


def through_vae(vae: torch.nn.Module, frames: np.ndarray) -> np.ndarray:
    """[frames, H, W, 3] uint8, there and back."""
    with torch.inference_mode():
        decoded = vae.decode(encode(vae, to_pixels(torch.from_numpy(frames)[None])))[0]
    return ((decoded.movedim(0, -1) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).numpy()
