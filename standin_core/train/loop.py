"""The training loop: steps that depend on nothing but the seed, their number and the state that a checkpoint holds.

What a step draws (examples, photos, noise, noise levels) comes from a generator seeded by (seed, step), so a run that
was interrupted goes on bit for bit as if it had not been, without any state of a generator being saved. Several
processes share the examples of a step and add up their gradients.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..contracts import StandInError
from ..wan import Wan
from .data.shards import Example
from .objective import Batch, flow_matching_loss
from .weights import as_adapter, parameters

SEED_STRIDE = 1_000_003  # two seeds share no step for as long as anybody trains
MOST_BAD_STEPS = 10  # in a row, before it is no accident
FREE = ("steps", "learning_rate", "checkpointing", "together")  # what may differ when a run goes on


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """batch_size: examples of a step, of all processes; together: how many of them are computed at a time, which costs
    memory and saves time where a GPU is not busy with one. learning_rate rises over ``warmup`` steps and then
    stays, or falls as a cosine to a tenth where ``cosine``; that of the up weights is loraplus_ratio times as high
    (LoRA+, arXiv 2402.12354; 1 is plain LoRA). max_grad_norm: gradients are scaled down to it. ema: decay of a moving
    average of the adapter, 0 for none.

    noise_from, noise_to: the noise levels of this model, 0 to 1, of Wan 2.2's experts 0.875 to 1 and 0 to 0.875.
    shift: among them, 1 is uniform as with the authors, higher trains more on noise. checkpointing: see
    ``flow_matching_loss``.
    """

    steps: int = 3000
    batch_size: int = 1
    together: int = 1
    learning_rate: float = 1e-4
    loraplus_ratio: float = 1.0
    warmup: int = 100
    cosine: bool = False
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema: float = 0.0
    noise_from: float = 0.0
    noise_to: float = 1.0
    shift: float = 1.0
    checkpointing: bool = True
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "together", "learning_rate", "loraplus_ratio", "max_grad_norm", "shift"):
            if getattr(self, name) <= 0:
                raise StandInError(f"{name} is {getattr(self, name)}, needed is more than 0.")
        if not 0 <= self.ema < 1:
            raise StandInError(f"ema is {self.ema}, needed is at least 0 and less than 1, like 0.999.")
        if not 0 <= self.noise_from < self.noise_to <= 1:
            raise StandInError(f"the noise levels are {self.noise_from} to {self.noise_to}, needed is a range within 0 "
                               "to 1, like 0.875 to 1 for Wan 2.2's high-noise expert.")

    def sigma(self, uniform: torch.Tensor) -> torch.Tensor:
        """Noise levels of numbers evenly spread over 0 to 1: ``shift s / (1 + (shift - 1) s)``, as of the sampler."""
        first, last = (level / (self.shift - (self.shift - 1) * level) for level in (self.noise_from, self.noise_to))
        s = first + (last - first) * uniform
        return self.shift * s / (1 + (self.shift - 1) * s)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        risen = min(1.0, (step + 1) / max(self.warmup, 1))
        if not self.cosine:
            return self.learning_rate * risen
        share = min(1.0, step / max(self.steps - 1, 1))
        return self.learning_rate * risen * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


class Trainer:
    """Trains the adapter of ``new_adapter``'s modules on examples; the model is frozen.

    origin: what else tells this training from others (its data, its base model), in checkpoints and in the adapter's
    file. processes: an ``accelerate.Accelerator`` where several train together, on a GPU each.
    """

    def __init__(self, wan: Wan, module: torch.nn.Module, examples: Sequence[Example], settings: TrainSettings,
                 origin: dict[str, str] | None = None, processes=None):
        from peft.optimizers import create_loraplus_optimizer  # 6 s

        if not len(examples):
            raise StandInError("there are no examples to train on: see what the preparation of the data dropped.")
        self.share = (0, 1) if processes is None else (processes.process_index, processes.num_processes)
        if settings.batch_size % self.share[1]:
            raise StandInError(f"batch_size is {settings.batch_size} and {self.share[1]} processes share it: take a "
                               "multiple of their number.")
        wan.model.requires_grad_(False)
        self.wan, self.examples, self.settings, self.processes = wan, examples, settings, processes
        self.origin = origin or {}
        self.adapter = as_adapter(module)
        self.weights = parameters(self.adapter)
        self.average = {key: tensor.detach().clone() for key, tensor in self.weights.items()} if settings.ema else {}
        self.optimizer = create_loraplus_optimizer(
            module, torch.optim.AdamW, lr=settings.learning_rate, loraplus_lr_ratio=settings.loraplus_ratio,
            loraplus_weight_decay=settings.weight_decay, weight_decay=settings.weight_decay)
        # fp16 has no numbers for gradients as small as those of a mean over a video
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=wan.dtype == torch.float16)
        self._ratios = [group["lr"] / settings.learning_rate for group in self.optimizer.param_groups]
        self.step = 0
        self.bad_steps = 0
        self.whole = True  # whether weights, optimiser and average are all of the same step

    @property
    def _device(self) -> torch.device:
        return next(iter(self.weights.values())).device

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """What to save and to sample with: the moving average where there is one, else the weights."""
        return self.average or self.weights

    def train_step(self) -> float:
        """One step; returns its loss, or NaN where loss or gradients were no numbers, which changes nothing and is
        counted; raises StandInError after MOST_BAD_STEPS of them in a row.
        """
        for group, ratio in zip(self.optimizer.param_groups, self._ratios):
            group["lr"] = ratio * self.settings.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        value = self._gradients(self.draw(self.step))
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.settings.max_grad_norm)
        if not (math.isfinite(value) and math.isfinite(norm)):
            self.scaler.update()
            self.step += 1
            self.bad_steps += 1
            if self.bad_steps == MOST_BAD_STEPS:
                raise StandInError(f"loss or gradients were no numbers in {MOST_BAD_STEPS} steps in a row, up to step "
                                   f"{self.step}, and changed nothing: look at the data, or lower the learning rate, "
                                   "and start again.")
            return math.nan
        self.bad_steps = 0
        self.whole = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for key, mean in self.average.items():
            mean.lerp_(self.weights[key].detach(), 1 - self.settings.ema)
        self.step += 1
        self.whole = True
        return value

    def _gradients(self, batches: list[Batch]) -> float:
        """Of the mean loss of all batches of all processes, which is returned."""
        value = 0.0
        for batch in batches:
            weight = len(batch.video) / self.settings.batch_size

            def backward(loss: torch.Tensor, weight: float = weight) -> None:
                self.scaler.scale(weight * loss).backward()

            value += weight * flow_matching_loss(self.wan, self.adapter, batch, self.settings.checkpointing, backward)
        if self.processes is None:
            return value
        for tensor in self.weights.values():
            if tensor.grad is not None:
                tensor.grad = self.processes.reduce(tensor.grad, "sum")
        return float(self.processes.reduce(torch.tensor(value, device=self.processes.device), "sum"))

    def draw(self, step: int) -> list[Batch]:
        """What this process learns from in a step: its share of ``batch_size`` times a video and one of its photos."""
        generator = torch.Generator().manual_seed((self.settings.seed * SEED_STRIDE + step) % 2**63)
        first, every = self.share
        drawn = []
        for number in range(self.settings.batch_size):
            chosen, photo, noise_seed = (int(torch.randint(2**31, (1,), generator=generator)) for _ in range(3))
            sigma = self.settings.sigma(torch.rand(1, generator=generator))
            if number % every != first:
                continue
            example = self.examples[chosen % len(self.examples)]
            noise = torch.randn(example.video.shape, generator=torch.Generator().manual_seed(noise_seed))
            drawn.append((example.video, noise, example.photos[photo % len(example.photos)], example.context, sigma[0]))
        return [self._batch(drawn[i:i + self.settings.together]) for i in range(0, len(drawn), self.settings.together)]

    def _batch(self, drawn: list[tuple[torch.Tensor, ...]]) -> Batch:
        device = self._device
        video, noise, photo, context, sigma = (torch.stack(each) for each in zip(*drawn))
        return Batch(*(x.to(device, torch.float32) for x in (video, noise)),
                     *(x.to(device, self.wan.dtype) for x in (photo, context)), sigma.to(device))

    def save(self, path: Path) -> None:
        """A checkpoint, from which ``resume`` goes on."""
        unfinished = path.with_suffix(".part")
        torch.save({"step": self.step, "settings": self._told(), "average": self.average,
                    "weights": {key: tensor.detach() for key, tensor in self.weights.items()},
                    "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}, unfinished)
        unfinished.replace(path)  # a full disk leaves the last good one

    def resume(self, path: Path) -> None:
        """Raises StandInError for a checkpoint of another training."""
        saved = torch.load(path, map_location="cpu", weights_only=True)
        differing = [name for name, value in self._told().items()
                     if name not in FREE and saved["settings"].get(name) != value]
        if differing:
            raise StandInError(f"{path} was trained otherwise ({', '.join(differing)}): set that alike to go on, or "
                               "take another name to begin anew.")
        with torch.no_grad():
            for key, tensor in saved["weights"].items():
                self.weights[key].copy_(tensor)
            for key, tensor in saved["average"].items():
                self.average[key].copy_(tensor)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step = saved["step"]

    def _told(self) -> dict:
        return {**dataclasses.asdict(self.settings), **self.origin}
