"""Files of weights, read without running anything in them."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from .contracts import UserError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # that an adapter's weights may have


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """weights: what the file holds, key -> tensor where it is in order. metadata: of a safetensors file, else empty."""

    name: str
    sha256: str
    weights: dict
    metadata: dict[str, str]


def read_weights(path: str | Path, kind: str) -> WeightsFile:
    """Read a file by safetensors, or by torch's weights-only unpickler.

    kind: what the file should be, for the message, like "a Stand-In adapter".

    Raises UserError where the file cannot be read.
    """
    path = Path(path)
    metadata: dict[str, str] = {}
    try:
        if path.suffix in (".safetensors", ".sft"):
            weights = safetensors.torch.load_file(path)
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader of old pickles raises whatever the damage leads it to
        raise UserError(
            f"{path.name} cannot be read as weights ({type(error).__name__}); {kind} is a .safetensors or a "
            "weights-only .ckpt file: download it again from its source page."
        ) from error
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightsFile(path.name, sha256, weights, metadata)


def check_dtype(weight: torch.Tensor, key: str, name: str) -> None:
    """Raises UserError unless a tensor of a file of this name has one of DTYPES."""
    if weight.dtype not in DTYPES:
        raise UserError(f"{name}: {key} is {weight.dtype}, needed is fp32, fp16 or bf16: take the file in one of "
                        "these.")
