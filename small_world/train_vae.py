"""Train the VAE of the small world: clips and photos of drawn people in, the same out.

    .standin/venv/bin/python small_world/train_vae.py --minutes 95     # goes on where it was stopped
    .standin/venv/bin/python small_world/train_vae.py --minutes 65 --decoder   # a training of its own, after the first

It begins with the weights that are there. Latents are drawn towards the mean and the deviation that ComfyUI takes off
for Wan, so that the model sees numbers near a normal distribution. With --decoder, a decoder of long videos is trained
from there and has a file of its own: the latents stay as they are, and what was trained on them stays valid.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu")

import numpy as np
import torch

from small_world.data import Clip, random_clip, random_photo
from small_world.latents import head_weights
from small_world.models import (
    ENCODER,
    FRAMES,
    LONG,
    LONG_DECODER_FILE,
    SIDE,
    VAE_FILE,
    WEIGHTS,
    encode,
    long_vae,
    new_vae,
    save,
    to_model_space,
    to_pixels,
)
from small_world.people import split
from small_world.training import Muon, train

# kind of batch -> share of the batches
SHARES = {"photos": 0.2, "pictures": 0.2, "5 frames": 0.25, "9 frames": 0.35}
DECODER_SHARES = {"photos": 0.1, "pictures": 0.1, "5 frames": 0.15, "9 frames": 0.25, "17 frames": 0.2,
                  "33 frames": 0.2}
PHOTOS = 8
SIZES = {"pictures": (8, 1), "5 frames": (4, 5), "9 frames": (4, FRAMES), "17 frames": (2, 2 * FRAMES - 1),
         "33 frames": (2, LONG)}  # of a batch of clips: how many, and their frames
CROPPED, CROP, JITTER = 0.8, 48, 10  # share of batches of heads alone; side and how far from their middle, in pixels
KERNEL_RATE, OTHER_RATE = 2e-3, 8e-4
LATENT_NOISE, NORMAL_WEIGHT, EDGE_WEIGHT = 0.2, 0.02, 0.5


def batch(people, shares: dict[str, float], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [B, F, H, W, 3] uint8 and how much each counts, [B, 1, 1, H, W] float32.

    Most are cropped around heads: a frame costs 1.8 times as much, most of it plain ground.
    """
    kind = rng.choice(list(shares), p=list(shares.values()))
    if kind == "photos":
        shown = [random_photo(people[rng.integers(len(people))], rng)[None] for _ in range(PHOTOS)]
        return np.stack(shown), np.ones((PHOTOS, 1, 1, SIDE, SIDE), np.float32)
    cropped = rng.random() < CROPPED
    count, frames = SIZES[kind]
    drawn = [_drawn(random_clip(people, rng), frames, cropped, rng) for _ in range(count // (1 if cropped else 2))]
    return tuple(np.stack(each) for each in zip(*drawn))


def _drawn(clip: Clip, frames: int, cropped: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    shown, weight = clip.video(frames), head_weights(clip, cell=1)
    if not cropped:
        return shown, weight
    pose = clip.cast[rng.integers(len(clip.cast))][1].at(0.5)
    left, top = (int(np.clip(round(at * SIDE) - CROP // 2 + rng.integers(-JITTER, JITTER + 1), 0, SIDE - CROP))
                 for at in (pose.x, pose.y))
    crop = np.s_[..., top:top + CROP, left:left + CROP]
    return np.moveaxis(np.moveaxis(shown, -1, 0)[crop], 0, -1), weight[crop]


def main(minutes: float, decoder: bool, seed: int, state: Path, out: Path) -> None:
    people, vae = split().train, long_vae() if decoder else new_vae()
    for layer in vae.modules():  # a fifth faster here
        if isinstance(layer, torch.nn.Conv2d):
            layer.to(memory_format=torch.channels_last)
        elif isinstance(layer, torch.nn.Conv3d):
            layer.to(memory_format=torch.channels_last_3d)
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(not (decoder and name.startswith(ENCODER)))

    def losses_of(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        shown, counts = batch(people, DECODER_SHARES if decoder else SHARES, rng)
        pixels, weight = to_pixels(torch.from_numpy(shown)), torch.from_numpy(counts)
        latent = encode(vae, pixels)
        wrong = weight * (vae.decode(latent + LATENT_NOISE * torch.randn_like(latent)) - pixels)
        normal = to_model_space(latent)
        edges = wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean()
        normality = normal.mean().square() + (normal.std() - 1).square()
        return {"pixels": wrong.abs().mean(), "edges": EDGE_WEIGHT * edges, "normality": NORMAL_WEIGHT * normality}

    trained = {kernels: [parameter for parameter in vae.parameters() if parameter.requires_grad
                         and (parameter.dim() > 3) == kernels] for kernels in (True, False)}
    optimizers = [Muon(trained[True], KERNEL_RATE), torch.optim.AdamW(trained[False], lr=OTHER_RATE, weight_decay=0.0)]
    file = out / (LONG_DECODER_FILE if decoder else VAE_FILE).name

    def keep(weights: dict[str, torch.Tensor], record: dict | None = None) -> None:
        save({key: value for key, value in weights.items() if not (decoder and key.startswith(ENCODER))}, file, record)

    weights = train(vae, optimizers, minutes, state, losses_of,
                    lambda average, record: keep(average, {"seed": seed, **record}), seed)
    keep(weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--decoder", action="store_true", help="train that of long videos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    kept = PACK / ".standin" / "small_world" / ("decoder.state" if options.decoder else "vae.state")
    main(options.minutes, options.decoder, options.seed, options.state or kept, options.out)
