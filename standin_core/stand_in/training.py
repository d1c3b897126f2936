"""Stand-In as the trainer asks for it: what is trained are the low-rank weights of the identity stream."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..folders import find_file
from ..train import session
from ..train.method import Batch, ModelSize
from ..train.settings import AdapterSettings, TrainSettings
from ..wan import Wan
from .adapter import ADAPTERS, Adapter, check_fit, load_adapter, parse_adapter
from .apply import apply_identity_branch
from .objective import identity_read
from .parameters import as_adapter, new_adapter, parameters, save_adapter
from .variant import PAPER, Variant

TRAINING = "stand_in_training"  # the folder of ComfyUI's output that holds the data and the runs

# What training holds at its peak beside the weights, in numbers for each video token, C for dim and F for ffn_dim:
# with checkpointing 15 C + 2.7 F in the block at work, and C for each block; without, 10.9 C + 1.35 F for each block
# and 7 C more. Read off PyTorch's allocator for tiny models of 6 and 12 blocks, F/C 1 and 4, 1,024 and 2,304 tokens;
# tests/test_train_run.py compares.
AT_WORK, KEPT, LAST = (15.0, 2.7), (10.9, 1.35), 7.0
IDENTITY_KEPT = 5.5  # C for each identity token and block, with checkpointing


class StandInMethod:
    """A ``train.method.Method``.

    rank: of the low-rank weights.
    start_from: an adapter to go on from, whose rank and variant then count; None for a new one.
    variant: where the identity tokens stand, and what they read.
    """

    def __init__(self, rank: int, start_from: Adapter | None = None, variant: Variant = PAPER):
        self.rank, self.variant = (rank, variant) if start_from is None else (start_from.rank, start_from.variant)
        self.start_from = start_from
        self.origin = {"rank": str(self.rank), "start_from": start_from.sha256[:16] if start_from else "",
                       **self.variant.metadata}

    @classmethod
    def of(cls, settings: AdapterSettings) -> StandInMethod:
        """The method that the settings name; raises UserError where there is no such adapter to go on from."""
        given = settings.start_from
        return cls(settings.rank, load_adapter(find_file(ADAPTERS, given)) if given else None)

    def check(self, wan: Wan) -> None:
        if self.start_from is not None:
            check_fit(self.start_from, len(wan.blocks), wan.dim)

    def parameters(self, size: ModelSize) -> int:
        """Down and up of Q, K and V: at rank 128, 35.4 M for Wan 1.3B and 157.3 M for 14B."""
        return size.blocks * 3 * 2 * size.dim * self.rank

    def activations(self, size: ModelSize, video: int, photo: int, checkpointing: bool) -> float:
        def of(part: tuple[float, float]) -> float:
            return part[0] * size.dim + part[1] * size.ffn_dim

        if checkpointing:
            return video * of(AT_WORK) + size.blocks * size.dim * (video + IDENTITY_KEPT * photo)
        return size.blocks * (video + photo) * of(KEPT) + LAST * video * size.dim

    def begin(self, wan: Wan, seed: int, device: torch.device) -> StandInLearner:
        wan.model.requires_grad_(False)
        learner = StandInLearner(wan, new_adapter(len(wan.blocks), wan.dim, self.rank, seed, device, self.variant))
        if self.start_from is not None:
            with torch.no_grad():
                for key, tensor in parameters(self.start_from).items():
                    learner.weights[key].copy_(tensor)
        return learner


class StandInLearner:
    """A ``train.method.Learner``.

    wan: the model, of which nothing is trained.
    module: of ``new_adapter``.
    """

    def __init__(self, wan: Wan, module: torch.nn.Module):
        self.wan, self.module = wan, module
        self.adapter = as_adapter(module)
        self.weights = parameters(self.adapter)

    def optimizer(self, settings: TrainSettings) -> torch.optim.Optimizer:
        from peft.optimizers import create_loraplus_optimizer  # 6 s

        return create_loraplus_optimizer(
            self.module,  # type: ignore[arg-type]  # PEFT says PeftModel, and takes any module with its layers
            torch.optim.AdamW, lr=settings.learning_rate, loraplus_lr_ratio=settings.loraplus_ratio,
            loraplus_weight_decay=settings.weight_decay, weight_decay=settings.weight_decay)

    @contextlib.contextmanager
    def velocity(self, noisy: torch.Tensor, batch: Batch, checkpointing: bool) -> Iterator[torch.Tensor]:
        """The identity stream is computed anew, and its K and V stay attached."""
        with identity_read(self.wan, self.adapter, noisy.shape, batch.reference, checkpointing):
            yield self.wan(noisy.to(self.wan.dtype), 1000 * batch.sigma, batch.context)

    def applied(self, model, weights: dict[str, torch.Tensor], photo: torch.Tensor):
        return apply_identity_branch(model, parse_adapter(weights, "in training", variant=self.adapter.variant), photo)

    def save(self, weights: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        """The official names, which Load Stand-In and every other reader of these files take."""
        save_adapter(weights, file, metadata)


def train_adapter(model, shards: Path, file: Path, adapter: AdapterSettings, settings: TrainSettings,
                  on_step: Callable[[int, float], None], start_from: Adapter | None = None,
                  **others) -> tuple[Adapter, Path]:
    """Train an adapter with ``session.train``, which has the other arguments; returns it, and the run's folder."""
    folder = session.train(model, StandInMethod(adapter.rank, start_from), shards, file, adapter, settings, on_step,
                           **others)
    return load_adapter(file), folder
