"""Train the tiny Wan of the small world from scratch: captions in, videos of somebody out.

    .standin/venv/bin/python small_world/train_wan.py --minutes 120     # goes on from the weights that are there

Who is in a video stands in no caption, so the model learns to make anybody up. Latents are made once and kept in
--cache. Flow matching as in ``standin_core.train``, without an identity.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import numpy as np
import torch

from small_world.captions import caption_contexts
from small_world.models import FRAMES, SIDE, WAN_FILE, new_vae, new_wan, save, to_model_space, to_pixels
from small_world.people import split
from small_world.render import video
from small_world.scenes import random_scene
from standin_core.train.objective import differentiable

BATCH, CLIPS = 16, 6000
LEARNING_RATE, WARM_UP, GRAD_NORM = 6e-4, 200, 1.0
NO_CAPTION = 0.1  # share of examples without one, for classifier-free guidance
SHIFT = 3.0
REPORTED_EVERY = 100


def make_clips(path: Path, seed: int) -> None:
    """Latents [CLIPS, 16, T, h, w] in model space, fp16, and the caption of each."""
    rng, (people, _) = np.random.default_rng(seed), split()
    vae, latents, captions = new_vae().eval(), [], []
    with torch.inference_mode():
        for number in range(CLIPS):
            scene = random_scene(rng)
            frames = video(people[rng.integers(len(people))], scene, FRAMES, SIDE)
            latents.append(to_model_space(vae.encode(to_pixels(torch.from_numpy(frames)[None]))).half())
            captions.append(scene.caption)
            if (number + 1) % 500 == 0:
                sys.stdout.write(f"{number + 1} of {CLIPS} clips\n")
                sys.stdout.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"latents": torch.cat(latents), "captions": captions}, path)


def main(minutes: float, seed: int, cache: Path) -> None:
    path = cache / f"clips_{CLIPS}_{seed}.pt"
    if not path.exists():
        make_clips(path, seed)
    data = torch.load(path, weights_only=True)
    contexts = caption_contexts()
    wan = new_wan().diffusion_model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(wan.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    average = {key: value.detach().clone() for key, value in wan.state_dict().items()}
    generator = torch.Generator().manual_seed(seed + 1)
    log, losses, started, step = [], [], time.monotonic(), 0
    while (done := (time.monotonic() - started) / (60 * minutes)) < 1:
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.05 + 0.95 * (1 + np.cos(np.pi * done)) / 2)
        optimizer.param_groups[0]["lr"] = rate
        chosen = torch.randint(len(data["latents"]), (BATCH,), generator=generator)
        clean = data["latents"][chosen].float()
        captions = ["" if torch.rand(1, generator=generator) < NO_CAPTION else data["captions"][int(i)] for i in chosen]
        noise = torch.randn(clean.shape, generator=generator)
        uniform = torch.rand(BATCH, generator=generator)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        wide = sigma.reshape(-1, 1, 1, 1, 1)
        with differentiable():
            predicted = wan((1 - wide) * clean + wide * noise, 1000 * sigma,
                            torch.cat([contexts[caption] for caption in captions]))
        loss = torch.nn.functional.mse_loss(predicted, noise - clean)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wan.parameters(), GRAD_NORM)
        optimizer.step()
        step += 1
        decay = min(0.999, step / (step + 10))
        with torch.no_grad():
            for key, value in wan.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        losses.append(float(loss.detach()))
        if step % REPORTED_EVERY == 0:
            log.append({"seed": seed, "step": step, "loss": round(float(np.mean(losses)), 4)})
            losses.clear()
            sys.stdout.write(f"{100 * done:.0f} % {log[-1]}\n")
            sys.stdout.flush()
    wan.load_state_dict(average)
    save(wan, WAN_FILE, log)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=PACK / ".standin" / "small_world")
    options = parser.parse_args()
    main(options.minutes, options.seed, options.cache)
