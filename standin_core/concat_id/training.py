"""Concat-ID as the trainer asks for it: the model itself learns to read the frames that are appended to the video.

The recipe is that of ML-GSAI/Concat-ID's ``train_concat-id_wan2.1.py`` and of arXiv 2503.14151: the references are
appended as clean latents with the timestep of the video, a tenth of them as zeros; the loss counts the frames of the
video alone; the AdaLN variant's own modulation begins as a copy of the video's.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import comfy.sd
import folder_paths
import safetensors
import safetensors.torch
import torch
from comfy.quant_ops import QuantizedTensor

from ..checks import check_choice, check_number
from ..errors import UserError
from ..files import replacing
from ..folders import plain_name
from ..latents import in_pixels
from ..train import session
from ..train.data.recipe import AS_CROPPED, TO_CLIP
from ..train.data.shards import CachedExamples
from ..train.low_rank import DOWN, UP, low_rank_modules, low_rank_optimizer, low_rank_weights
from ..train.method import Batch, ModelSize
from ..train.settings import MethodSettings, TrainSettings
from ..wan import Wan, differentiable
from ..weights import COMPUTED, SAFETENSORS
from ..words import shown
from .apply import apply_concat_id
from .forward import ReferenceModulation, references_appended
from .model import (
    OWN_BIAS,
    OWN_BLOCK,
    OWN_WEIGHT,
    REFERENCES,
    WIDEST,
    ConcatID,
    came_from_concat_id,
    check_fit,
    is_adaln,
    load_concat_id,
)

VARIANTS = FIRST_STAGE, ADALN = ("first stage", "AdaLN")
WEIGHTS = ALL, LOW_RANK = ("all", "low rank")
LAYERS = (*(f"{attention}.{which}" for attention in ("self_attn", "cross_attn") for which in "qkvo"), "ffn.0", "ffn.2")
OWN_BLOCKS = "modulation_ref"  # the vectors of all blocks as one tensor, while they are trained

# What training holds at its peak beside the weights and their gradients, in numbers for each token of the video and the
# references, C for dim and F for ffn_dim: with checkpointing, (C, F) in the block at work, and C for each block; where
# all weights are trained, the inputs of the blocks go as fast as the gradients come. Without checkpointing, (C, F) for
# each block, and C once. Read off PyTorch's allocator for tiny models of 4 and 8 blocks, F/C 1 and 4, 576 and 768
# tokens, to which they fit within 2 %; tests/test_train_concat_id.py compares.
AT_WORK = {ALL: (23.1, 2.2), LOW_RANK: (19.7, 3.5)}
KEPT = {ALL: 0.0, LOW_RANK: 0.75}
EACH_BLOCK = {ALL: (19.8, 1.6), LOW_RANK: (17.0, 2.2)}
LAST = 4.7


@dataclass(frozen=True, slots=True)
class ConcatIDSettings(MethodSettings):
    """The model.

    variant: one of VARIANTS. "AdaLN" gives the references a modulation of their own.
    weights: one of WEIGHTS. "all" trains the whole model, as the authors do; "low rank" trains low-rank weights beside
        the linear layers of the blocks, which are added to the model in the file.
    rank: of the low-rank weights.
    references: how many persons a clip shows; their photos are appended from left to right.

    Raises UserError for values that cannot be.
    """

    variant: str = ADALN
    weights: str = ALL
    rank: int = 128
    references: int = 1

    def __post_init__(self):
        MethodSettings.__post_init__(self)
        check_choice(self.variant, "variant", VARIANTS)
        check_choice(self.weights, "weights", WEIGHTS)
        for name in ("rank", "references"):
            check_number(getattr(self, name), name, 1, whole=True)
        if self.expert != "single":
            raise UserError(f"expert is {self.expert}, but Concat-ID is trained on Wan 2.1, which has no experts: set "
                            "expert to single.")


class ConcatIDMethod:
    """A ``train.method.Method``.

    own: the modulation of the references to begin with; None for copies of the model's.
    metadata: what the file of the model says of itself; ComfyUI reads from it what the weights do not tell.
    """

    title: ClassVar[str] = "Concat-ID"
    makes: ClassVar[str] = "a model for Load Concat-ID"
    table: ClassVar[str] = "concat_id"
    Settings: ClassVar[type[MethodSettings]] = ConcatIDSettings
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "data": {"fps": 16.0, "face": {"preset": "Concat-ID"}},
        "photos": {"fit": TO_CLIP, "noise_draws": 4},
        "train": {"learning_rate": 1e-5, "warmup": 150, "linear": True, "weight_decay": 0.01, "shift": 5.0,
                  "reference_dropout": 0.1},
    }

    def __init__(self, settings: ConcatIDSettings, own: ReferenceModulation | None = None,
                 metadata: Mapping[str, str] | None = None):
        self.settings, self.own, self.metadata = settings, own, dict(metadata or {})
        self.origin = {"variant": settings.variant, "weights": settings.weights}
        if settings.weights == LOW_RANK:
            self.origin["rank"] = str(settings.rank)
        if settings.references > 1:
            self.origin["references"] = str(settings.references)
        self.saving = "a lower rank" if settings.weights == LOW_RANK else f"weights {LOW_RANK}"

    @classmethod
    def of(cls, settings: ConcatIDSettings) -> ConcatIDMethod:
        return cls(settings)

    @property
    def file(self) -> Path:
        return Path(folder_paths.models_dir) / "diffusion_models" / f"{plain_name(self.settings.name)}.safetensors"

    def load(self, file: Path):
        """The ModelPatcher of a file. The training begins with the modulation of the reference that the file has."""
        model, concat_id = load_concat_id(file)
        self.own, self.metadata = concat_id.own, _metadata(file)
        return model

    def check(self, wan: Wan, video: tuple[int, ...], photo: tuple[int, ...], fit: str) -> None:
        if not wan.from_text_alone or wan.dim > WIDEST:
            raise UserError(f"this is a Wan of width {wan.dim}"
                            f"{'' if wan.from_text_alone else ' that takes more than noise and text'}, but Concat-ID "
                            "is trained on Wan 2.1's text-to-video model of 1.3B, or on a Concat-ID file: take one of "
                            "those.")
        # what is quantised has the dtype of what it is made into
        if any(parameter.dtype not in COMPUTED or isinstance(parameter, QuantizedTensor)
               for parameter in wan.model.parameters()):
            raise UserError("the model's weights are in fp8 or quantised, but training changes them: take the model "
                            "in fp32, fp16 or bf16.")
        if self.own is not None and self.settings.variant == FIRST_STAGE:
            raise UserError(f"variant is {FIRST_STAGE}, but the model's file has the modulation of an AdaLN: set "
                            f"variant to {ADALN}, or begin with another file.")
        if fit == AS_CROPPED or photo[2:] != video[2:]:
            raise UserError(f"the photos are encoded as they were cropped, at {in_pixels(photo)}, but Concat-ID "
                            f"appends the photo to a clip of {in_pixels(video)}: prepare data with method Concat-ID, "
                            f'or fit = "{TO_CLIP}" in [photos].')
        if photo[1] != self.settings.references:
            raise UserError(f"references is {self.settings.references}, but the data have photos of {photo[1]} "
                            "persons in each clip: set references to that, or take other data.")

    def lines(self, size: ModelSize) -> list[str]:
        return [f"files       a whole model of {size.bytes / 2**30:.1f} GiB at every checkpoint and at the end"]

    def frozen_bytes(self, size: ModelSize) -> int:
        return size.bytes if self.settings.weights == LOW_RANK else 0

    def parameters(self, size: ModelSize) -> int:
        """For Wan 1.3B with AdaLN: 1,433.4 M with all weights, or 189.4 M at rank 128."""
        own = (6 * size.dim**2 + 6 * size.dim + 6 * size.dim * size.blocks) * (self.settings.variant == ADALN)
        if self.settings.weights == ALL:
            return size.parameters + own
        return own + self.settings.rank * sum(map(sum, _layers(size.blocks, size.dim, size.ffn_dim).values()))

    def activations(self, size: ModelSize, video: int, photo: int, checkpointing: bool) -> float:
        def of(part: tuple[float, float]) -> float:
            return part[0] * size.dim + part[1] * size.ffn_dim

        tokens, weights = video + photo, self.settings.weights
        if checkpointing:
            return tokens * (of(AT_WORK[weights]) + KEPT[weights] * size.blocks * size.dim)
        return tokens * (size.blocks * of(EACH_BLOCK[weights]) + LAST * size.dim)

    def begin(self, wan: Wan, seed: int, device: torch.device) -> ConcatIDLearner:
        own = None
        if self.settings.variant == ADALN:
            own = ReferenceModulation(*(torch.nn.Parameter(tensor.detach().to(device, torch.float32, copy=True))
                                        for tensor in _parts(self.own or _of_the_video(wan))))
        metadata = {**self.metadata, REFERENCES: str(self.settings.references)}
        if self.settings.weights == ALL:
            return ConcatIDLearner(wan, own, metadata)
        return LowRankLearner(wan, own, metadata, low_rank_modules(
            _layers(len(wan.blocks), wan.dim, wan.ffn_dim), self.settings.rank, seed, device))


def train_concat_id(model, shards: Path, concat_id: ConcatIDSettings, settings: TrainSettings,
                    on_step: Callable[[int, float], None], start_from: ConcatID | None = None, **others):
    """Train a Concat-ID with ``session.train``, which has the other arguments.

    concat_id: its ``references`` are as many as the data have persons in a clip.
    start_from: of the Concat-ID file that the model came from; None for a plain Wan.

    Returns the ModelPatcher and the ConcatID of the file that was written, and the run's folder.
    """
    if model.patches or model.injections:
        raise UserError("the model has a LoRA or another patch on it, which would become part of the trained file or "
                        "be missing from the training: connect the model without it and put the LoRA on the trained "
                        "one, or save the patched model with ModelSave and begin with that.")
    file = session.file_of(model)
    if start_from is not None:
        check_fit(start_from, model)
    elif came_from_concat_id(model):
        raise UserError("the model is one of Load Concat-ID, but concat_id is not connected, without which an AdaLN "
                        "file loses its own modulation: connect both outputs of Load Concat-ID.")
    elif file is not None and is_adaln(file):
        raise UserError(f"{shown(file.name)} is an AdaLN Concat-ID, whose own modulation is lost in every other loader "
                        "than its own: load it with Load Concat-ID, and connect both outputs of that.")
    people = CachedExamples(shards)[0].photos.shape[2]
    method = ConcatIDMethod(dataclasses.replace(concat_id, references=people),
                            None if start_from is None else start_from.own, _metadata(file))
    with torch.inference_mode(False):  # a training of all weights changes its model, and this one is the user's
        model = session.loaded_again(model)
    folder = session.train(model, method, shards, settings, on_step, **others)
    return *load_concat_id(method.file), folder


class ConcatIDLearner:
    """A ``train.method.Learner`` of all weights.

    They and what is computed of them for the optimiser are in fp32; ComfyUI casts each to the dtype of the model while
    it is used.

    wan: the model, whose weights become fp32.
    own: parameters, which have no part in the model; None for a first stage.
    metadata: of the file.
    """

    def __init__(self, wan: Wan, own: ReferenceModulation | None, metadata: dict[str, str]):
        self.wan, self.own, self.metadata = wan, own, metadata
        self.dtypes = {name: tensor.dtype for name, tensor in wan.model.state_dict().items()}
        self.weights = {**self._trained(), **({} if own is None else dict(zip((OWN_WEIGHT, OWN_BIAS, OWN_BLOCKS),
                                                                              _parts(own), strict=True)))}

    def _trained(self) -> dict[str, torch.Tensor]:
        self.wan.model.float().requires_grad_(True)
        for module in self.wan.model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
        return dict(self.wan.model.named_parameters())

    def optimizer(self, settings: TrainSettings) -> torch.optim.Optimizer:
        if settings.loraplus_ratio != 1:
            raise UserError(f"loraplus_ratio is {settings.loraplus_ratio}, but all weights of the model are trained, "
                            "none of which are low-rank: take it out.")
        return torch.optim.AdamW([{"params": [self.weights[name] for name in self.dtypes],
                                   "weight_decay": settings.weight_decay}, *self._own_group()],
                                 lr=settings.learning_rate)

    def _own_group(self) -> list[dict]:
        """Without weight decay: parts of these vectors get no gradient, so decay would only shrink them."""
        return [] if self.own is None else [{"params": _parts(self.own), "weight_decay": 0.0}]

    @contextlib.contextmanager
    def velocity(self, noisy: torch.Tensor, batch: Batch, checkpointing: bool) -> Iterator[torch.Tensor]:
        """The references are clean, and their tokens have the timestep of the video."""
        wan, timestep = self.wan, 1000 * batch.sigma
        with contextlib.ExitStack() as stack:
            stack.enter_context(differentiable())
            own = None if self.own is None else self.own.to(noisy.device, wan.dtype)
            stack.enter_context(references_appended(wan, wan.grid(noisy.shape), batch.reference.shape[2], timestep,
                                                    own))
            stack.enter_context(self._computing())
            if checkpointing:  # after the blocks have become those that read references
                stack.enter_context(wan.checkpointed())
            yield wan(noisy.to(wan.dtype), timestep, batch.context, batch.reference)

    def _computing(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def applied(self, model, photo: torch.Tensor):
        own = None if self.own is None else ReferenceModulation(*(each.detach().cpu() for each in _parts(self.own)))
        marks = torch.cat([block.block.modulation.detach() for block in self.wan.blocks]).cpu()
        concat_id = ConcatID("in training", "", marks, own, photo.shape[2])
        return apply_concat_id(model, concat_id, {"samples": torch.zeros_like(photo)},
                               latent={"samples": photo[0].movedim(1, 0).unsqueeze(2)})

    def save(self, weights: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        """The authors' names and the dtypes of the model's own file, for Load Concat-ID."""
        tensors = self._native(weights)
        if self.own is not None:
            dtype = tensors["time_projection.1.weight"].dtype
            tensors |= {key: weights[key].detach().to("cpu", dtype) for key in (OWN_WEIGHT, OWN_BIAS)}
            tensors |= {OWN_BLOCK.format(i): vectors.detach()[None].to("cpu", dtype)
                        for i, vectors in enumerate(weights[OWN_BLOCKS])}
        with replacing(file) as part:
            safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part,
                                        metadata={"format": "pt", **self.metadata, **metadata})

    def _native(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: weights[name].detach().to("cpu", dtype) for name, dtype in self.dtypes.items()}


class LowRankLearner(ConcatIDLearner):
    """A ``train.method.Learner`` of low-rank weights, which stand beside the model.

    module: of ``low_rank_modules``.
    """

    def __init__(self, wan: Wan, own: ReferenceModulation | None, metadata: dict[str, str], module: torch.nn.Module):
        self.module = module
        super().__init__(wan, own, metadata)

    def _trained(self) -> dict[str, torch.Tensor]:
        self.wan.model.requires_grad_(False)
        return low_rank_weights(self.module)

    def optimizer(self, settings: TrainSettings) -> torch.optim.Optimizer:
        optimizer = low_rank_optimizer(self.module, settings)
        for group in self._own_group():
            optimizer.add_param_group({**group, "lr": settings.learning_rate})
        return optimizer

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, (down, up) in _pairs(self.weights).items():
                layer = self.wan.model.get_submodule(name)
                stack.callback(layer.register_forward_hook(functools.partial(_added, down, up)).remove)
            yield

    def applied(self, model, photo: torch.Tensor):
        lora = {f"diffusion_model.{name}.{factor}.weight": tensor.detach()
                for name, pair in _pairs(self.weights).items() for factor, tensor in zip((DOWN, UP), pair)}
        return super().applied(comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0], photo)

    def _native(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pairs = _pairs(weights)

        def merged(name: str, tensor: torch.Tensor) -> torch.Tensor:
            down, up = pairs.get(name.removesuffix(".weight"), (None, None))
            return tensor if down is None or up is None else tensor.float() + up.detach() @ down.detach()

        return {name: merged(name, tensor).to("cpu", self.dtypes[name])
                for name, tensor in self.wan.model.state_dict().items()}


def _metadata(file: Path | None) -> dict[str, str]:
    """What a file of a model says of itself; nothing where there is none, or no safetensors."""
    if file is None or file.suffix.lower() not in SAFETENSORS or not file.is_file():
        return {}
    with safetensors.safe_open(file, "pt") as header:
        return header.metadata() or {}


def _layers(blocks: int, dim: int, ffn_dim: int) -> dict[str, tuple[int, int]]:
    """Name -> (in, out) of all linear layers of the blocks."""
    sizes = {"ffn.0": (dim, ffn_dim), "ffn.2": (ffn_dim, dim)}
    return {f"blocks.{number}.{name}": sizes.get(name, (dim, dim)) for number in range(blocks) for name in LAYERS}


def _pairs(weights: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name of a layer -> its down and up weights."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in weights.items():
        for factor in (DOWN, UP):
            name, separator, _ = key.partition(f".{factor}.")
            if separator:
                found.setdefault(name, {})[factor] = tensor
    return {name: (pair[DOWN], pair[UP]) for name, pair in found.items()}


def _added(down: torch.Tensor, up: torch.Tensor, layer, given, out: torch.Tensor) -> torch.Tensor:
    """A forward hook of a linear layer."""
    down, up = (factor.to(given[0].dtype) for factor in (down, up))
    return out + torch.nn.functional.linear(torch.nn.functional.linear(given[0], down), up)


def _parts(own: ReferenceModulation) -> list[torch.Tensor]:
    return [own.weight, own.bias, own.blocks]


def _of_the_video(wan: Wan) -> ReferenceModulation:
    """Copies of the video's modulation, with which the authors' AdaLN begins."""
    projection = wan.model.time_projection[1]
    return ReferenceModulation(projection.weight, projection.bias,
                               torch.cat([block.block.modulation for block in wan.blocks]))
