"""What the trainer asks of a method. Each method answers it in its own folder; nothing in ``train`` knows any."""
from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ..wan import Wan
from .settings import TrainSettings


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The sizes of a Wan.

    dim, ffn_dim: widths of the blocks and of their feed-forward.
    blocks: how many.
    bytes: of all weights.
    """

    dim: int
    ffn_dim: int
    blocks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Videos, each with a photo of its person, in model space, on the device of the model.

    video, noise: [B, 16, T, h, w] float32
    reference: [B, 16, 1, h, w], the photos, in the dtype of the model.
    context: [B, N, text dim], the text encoder's, in the dtype of the model.
    sigma: [B] float32 in 0..1, the noise levels.
    """

    video: torch.Tensor
    noise: torch.Tensor
    reference: torch.Tensor
    context: torch.Tensor
    sigma: torch.Tensor


class Method(Protocol):
    """A method with its settings, before there is a model.

    origin: what tells a training of it from others, in checkpoints and in the finished file: key -> value.
    """

    origin: dict[str, str]

    def check(self, wan: Wan) -> None:
        """Raise UserError where the method cannot train this model; nothing of it is loaded yet."""

    def parameters(self, size: ModelSize) -> int:
        """How many numbers are trained."""

    def activations(self, size: ModelSize, video: int, photo: int, checkpointing: bool) -> float:
        """How many numbers one example holds at the peak of a step.

        video, photo: their tokens.
        """

    def begin(self, wan: Wan, seed: int, device: torch.device) -> Learner:
        """The parameters to train, as they are before the first step.

        wan: the model; it is changed only in what takes gradients.
        device: where the parameters shall be.
        """


class Learner(Protocol):
    """A method's parameters and the model that computes with them.

    wan: the model.
    weights: name -> parameter, float32, all that is trained.
    """

    wan: Wan
    weights: dict[str, torch.Tensor]

    def optimizer(self, settings: TrainSettings) -> torch.optim.Optimizer:
        """For all of ``weights``, with the learning rates of a step after the warm-up."""

    def velocity(self, noisy: torch.Tensor, batch: Batch, checkpointing: bool) -> AbstractContextManager[torch.Tensor]:
        """The model's prediction [B, 16, T, h, w] for ``noisy`` of that shape, with the method at work.

        The backward pass belongs inside the context too.
        """

    def applied(self, model, weights: dict[str, torch.Tensor], photo: torch.Tensor):
        """A clone of a ModelPatcher that samples with this identity.

        weights: the values to take for those of ``self.weights``.
        photo: [1, 16, 1, h, w], VAE space.
        """

    def save(self, weights: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        """Write weights to a file from which the method's nodes load them; what is there is replaced at once."""
