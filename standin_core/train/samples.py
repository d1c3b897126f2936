"""A picture of what a method makes so far: for some examples, the photo and frames of a video sampled with it."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from ..sampler import SamplerSettings, sample, unshifted
from .data.shards import Example

FRAMES_SHOWN = 4
GAP = 4  # pixels


def sample_grid(model, applied: Callable, vae, examples: list[Example], settings: SamplerSettings,
                noise_to: float = 1.0) -> np.ndarray:
    """A row for each example: its first photos, then frames spread over the video of its prompt.

    The noise is the same every time, so that pictures of different steps compare.

    model: a ComfyUI ModelPatcher.
    applied: gives a clone of it that samples with the persons of photos [1, 16, M, h, w], VAE space.
    noise_to: the highest noise level that the model knows; below 1, sampling begins with the example's own clip.

    Returns [H, W, 3] uint8.
    """
    rows = []
    denoise = unshifted(settings.shift, noise_to)
    for example in examples:
        reference = model.model.process_latent_out(example.photos[:1])
        condition, nothing = ([[context[None], {}]] for context in (example.context, torch.zeros_like(example.context)))
        begun = model.model.process_latent_out(example.video[None]) if denoise < 1 else torch.zeros_like(
            example.video[None])
        with torch.no_grad():  # not inference mode: what is moved there could not be trained through
            latent, _ = sample(applied(reference), None, condition, nothing, {"samples": begun},
                               dataclasses.replace(settings, denoise=denoise))
            frames = vae.decode(latent["samples"])[0]
            photos = torch.cat([vae.decode(photo)[0] for photo in reference.split(1, dim=2)])
        height, photo_height, photo_width = frames.shape[1], *photos.shape[1:3]
        photos = torch.nn.functional.interpolate(
            photos.movedim(-1, 1), size=(height, round(photo_width * height / photo_height)), mode="area")
        shown = frames[torch.linspace(0, len(frames) - 1, FRAMES_SHOWN).round().long()]
        rows.append(torch.cat([*photos.movedim(1, -1), *shown], dim=1))
    rows = [torch.nn.functional.pad(row, (0, 0, 0, 0, 0, GAP), value=1.0) for row in rows]
    return (255 * torch.cat(rows).clamp(0, 1)).round().to(torch.uint8).cpu().numpy()
