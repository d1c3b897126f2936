"""Train the tiny Wan of the small world: captions in, videos of somebody out.

    .standin/venv/bin/python small_world/train_wan.py --minutes 240     # goes on where it was stopped

It begins with the weights that are there. Who is in a video stands in no caption, so the model learns to make anybody
up. A share of the clips begins with a photo of the person that is not noised, at timestep 0, as the films that real
models are trained on show a face from near before it is seen from afar: so the model learns that a person stays who
they are. Latents are made once and kept in --cache. Flow matching as in ``standin_core.train``, without an identity;
heads count more than what is around them.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import numpy as np
import torch

from small_world.captions import caption_contexts
from small_world.data import CLIPS, training_clip, training_examples
from small_world.latents import head_weights
from small_world.models import WAN_FILE, WEIGHTS, new_wan, save
from small_world.training import Muon, train
from standin_core.train.data.shards import CachedExamples
from standin_core.wan import differentiable

BATCH = 32
MATRIX_RATE, OTHER_RATE, WEIGHT_DECAY = 1.5e-3, 6e-4, 0.01
NO_CAPTION = 0.1  # share of examples without one, for classifier-free guidance
PHOTO_FIRST = 0.6  # share of batches of one person that begin with a photo
SHIFT = 3.0


def optimizers_of(wan: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    parameters = dict(wan.named_parameters())
    matrices = [name for name, value in parameters.items() if name.startswith("blocks.") and value.dim() == 2]
    others = [value for name, value in parameters.items() if name not in matrices]
    return [Muon([parameters[name] for name in matrices], MATRIX_RATE, WEIGHT_DECAY),
            torch.optim.AdamW(others, lr=OTHER_RATE, weight_decay=WEIGHT_DECAY)]


def main(minutes: float, seed: int, cache: Path, state: Path, out: Path) -> None:
    examples = {people: CachedExamples(training_examples(cache, people)) for people in CLIPS}
    weights = {people: [head_weights(training_clip(number, people)[0]) for number in range(count)]
               for people, count in CLIPS.items()}
    nothing = caption_contexts()[""][0]
    wan = new_wan().diffusion_model.requires_grad_(True).train()

    def loss_of(rng: np.random.Generator) -> torch.Tensor:
        people = 2 if rng.random() < CLIPS[2] / sum(CLIPS.values()) else 1
        photo_first = people == 1 and rng.random() < PHOTO_FIRST
        numbers = rng.integers(CLIPS[people], size=BATCH)
        chosen = [examples[people][int(number)] for number in numbers]
        clean = torch.stack([example.video for example in chosen]).float()
        weight = torch.stack([weights[people][number] for number in numbers])
        context = torch.stack([nothing if rng.random() < NO_CAPTION else example.context for example in chosen])
        noise, uniform = torch.randn(clean.shape), torch.rand(BATCH)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        wide = sigma.reshape(-1, 1, 1, 1, 1)
        noisy, timestep = (1 - wide) * clean + wide * noise, 1000 * sigma[:, None].expand(-1, clean.shape[2])
        if photo_first:
            photos = torch.stack([example.photos[rng.integers(len(example.photos))].float() for example in chosen])
            noisy = torch.cat((photos, noisy), dim=2)
            timestep = torch.cat((torch.zeros(BATCH, 1), timestep), dim=1)
        with differentiable():
            predicted = wan(noisy, timestep, context)[:, :, -clean.shape[2]:]
        return (weight * (predicted - (noise - clean)).square()).mean()

    file = out / WAN_FILE.name
    average = train(wan, optimizers_of(wan), minutes, state, loss_of,
                    lambda weights, record: save(weights, file, {"seed": seed, **record}), seed)
    save(average, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=PACK / ".standin" / "small_world")
    parser.add_argument("--state", type=Path, default=PACK / ".standin" / "small_world" / "wan.state")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    main(options.minutes, options.seed, options.cache, options.state, options.out)
