"""What a training will be, told before it starts: its data, its parameters, the memory it needs."""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import safetensors

from ..contracts import StandInError
from ..wan import Wan
from .config import TrainConfig
from .loop import TrainSettings

FFN = re.compile(r"(?:^|\.)blocks\.(\d+)\.ffn\.0\.weight$")
ADAPTER_BYTES = 4  # float32: the weights, their gradients, two moments of AdamW, and the moving average where wanted
COMPUTED_BYTES = 2  # of bf16 and fp16, in which the published models compute

# What training holds at its peak beside the weights, in numbers for each video token, C for dim and F for ffn_dim:
# with checkpointing 15 C + 2.7 F in the block at work, and C for each block; without, 10.9 C + 1.35 F for each block
# and 7 C more. Read off PyTorch's allocator for tiny models of 6 and 12 blocks, F/C 1 and 4, 1,024 and 2,304 tokens;
# tests/test_train_run.py compares.
AT_WORK, KEPT, LAST = (15.0, 2.7), (10.9, 1.35), 7.0
IDENTITY_KEPT = 5.5  # C for each identity token and block, with checkpointing


@dataclass(frozen=True, slots=True)
class ModelSize:
    """bytes: of all weights."""

    dim: int
    ffn_dim: int
    blocks: int
    bytes: int


def model_size(file: Path) -> ModelSize:
    """From the header of a safetensors file of a Wan; nothing is loaded. Raises StandInError for another file."""
    try:
        with safetensors.safe_open(file, "pt") as weights:
            shapes = {int(match[1]): weights.get_slice(key).get_shape()
                      for key in weights.offset_keys() if (match := FFN.search(key)) and "vace" not in key}
    except Exception as error:  # safetensors has its own kinds
        raise StandInError(f"{file} cannot be read as safetensors ({error}): name the model's file.") from error
    if not shapes:
        raise StandInError(f"{file.name} has no blocks of a Wan model in it: name the model's file.")
    ffn_dim, dim = shapes[0]
    return ModelSize(dim, ffn_dim, len(shapes), file.stat().st_size)


def size_of(wan: Wan) -> ModelSize:
    """Of a model that is loaded."""
    return ModelSize(wan.dim, wan.ffn_dim, len(wan.blocks), sum(tensor.nbytes for tensor in wan.model.parameters()))


def adapter_parameters(blocks: int, dim: int, rank: int) -> int:
    """35.4 M for Wan 1.3B and 157.3 M for 14B at rank 128: down and up of Q, K and V."""
    return blocks * 3 * 2 * dim * rank


def tokens(frames: int, height: int, width: int) -> int:
    """Of a video in pixels: 32,760 for 81 frames of 832x480."""
    return ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def activation_bytes(model: ModelSize, video: int, identity: int, checkpointing: bool, itemsize: int) -> int:
    """What one example holds at the peak of a step, for so many tokens of video and photo."""
    def of(part: tuple[float, float]) -> float:
        return part[0] * model.dim + part[1] * model.ffn_dim

    if checkpointing:
        numbers = video * of(AT_WORK) + model.blocks * model.dim * (video + IDENTITY_KEPT * identity)
    else:
        numbers = model.blocks * (video + identity) * of(KEPT) + LAST * video * model.dim
    return int(itemsize * numbers)


def adapter_bytes(parameters: int, settings: TrainSettings) -> int:
    """Weights, gradients, moments, average."""
    return ADAPTER_BYTES * parameters * (4 + bool(settings.ema))


def plan(config: TrainConfig, model_file: Path, processes: int = 1) -> str:
    """In words, from the configuration and the header of the model's file."""
    size, data, train = model_size(model_file), config.data, config.train
    parameters = adapter_parameters(size.blocks, size.dim, config.adapter.rank)
    video = tokens(data.frames, data.height, data.width)
    identity = (data.face.size // 16) ** 2
    activations = train.together * activation_bytes(size, video, identity, train.checkpointing, COMPUTED_BYTES)
    total = size.bytes + adapter_bytes(parameters, train) + activations
    pairs = "photos of the same video, outside of the clip" if config.pairs is None else (
        f"photos of other videos of the person, similarity {config.pairs.lowest:g} to {config.pairs.highest:g}")
    return "\n".join([
        f"model       {model_file.name}: {size.blocks} blocks of {size.dim}, {_gib(size.bytes)}",
        f"adapter     {config.adapter.name}, rank {config.adapter.rank}: {parameters / 1e6:.1f} M parameters, "
        f"{config.adapter.expert}, noise levels {train.noise_from:g} to {train.noise_to:g}",
        f"clips       {data.frames} frames at {data.fps:g} fps, {data.width}x{data.height}: {video:,} tokens",
        f"references  {data.references} a clip, {data.face.size}x{data.face.size}: {identity:,} tokens; {pairs}",
        f"training    {train.steps:,} steps of {train.batch_size} on {processes} device{'s' * (processes > 1)}, "
        f"learning rate {train.learning_rate:g}, seed {train.seed}",
        f"memory      about {_gib(total)} on each device: {_gib(size.bytes)} model, "
        f"{_gib(adapter_bytes(parameters, train))} adapter and optimiser, {_gib(activations)} activations "
        f"{'with' if train.checkpointing else 'without'} checkpointing",
    ])


def _gib(count: int) -> str:
    return f"{count / 2**30:.{0 if count >= 100 * 2**30 else 1}f} GiB"
