"""The training loop: steps that depend on nothing but the seed, their number and the state that a checkpoint holds.

What a step draws (examples, photos, noise, noise levels) comes from a generator seeded by (seed, step), so a run that
was interrupted goes on bit for bit as if it had not been, without any state of a generator being saved.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..contracts import Adapter, StandInError
from ..wan import Wan
from .objective import Batch, flow_matching_loss
from .weights import parameters

SEED_STRIDE = 1_000_003  # two seeds share no step for as long as anybody trains
MOST_BAD_STEPS = 10  # in a row, before it is no accident


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A clip and what belongs to it, in model space. video: [16, T, h, w]; photos: [P, 16, 1, h, w], of the same
    person, never of this clip's own frames; context: [N, text dim].
    """

    video: torch.Tensor
    photos: torch.Tensor
    context: torch.Tensor


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """learning_rate rises over ``warmup`` steps and then stays, or falls as a cosine to a tenth where ``cosine``.

    shift: of the noise levels, 1 is uniform as with the authors, higher trains more on noise. max_grad_norm: gradients
    are scaled down to it. ema: decay of a moving average of the adapter, 0 for none.
    """

    steps: int = 3000
    batch_size: int = 1
    learning_rate: float = 1e-4
    warmup: int = 100
    cosine: bool = False
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema: float = 0.0
    shift: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "learning_rate", "max_grad_norm", "shift"):
            if getattr(self, name) <= 0:
                raise StandInError(f"{name} is {getattr(self, name)}, needed is more than 0.")
        if not 0 <= self.ema < 1:
            raise StandInError(f"ema is {self.ema}, needed is at least 0 and less than 1, like 0.999.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        risen = min(1.0, (step + 1) / max(self.warmup, 1))
        if not self.cosine:
            return self.learning_rate * risen
        share = min(1.0, step / max(self.steps - 1, 1))
        return self.learning_rate * risen * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


class Trainer:
    """Trains an adapter (of ``new_adapter``, or any whose tensors take gradients) on examples; the model is frozen."""

    def __init__(self, wan: Wan, adapter: Adapter, examples: Sequence[Example], settings: TrainSettings):
        if not len(examples):
            raise StandInError("there are no examples to train on: see what the preparation of the data dropped.")
        wan.model.requires_grad_(False)
        self.wan, self.adapter, self.examples, self.settings = wan, adapter, examples, settings
        self.weights = parameters(adapter)
        self.average = {key: tensor.detach().clone() for key, tensor in self.weights.items()} if settings.ema else {}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=settings.learning_rate,
                                           weight_decay=settings.weight_decay)
        self.step = 0
        self.bad_steps = 0

    def train_step(self) -> float:
        """One step; returns its loss. A loss that is no number changes nothing and is counted; raises StandInError
        after MOST_BAD_STEPS of them in a row.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for batch in self.draw(self.step):  # one by one: a person's photo is read by his or her video alone
            loss = flow_matching_loss(self.wan, self.adapter, batch) / self.settings.batch_size
            loss.backward()
            value += float(loss.detach())
        self.step += 1
        if not math.isfinite(value):
            self.bad_steps += 1
            if self.bad_steps == MOST_BAD_STEPS:
                raise StandInError(f"the loss was no number in {MOST_BAD_STEPS} steps in a row, up to step "
                                   f"{self.step}: lower the learning rate and go on from a checkpoint before that.")
            return value
        self.bad_steps = 0
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.settings.max_grad_norm)
        self.optimizer.step()
        for key, mean in self.average.items():
            mean.lerp_(self.weights[key].detach(), 1 - self.settings.ema)
        return value

    def draw(self, step: int) -> list[Batch]:
        """What a step learns from, ``batch_size`` times one video and one of its photos."""
        generator = torch.Generator().manual_seed((self.settings.seed * SEED_STRIDE + step) % 2**63)
        device, dtype = next(self.wan.model.parameters()).device, self.wan.dtype
        batches = []
        for _ in range(self.settings.batch_size):
            example = self.examples[_any(len(self.examples), generator)]
            photo = example.photos[_any(len(example.photos), generator)]
            uniform = torch.rand(1, generator=generator)
            sigma = self.settings.shift * uniform / (1 + (self.settings.shift - 1) * uniform)
            noise = torch.randn(example.video.shape, generator=generator)
            batches.append(Batch(*(x.to(device, dtype) for x in (
                example.video[None], noise[None], photo[None], example.context[None], sigma))))
        return batches

    def save(self, path: Path) -> None:
        """A checkpoint, from which ``resume`` goes on."""
        unfinished = path.with_suffix(".part")
        torch.save({"step": self.step, "settings": dataclasses.asdict(self.settings), "average": self.average,
                    "weights": {key: tensor.detach() for key, tensor in self.weights.items()},
                    "optimizer": self.optimizer.state_dict()}, unfinished)
        unfinished.replace(path)  # a full disk leaves the last good one

    def resume(self, path: Path) -> None:
        """Raises StandInError for a checkpoint of other settings."""
        saved = torch.load(path, map_location="cpu", weights_only=True)
        differing = [name for name, value in dataclasses.asdict(self.settings).items()
                     if name != "steps" and saved["settings"].get(name) != value]
        if differing:
            raise StandInError(f"{path.name} was trained with other settings ({', '.join(differing)}): set them alike, "
                               "or begin anew.")
        with torch.no_grad():
            for key, tensor in saved["weights"].items():
                self.weights[key].copy_(tensor)
            for key, tensor in saved["average"].items():
                self.average[key].copy_(tensor)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]


def _any(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))
