"""The parameters of an adapter that is being trained: PEFT's low-rank modules, read as an Adapter like any other."""
from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from ..files import replacing
from ..train.low_rank import low_rank_modules, low_rank_weights
from .adapter import Adapter, official_key, parse_adapter
from .variant import PAPER, Variant


def new_adapter(blocks: int, dim: int, rank: int, seed: int = 0, device: torch.device | str = "cpu",
                variant: Variant = PAPER) -> torch.nn.Module:
    """The modules of an adapter that changes nothing yet; the video's own tokens do not pass them.

    blocks, dim: of the model.
    rank: of the low-rank weights.
    seed: of the draw.
    device: where the weights lie.
    variant: what the adapter is trained as.
    """
    module = low_rank_modules({f"blocks.{number}.self_attn.{which}": (dim, dim)
                               for number in range(blocks) for which in "qkv"}, rank, seed, device)
    module.variant = variant  # type: ignore[assignment]  # PyTorch says tensor or module, and takes any attribute
    return module


def as_adapter(module: torch.nn.Module, name: str = "in training") -> Adapter:
    """The parameters themselves of ``new_adapter``, as the identity stream takes them."""
    return parse_adapter(low_rank_weights(module), name,
                         variant=module.variant)  # type: ignore[arg-type]  # as in new_adapter


def parameters(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Official key -> tensor; 6 for each block."""
    return {official_key(number, which, factor): getattr(getattr(block, which), factor)
            for number, block in enumerate(adapter.blocks) for which in "qkv" for factor in ("down", "up")}


def save_adapter(weights: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that Load Stand-In, and every other reader of the official names, takes.

    weights: of ``parameters``.
    path: of the file; one that is there is replaced.
    metadata: what the file says of itself (base model, data, steps).
    """
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    with replacing(path) as part:
        safetensors.torch.save_file(weights, part, metadata={"format": "pt", **metadata})
