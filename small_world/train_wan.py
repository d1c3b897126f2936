"""Train the tiny Wan of the small world: captions in, videos of somebody out.

    .standin/venv/bin/torchrun --nproc-per-node 2 small_world/train_wan.py --minutes 240  # goes on where it was stopped

It begins with the weights that are there. Who is in a video stands in no caption, so the model learns to make anybody
up. A share of the clips begins with a photo of the person that is not noised, at timestep 0, as the films that real
models are trained on show a face from near before it is seen from afar: so the model learns that a person stays who
they are. Latents are made once and kept in --cache. Flow matching as in ``standin_core.train``, without an identity;
heads count more than what is around them.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import numpy as np
import torch
from comfy.model_sampling import time_snr_shift

from small_world import processes
from small_world.captions import caption_contexts
from small_world.data import CLIPS, Clip, training_clip, training_examples
from small_world.latents import TOKEN, head_weights, nearest
from small_world.models import SIDE, WAN, WAN_FILE, WEIGHTS, base_model, save
from small_world.people import TRAITS
from small_world.training import Muon, train
from standin_core.train.data.shards import CachedExamples
from standin_core.wan import differentiable

BATCH = 32
MATRIX_RATE, OTHER_RATE, WEIGHT_DECAY = 1.5e-3, 6e-4, 0.01
NO_CAPTION = 0.1  # share of examples without one, for classifier-free guidance
PHOTO_FIRST = 0.6  # share of batches of one person that begin with a photo
SHIFT = 3.0
NAMING_WEIGHT = 0.1


class WithTraits(torch.nn.Module):
    """The model, and what names the traits of who is in each token from the middle of it.

    To name them is no use to a video, but it makes a model look for who somebody is long before it can draw them, as
    features of a network that knows pictures do (arXiv 2410.06940). It is not kept.
    """

    def __init__(self, wan: torch.nn.Module):
        super().__init__()
        self.wan = wan
        self.traits = torch.nn.Sequential(torch.nn.LayerNorm(WAN.dim),
                                          torch.nn.Linear(WAN.dim, sum(map(len, TRAITS.values()))))
        wan.blocks[WAN.blocks // 2 - 1].register_forward_hook(self._keep)
        for block in wan.blocks:
            block.compile()  # a step takes 0.79 of its time, measured on a CPU with AVX2

    def _keep(self, block, arguments, output: torch.Tensor) -> None:
        self._features = output

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor,
                frames: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The velocity of the last so many frames, and for each trait its logits there, [B, values, frames, h, w]."""
        with differentiable():
            predicted = self.wan(noisy, timestep, context)[:, :, -frames:]
        logits = self.traits(self._features).unflatten(1, (-1, SIDE // TOKEN, SIDE // TOKEN))[:, -frames:]
        return predicted, list(logits.movedim(-1, 1).split([len(values) for values in TRAITS.values()], dim=1))


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What is known of clips beside their latents.

    weight: how much each place of a frame counts, [B, 1, 1, h, w].
    labels: the traits of who is nearest to a token, [B, 7, h / 2, w / 2], or -1 for what cannot be seen.
    """

    weight: torch.Tensor
    labels: torch.Tensor


def truth_of(clip: Clip) -> Truth:
    labels = np.stack([np.where(person.visible, person.labels, -1) for person, _ in clip.cast])
    return Truth(head_weights(clip), torch.from_numpy(labels[nearest(clip)]).movedim(-1, 0))


def naming_loss(logits: list[torch.Tensor], truth: Truth) -> torch.Tensor:
    """The mean over the traits that can be seen; tokens count as their places do."""
    weight = torch.nn.functional.avg_pool2d(truth.weight[:, 0], 2)  # [B, 1, h / 2, w / 2]
    wrong = torch.stack([torch.nn.functional.cross_entropy(
        each, truth.labels[:, i, None].expand(-1, each.shape[2], -1, -1), ignore_index=-1, reduction="none")
        for i, each in enumerate(logits)], dim=1)
    counts = (weight * (truth.labels >= 0))[:, :, None].expand_as(wrong)
    return (counts * wrong).sum() / counts.sum()


def optimizers_of(model: WithTraits) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    parameters = dict(model.named_parameters())
    matrices = [name for name, value in parameters.items() if name.startswith("wan.blocks.") and value.dim() == 2]
    others = [value for name, value in parameters.items() if name not in matrices]
    return [Muon([parameters[name] for name in matrices], MATRIX_RATE, WEIGHT_DECAY),
            torch.optim.AdamW(others, lr=OTHER_RATE, weight_decay=WEIGHT_DECAY)]


def main(minutes: float, seed: int, cache: Path, state: Path, out: Path) -> None:
    with processes.one_first():
        examples = {people: CachedExamples(training_examples(cache, people)) for people in CLIPS}
    truths = {people: [truth_of(training_clip(number, people)[0]) for number in range(count)]
              for people, count in CLIPS.items()}
    nothing = caption_contexts()[""][0]
    model = WithTraits(base_model().model.diffusion_model.requires_grad_(True)).train()

    def losses_of(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        people = 2 if rng.random() < CLIPS[2] / sum(CLIPS.values()) else 1
        photo_first = people == 1 and rng.random() < PHOTO_FIRST
        numbers = rng.integers(CLIPS[people], size=BATCH // processes.count())
        chosen = [examples[people][int(number)] for number in numbers]
        clean = torch.stack([example.video for example in chosen]).float()
        known = [truths[people][number] for number in numbers]
        truth = Truth(*(torch.stack([getattr(each, part) for each in known]) for part in Truth.__slots__))
        context = torch.stack([nothing if rng.random() < NO_CAPTION else example.context for example in chosen])
        noise, uniform = torch.randn(clean.shape), torch.rand(len(numbers))
        sigma = time_snr_shift(SHIFT, uniform)
        wide = sigma.reshape(-1, 1, 1, 1, 1)
        noisy, timestep = (1 - wide) * clean + wide * noise, 1000 * sigma[:, None].expand(-1, clean.shape[2])
        if photo_first:
            photos = torch.stack([example.photos[rng.integers(len(example.photos))].float() for example in chosen])
            noisy = torch.cat((photos, noisy), dim=2)
            timestep = torch.cat((torch.zeros(len(numbers), 1), timestep), dim=1)
        predicted, logits = model(noisy, timestep, context, clean.shape[2])
        wrong = (truth.weight * (predicted - (noise - clean)).square()).mean()
        return {"velocity": wrong, "naming": NAMING_WEIGHT * naming_loss(logits, truth)}

    file = out / WAN_FILE.name
    average = train(model, optimizers_of(model), minutes, state, losses_of,
                    lambda weights, record: save(of_wan(weights), file, {"seed": seed, **record}), seed)
    if processes.number() == 0:
        save(of_wan(average), file)


def of_wan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("wan."): value for key, value in weights.items() if key.startswith("wan.")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=PACK / ".standin" / "small_world")
    parser.add_argument("--state", type=Path, default=PACK / ".standin" / "small_world" / "wan.state")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    processes.begin()
    main(options.minutes, options.seed, options.cache, options.state, options.out)
