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
from support.environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import numpy as np
import torch

from small_world.captions import caption_contexts
from small_world.data import CLIPS, training_examples
from small_world.models import WAN_FILE, WEIGHTS, new_wan, save
from standin_core.train.data.shards import CachedExamples
from standin_core.wan import differentiable

BATCH = 16
LEARNING_RATE, WARM_UP, GRAD_NORM = 6e-4, 200, 1.0
NO_CAPTION = 0.1  # share of examples without one, for classifier-free guidance
SHIFT = 3.0
SAVED_EVERY = 200


def main(minutes: float, seed: int, clips: int, cache: Path, out: Path) -> None:
    examples = CachedExamples(training_examples(cache, clips))
    nothing = caption_contexts()[""][0]
    wan = new_wan().diffusion_model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(wan.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    average = {key: value.detach().clone() for key, value in wan.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    losses, started, step = [], time.monotonic(), 0
    while (done := (time.monotonic() - started) / (60 * minutes)) < 1:
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.05 + 0.95 * (1 + np.cos(np.pi * done)) / 2)
        optimizer.param_groups[0]["lr"] = rate
        chosen = [examples[int(i)] for i in torch.randint(len(examples), (BATCH,), generator=generator)]
        clean = torch.stack([example.video for example in chosen])
        silent = torch.rand(BATCH, generator=generator) < NO_CAPTION
        context = torch.stack([nothing if mute else example.context for example, mute in zip(chosen, silent)])
        noise = torch.randn(clean.shape, generator=generator)
        uniform = torch.rand(BATCH, generator=generator)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        wide = sigma.reshape(-1, 1, 1, 1, 1)
        with differentiable():
            predicted = wan((1 - wide) * clean + wide * noise, 1000 * sigma, context)
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
        if step % SAVED_EVERY == 0:
            record = {"seed": seed, "minutes": round(done * minutes, 1), "step": step,
                      "loss": round(float(np.mean(losses)), 4)}
            losses.clear()
            save(average, out / WAN_FILE.name, record)
            sys.stdout.write(f"{record}\n")
            sys.stdout.flush()
    save(average, out / WAN_FILE.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=PACK / ".standin" / "small_world")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    main(options.minutes, options.seed, options.clips, options.cache, options.out)
