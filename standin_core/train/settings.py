"""How to train, for which of a model's noise levels, and what to show on the way."""
from __future__ import annotations

import math
from dataclasses import dataclass

import comfy.model_sampling
import torch

from ..checks import check_choice, check_number
from ..errors import UserError
from ..folders import plain_name
from ..sampler import unshifted

# noise levels of Wan 2.2's experts: the boundary of its text-to-video model (Wan 2.2, wan/configs/wan_t2v_A14B.py)
EXPERTS = {"single": (0.0, 1.0), "high noise": (0.875, 1.0), "low noise": (0.0, 0.875)}


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The steps.

    steps: how many.
    batch_size: examples of a step, over all devices.
    together: how many of them are computed at a time, which costs memory and saves time where a GPU is not busy with
        one.
    learning_rate: of the steps after the warm-up.
    loraplus_ratio: learning rate of a low-rank pair's up weights over that of its down weights (LoRA+,
        arXiv 2402.12354); 1 is plain LoRA.
    warmup: steps over which the learning rate rises.
    cosine: let the learning rate fall as a cosine, to a tenth at the last step.
    linear: let the learning rate fall evenly after the warm-up; it would be zero in the step after the last.
    weight_decay: of AdamW.
    max_grad_norm: to which gradients are scaled down.
    ema: decay of a moving average of the weights, which is then what is saved; 0 for none.
    noise_from, noise_to: the noise levels of this model, within 0 to 1.
    shift: of the noise levels; 1 draws them evenly, and more draws high ones more often.
    reference_dropout: share of the examples whose reference latent is zeros, for methods that take this as "without a
        reference".
    checkpointing: keep no activations inside the model's blocks but compute them again in the backward pass.
    seed: decides all that is drawn.

    Raises UserError for values that cannot be.
    """

    steps: int = 3000
    batch_size: int = 1
    together: int = 1
    learning_rate: float = 1e-4
    loraplus_ratio: float = 1.0
    warmup: int = 100
    cosine: bool = False
    linear: bool = False
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema: float = 0.0
    noise_from: float = 0.0
    noise_to: float = 1.0
    shift: float = 1.0
    reference_dropout: float = 0.0
    checkpointing: bool = True
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "together"):
            check_number(getattr(self, name), name, 1, whole=True)
        for name in ("learning_rate", "loraplus_ratio", "max_grad_norm", "shift"):
            check_number(getattr(self, name), name, above=0)
        for name in ("warmup", "seed"):
            check_number(getattr(self, name), name, 0, whole=True)
        check_number(self.weight_decay, "weight_decay", 0)
        check_number(self.ema, "ema", 0, below=1, hint="0.999 is usual, 0 is none")
        check_number(self.reference_dropout, "reference_dropout", 0, below=1, hint="0.1 is usual, 0 is none")
        if self.cosine and self.linear:
            raise UserError("cosine and linear cannot both be true: set one of them to false.")
        for name in ("noise_from", "noise_to"):
            check_number(getattr(self, name), name, 0, 1)
        if self.noise_from >= self.noise_to:
            raise UserError("the noise levels must be a range within 0 to 1, such as 0.875 to 1 for Wan 2.2's "
                            f"high-noise expert, but are {self.noise_from} to {self.noise_to}.")

    def sigma(self, uniform: torch.Tensor) -> torch.Tensor:
        """Noise levels of numbers evenly spread over 0 to 1: ``shift s / (1 + (shift - 1) s)``, as a sampler's."""
        first, last = (unshifted(self.shift, level) for level in (self.noise_from, self.noise_to))
        return comfy.model_sampling.time_snr_shift(self.shift, first + (last - first) * uniform)

    def rate_share(self, step: int) -> float:
        """What share of its learning rate a step takes, 0 to 1; steps count from 0."""
        risen = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.linear:
            return min(risen, (self.steps - step) / max(self.steps - self.warmup, 1))
        if not self.cosine:
            return risen
        done = min(1.0, step / max(self.steps - 1, 1))
        return risen * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """What is trained; a method adds settings of its own.

    name: of the run and of the file that is made.
    expert: one of EXPERTS, which sets the noise levels.

    Raises UserError for values that cannot be.
    """

    name: str
    expert: str = "single"

    def __post_init__(self):
        check_choice(self.expert, "expert", EXPERTS)
        plain_name(self.name)


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """The checkpoints, and the picture that is drawn for each of them.

    every: steps between two checkpoints; 0 for one at the end alone.
    count: examples in a picture.
    steps, cfg, shift: of the sampler.

    Raises UserError for values that cannot be.
    """

    every: int = 500
    count: int = 4
    steps: int = 20
    cfg: float = 5.0
    shift: float = 5.0

    def __post_init__(self):
        check_number(self.every, "every", 0, whole=True)
        for name in ("count", "steps"):
            check_number(getattr(self, name), name, 1, whole=True)
        check_number(self.cfg, "cfg")
        check_number(self.shift, "shift", above=0)
