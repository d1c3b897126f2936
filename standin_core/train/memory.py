"""How much memory a training needs, from the sizes of the model alone."""
from __future__ import annotations

import math
import re
from pathlib import Path

import safetensors

from ..errors import UserError
from ..latents import PIXELS_PER_TOKEN, latent_frames_of
from ..wan import Wan
from .method import Method, ModelSize
from .settings import TrainSettings

FFN = re.compile(r"(?:^|\.)blocks\.\d+\.ffn\.0\.weight$")
PARAMETER_BYTES = 4  # float32


def model_size(file: Path) -> ModelSize:
    """Read from the header of a safetensors file of a Wan; raises UserError for another file."""
    try:
        with safetensors.safe_open(file, "pt") as weights:
            shapes = {key: weights.get_slice(key).get_shape() for key in weights.offset_keys()}
    except Exception as error:  # safetensors has its own kinds
        raise UserError(f"{file} cannot be read as safetensors ({error}): name the model's file.") from error
    blocks = [shape for key, shape in shapes.items() if FFN.search(key) and "vace" not in key]
    if not blocks:
        raise UserError(f"{file.name} has no blocks of a Wan model in it: name the model's file.")
    ffn_dim, dim = blocks[0]
    return ModelSize(dim, ffn_dim, len(blocks), sum(map(math.prod, shapes.values())), file.stat().st_size)


def size_of(wan: Wan) -> ModelSize:
    """The sizes of a model that is loaded."""
    tensors = list(wan.model.parameters())
    return ModelSize(wan.dim, wan.ffn_dim, len(wan.blocks), sum(tensor.numel() for tensor in tensors),
                     sum(tensor.nbytes for tensor in tensors))


def tokens(frames: int, height: int, width: int) -> int:
    """Tokens of a video in pixels: 32,760 for 81 frames of 832x480."""
    return latent_frames_of(frames) * (height // PIXELS_PER_TOKEN) * (width // PIXELS_PER_TOKEN)


def parameter_bytes(method: Method, size: ModelSize, settings: TrainSettings) -> int:
    """The parameters that are trained, their gradients, AdamW's two moments, and the moving average where there is one.
    """
    return PARAMETER_BYTES * method.parameters(size) * (4 + bool(settings.ema))


def activation_bytes(method: Method, size: ModelSize, settings: TrainSettings, video: int, photo: int,
                     itemsize: int) -> int:
    """What the examples that are computed together hold at the peak of a step.

    video, photo: tokens of each.
    itemsize: bytes of a number, as the model computes.
    """
    return settings.together * int(itemsize * method.activations(size, video, photo, settings.checkpointing))
