"""The training loop: steps that depend on nothing but the seed, their number and the trainer's state.

What a step draws (examples, photos, noise, noise levels) comes from a generator seeded by (seed, step), so a run that
was interrupted goes on bit for bit as if it had not been, without any state of a generator being saved. Several
devices share the examples of a step and add up their gradients.
"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import comfy.model_management
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..errors import UserError
from .data.shards import Examples
from .flow_matching import flow_matching_loss
from .method import Batch, Learner
from .settings import TrainSettings

SEED_STRIDE = 1_000_003  # two seeds share no step for as long as anybody trains
MOST_BAD_STEPS = 10  # in a row, before it is no accident


class Trainer:
    """Trains a method's parameters on examples.

    learner: the parameters and the model.
    origin: what else tells this training from others (its data, its base model).
    accelerator: ``accelerate.Accelerator`` where several devices train together, with a process for each.

    Raises UserError where there are no examples, and where the devices cannot share a step evenly.
    """

    def __init__(self, learner: Learner, examples: Examples, settings: TrainSettings,
                 origin: dict[str, str] | None = None, accelerator=None):
        if not len(examples):
            raise UserError("there are no examples to train on: see what the preparation of the data dropped.")
        self.share = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
        if settings.batch_size % self.share[1]:
            raise UserError(f"batch_size is {settings.batch_size} and {self.share[1]} devices share it: take a "
                            "multiple of their number.")
        self.learner, self.examples, self.settings, self.accelerator = learner, examples, settings, accelerator
        self.origin = origin or {}
        self.weights = learner.weights
        self.average = {key: tensor.detach().clone() for key, tensor in self.weights.items()} if settings.ema else {}
        self.optimizer = learner.optimizer(settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, settings.rate_share)
        # fp16 has no numbers for gradients as small as those of a mean over a video
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=learner.wan.dtype == torch.float16)
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

    @contextlib.contextmanager
    def as_saved(self) -> Iterator[None]:
        """Within the context, the parameters have the values that are saved."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for key, average in self.average.items():
            weight = self.weights[key]
            weight.data, average.data = average.data, weight.data

    def train_step(self) -> float:
        """Take one step; returns its loss.

        A loss or a gradient that is not finite changes nothing, and NaN is returned; after MOST_BAD_STEPS such steps in
        a row, UserError is raised.
        """
        self.optimizer.zero_grad(set_to_none=True)
        value = self._gradients(self.draw(self.step))
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.settings.max_grad_norm)
        good = math.isfinite(value) and math.isfinite(norm)
        self.whole = False
        if good:
            self.scaler.step(self.optimizer)
            if self.average:
                get_ema_multi_avg_fn(self.settings.ema)(list(self.average.values()), list(self.weights.values()), None)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            self.optimizer.step()  # without gradients it changes nothing; the schedule wants a step before its own
        self.scaler.update()
        self.schedule.step()
        self.step += 1
        self.whole = True
        self.bad_steps = 0 if good else self.bad_steps + 1
        if self.bad_steps == MOST_BAD_STEPS:
            raise UserError(f"the loss or its gradients were not finite in {MOST_BAD_STEPS} steps in a row, up to step "
                            f"{self.step}, and changed nothing: look at the data, or lower the learning rate, and "
                            "start again.")
        return value if good else math.nan

    def _gradients(self, batches: list[Batch]) -> float:
        """Add up the gradients of the mean loss of all batches of all devices; returns that loss."""
        value = 0.0
        for batch in batches:
            comfy.model_management.throw_exception_if_processing_interrupted()
            weight = len(batch.video) / self.settings.batch_size

            def backward(loss: torch.Tensor, weight: float = weight) -> None:
                self.scaler.scale(weight * loss).backward()

            value += weight * flow_matching_loss(self.learner, batch, self.settings.checkpointing, backward)
        if self.accelerator is None:
            return value
        for tensor in self.weights.values():
            if tensor.grad is not None:
                tensor.grad = self.accelerator.reduce(tensor.grad, "sum")
        return float(self.accelerator.reduce(torch.tensor(value, device=self.accelerator.device), "sum"))

    def draw(self, step: int) -> list[Batch]:
        """This device's share of a step: ``batch_size`` times a video and one of its photos."""
        generator = torch.Generator().manual_seed((self.settings.seed * SEED_STRIDE + step) % 2**63)
        first, every = self.share
        drawn = []
        for number in range(self.settings.batch_size):
            chosen, photo, noise_seed = (int(torch.randint(2**31, (1,), generator=generator)) for _ in range(3))
            sigma = self.settings.sigma(torch.rand(1, generator=generator))
            if number % every != first:
                continue
            example = self.examples[chosen % len(self.examples)]
            own = torch.Generator().manual_seed(noise_seed)
            noise = torch.randn(example.video.shape, generator=own)
            reference = example.photos[photo % len(example.photos)]
            if float(torch.rand(1, generator=own)) < self.settings.reference_dropout:
                reference = torch.zeros_like(reference)
            drawn.append((example.video, noise, reference, example.context, sigma[0]))
        return [self._batch(drawn[i:i + self.settings.together]) for i in range(0, len(drawn), self.settings.together)]

    def _batch(self, drawn: Sequence[tuple[torch.Tensor, ...]]) -> Batch:
        device = self._device
        video, noise, reference, context, sigma = (torch.stack(each) for each in zip(*drawn))
        video, noise = (x.to(device, torch.float32) for x in (video, noise))
        reference, context = (x.to(device, self.learner.wan.dtype) for x in (reference, context))
        return Batch(video, noise, reference, context, sigma.to(device))

    def state(self) -> dict:
        """All that the next step follows from, beside the settings and the examples."""
        return {"step": self.step, "average": self.average,
                "weights": {key: tensor.detach() for key, tensor in self.weights.items()},
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def restore(self, state: dict) -> None:
        """Go on from a ``state``; the learning rates are those of the settings."""
        with torch.no_grad():
            for key, tensor in state["weights"].items():
                self.weights[key].copy_(tensor)
            for key, tensor in state["average"].items():
                self.average[key].copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        for group, rate in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["initial_lr"] = rate
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.settings.rate_share, self.step - 1)
