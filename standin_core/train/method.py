"""What the trainer asks of a method. Each method answers it in its own folder; nothing in ``train`` knows any."""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch

from ..wan import Wan
from .settings import MethodSettings, TrainSettings


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The sizes of a Wan.

    dim, ffn_dim: widths of the blocks and of their feed-forward.
    blocks: how many.
    parameters, bytes: of all weights.
    """

    dim: int
    ffn_dim: int
    blocks: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Videos, each with photos of its persons, in model space, on the device of the model.

    video, noise: [B, 16, T, h, w] float32
    reference: [B, 16, M, h, w], a photo of each of M persons, in the dtype of the model.
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

    The class has:
    title: its name on the nodes.
    makes: what comes of a training, in a few words.
    table: the name of the configuration's table that holds the method's settings.
    Settings: the dataclass of that table.
    defaults: what counts where a configuration says nothing, table -> key -> value; else the trainer's own defaults do.

    An object has:
    origin: what tells a training of it from others, in checkpoints and in the finished file: key -> value.
    saving: what lowers the memory of this method, beside what lowers it for every method, in words.
    """

    title: ClassVar[str]
    makes: ClassVar[str]
    table: ClassVar[str]
    Settings: ClassVar[type[MethodSettings]]
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]]
    origin: dict[str, str]
    saving: str

    @property
    def settings(self) -> MethodSettings:
        """As they were given."""

    @classmethod
    def of(cls, settings: Any) -> Self:
        """The method with settings of the class ``Settings``; raises UserError where a file that they name is not there
        or does not fit.
        """

    @property
    def file(self) -> Path:
        """Where the method's nodes look for what is made."""

    def load(self, file: Path):
        """The ModelPatcher to train, from a file of ComfyUI's folder diffusion_models."""

    def check(self, wan: Wan, video: tuple[int, ...], photo: tuple[int, ...], fit: str) -> None:
        """Raise UserError where the method cannot train this model on these data; nothing is on its device yet.

        video, photo: shapes of the latents of an example, [16, T, h, w] and [16, M, h, w].
        fit: how the photos were brought to their size, one of ``data.recipe.FITS``, or "" where that is not known.
        """

    def lines(self, size: ModelSize) -> list[str]:
        """What the plan says of the method beside its ``origin``: lines of a label of 12 characters and words."""

    def frozen_bytes(self, size: ModelSize) -> int:
        """Bytes of the model's own weights beside those that are trained."""

    def parameters(self, size: ModelSize) -> int:
        """How many numbers are trained."""

    def activations(self, size: ModelSize, video: int, photo: int, checkpointing: bool) -> float:
        """How many numbers one example holds at the peak of a step.

        video, photo: tokens of the video and of its photos.
        """

    def begin(self, wan: Wan, seed: int, device: torch.device) -> Learner:
        """The parameters to train, as they are before the first step.

        wan: the model. Where its own weights are trained, they are changed; where they are not, it is changed only in
            what takes gradients.
        device: where the parameters are to be.
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

    def applied(self, model, photo: torch.Tensor):
        """A clone of the ModelPatcher that is trained on, which samples with these persons.

        photo: [1, 16, M, h, w], VAE space.
        """

    def save(self, weights: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        """Write weights to a file from which the method's nodes load them; what is there is replaced at once."""
