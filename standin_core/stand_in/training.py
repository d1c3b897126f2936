"""Stand-In as the trainer asks for it: what is trained are the low-rank weights of the identity stream."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import comfy.sd
import torch

from ..checks import check_number
from ..errors import UserError
from ..folders import find_file, new_file
from ..train import session
from ..train.data.recipe import AS_CROPPED, TO_CLIP
from ..train.low_rank import low_rank_optimizer
from ..train.method import Batch, ModelSize
from ..train.settings import MethodSettings, TrainSettings
from ..wan import Wan
from .adapter import ADAPTERS, Adapter, check_fit, load_adapter, parse_adapter
from .apply import apply_identity_branch
from .objective import reading_photo
from .parameters import as_adapter, new_adapter, parameters, save_adapter
from .variant import PAPER, Variant

TRAINING = "stand_in_training"  # the folder of ComfyUI's output that holds the data and the runs

# What training holds at its peak beside the weights, in numbers for each video token, C for dim and F for ffn_dim:
# with checkpointing 15 C + 2.7 F in the block at work, and C for each block; without, 10.9 C + 1.35 F for each block
# and 7 C more. Read off PyTorch's allocator for tiny models of 6 and 12 blocks, F/C 1 and 4, 1,024 and 2,304 tokens;
# tests/test_train_run.py compares.
AT_WORK, EACH_BLOCK, LAST = (15.0, 2.7), (10.9, 1.35), 7.0
IDENTITY_KEPT = 5.5  # C for each identity token and block, with checkpointing


@dataclass(frozen=True, slots=True)
class AdapterSettings(MethodSettings):
    """The adapter.

    rank: of the low-rank weights; the authors take 128.
    start_from: a file to go on from, by its path or its name in ComfyUI's folder; its rank then counts.

    Raises UserError for values that cannot be.
    """

    rank: int = 128
    start_from: str = ""

    def __post_init__(self):
        MethodSettings.__post_init__(self)
        check_number(self.rank, "rank", 1, whole=True, hint="the authors take 128")


class StandInMethod:
    """A ``train.method.Method``.

    start_from: an adapter to go on from, whose rank and variant then count; None for a new one.
    variant: where the identity tokens stand, and what they read.
    """

    title: ClassVar[str] = "Stand-In"
    makes: ClassVar[str] = "an adapter for Load Stand-In"
    table: ClassVar[str] = "adapter"
    Settings: ClassVar[type[MethodSettings]] = AdapterSettings
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # the trainer's defaults are the paper's
    saving = "weights in fp8"

    def __init__(self, settings: AdapterSettings, start_from: Adapter | None = None, variant: Variant = PAPER):
        self.settings, self.start_from = settings, start_from
        self.rank, self.variant = ((settings.rank, variant) if start_from is None else
                                   (start_from.rank, start_from.variant))
        self.origin = {"rank": str(self.rank), "start_from": start_from.sha256[:16] if start_from else "",
                       **self.variant.metadata}

    @classmethod
    def of(cls, settings: AdapterSettings) -> StandInMethod:
        given = settings.start_from
        return cls(settings, load_adapter(find_file(ADAPTERS, given)) if given else None)

    @property
    def file(self) -> Path:
        return new_file(ADAPTERS, self.settings.name)

    def load(self, file: Path):
        return comfy.sd.load_diffusion_model(str(file))

    def check(self, wan: Wan, video: tuple[int, ...], photo: tuple[int, ...], fit: str) -> None:
        if not wan.from_text_alone:
            raise UserError("this Wan takes more than noise and text (image-to-video, VACE, 5B), but adapters are "
                            "trained on the text-to-video models: connect one of those; the adapter serves VACE too.")
        if photo[1] != 1:
            raise UserError(f"the data have {photo[1]} persons in a clip, but an adapter is trained on one: prepare "
                            "data with one person in each clip.")
        if fit == TO_CLIP:
            raise UserError("the data's photos are fitted to the clip, as Concat-ID needs them, but an adapter reads "
                            f'them as they were cropped: prepare data with method Stand-In, or fit = "{AS_CROPPED}" in '
                            "[photos].")
        if self.start_from is not None:
            check_fit(self.start_from, len(wan.blocks), wan.dim)

    def lines(self, size: ModelSize) -> list[str]:
        return []

    def frozen_bytes(self, size: ModelSize) -> int:
        return size.bytes

    def parameters(self, size: ModelSize) -> int:
        """Down and up of Q, K and V: at rank 128, 35.4 M for Wan 1.3B and 157.3 M for 14B."""
        return size.blocks * 3 * 2 * size.dim * self.rank

    def activations(self, size: ModelSize, video: int, photo: int, checkpointing: bool) -> float:
        def of(part: tuple[float, float]) -> float:
            return part[0] * size.dim + part[1] * size.ffn_dim

        if checkpointing:
            return video * of(AT_WORK) + size.blocks * size.dim * (video + IDENTITY_KEPT * photo)
        return size.blocks * (video + photo) * of(EACH_BLOCK) + LAST * video * size.dim

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
        return low_rank_optimizer(self.module, settings)

    @contextlib.contextmanager
    def velocity(self, noisy: torch.Tensor, batch: Batch, checkpointing: bool) -> Iterator[torch.Tensor]:
        """The identity stream is computed anew, and its K and V stay attached."""
        with reading_photo(self.wan, self.adapter, noisy.shape, batch.reference, checkpointing):
            yield self.wan(noisy.to(self.wan.dtype), 1000 * batch.sigma, batch.context)

    def applied(self, model, photo: torch.Tensor):
        adapter = parse_adapter(dict(self.weights), "in training", variant=self.adapter.variant)
        return apply_identity_branch(model, adapter, photo)

    def save(self, weights: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        """The official names, which Load Stand-In and every other reader of these files take."""
        save_adapter(weights, file, metadata)


def train_adapter(model, shards: Path, adapter: AdapterSettings, settings: TrainSettings,
                  on_step: Callable[[int, float], None], start_from: Adapter | None = None,
                  **others) -> tuple[Adapter, Path]:
    """Train an adapter with ``session.train``, which has the other arguments; returns it, and the run's folder."""
    method = StandInMethod(adapter, start_from)
    folder = session.train(model, method, shards, settings, on_step, **others)
    return load_adapter(method.file), folder
