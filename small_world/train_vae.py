"""Train the VAE of the small world: clips and photos of drawn people in, the same out.

    .standin/venv/bin/python small_world/train_vae.py --minutes 40     # goes on where it was stopped
    .standin/venv/bin/python small_world/train_vae.py --minutes 40 --decoder      # the latents stay what they are

It begins with the weights that are there. Latents are drawn towards the mean and the deviation that ComfyUI takes off
for Wan, so that the model sees numbers near a normal distribution. The decoder alone can be trained on at the end, which
leaves valid what was trained on latents.
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

from small_world.data import random_clip, random_photo
from small_world.latents import head_weights
from small_world.models import ENCODER, FRAMES, VAE_FILE, WEIGHTS, new_vae, save, to_model_space, to_pixels
from small_world.people import split
from small_world.photos import PHOTO_SIDE
from small_world.training import train

PICTURES, CLIPS, PHOTOS = 6, 2, 8  # batch sizes
LEARNING_RATE = 8e-4
LATENT_NOISE, NORMAL_WEIGHT, EDGE_WEIGHT = 0.05, 0.02, 0.5


def batch(people, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [B, F, H, W, 3] uint8 and how much each counts, [B, 1, 1, H, W] float32 with a mean of 1."""
    kind = rng.choice(["photos", "pictures", "short", "long"], p=(0.25, 0.25, 0.25, 0.25))
    if kind == "photos":
        shown = [random_photo(people[rng.integers(len(people))], rng)[None] for _ in range(PHOTOS)]
        return np.stack(shown), np.ones((PHOTOS, 1, 1, PHOTO_SIDE, PHOTO_SIDE), np.float32)
    clips = [random_clip(people, rng) for _ in range(PICTURES if kind == "pictures" else CLIPS)]
    frames = {"pictures": 1, "short": 5, "long": FRAMES}[kind]
    return np.stack([clip.video(frames) for clip in clips]), np.stack([head_weights(clip, cell=1) for clip in clips])


def main(minutes: float, decoder: bool, seed: int, state: Path, out: Path) -> None:
    people, vae = split().train, new_vae()
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(not (decoder and name.startswith(ENCODER)))

    def loss_of(rng: np.random.Generator) -> torch.Tensor:
        shown, counts = batch(people, rng)
        pixels, weight = to_pixels(torch.from_numpy(shown)), torch.from_numpy(counts)
        latent = vae.encode(pixels)
        wrong = weight * (vae.decode(latent + LATENT_NOISE * torch.randn_like(latent)) - pixels)
        normal = to_model_space(latent)
        edges = wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean()
        normality = normal.mean().square() + (normal.std() - 1).square()
        return wrong.abs().mean() + EDGE_WEIGHT * edges + NORMAL_WEIGHT * normality

    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    file = out / VAE_FILE.name
    weights = train(vae, [optimizer], minutes, state, loss_of,
                    lambda average, record: save(average, file, {"seed": seed, **record}), seed)
    save(weights, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--decoder", action="store_true", help="train it alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=PACK / ".standin" / "small_world" / "vae.state")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    main(options.minutes, options.decoder, options.seed, options.state, options.out)
