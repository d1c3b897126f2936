"""The parameters of an adapter that is being trained: an Adapter like any other, of tensors that take gradients."""
from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from ..contracts import Adapter
from ..weights import official_key, parse_adapter


def new_adapter(blocks: int, dim: int, rank: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Adapter:
    """An adapter that changes nothing yet: down from N(0, 1/rank), up zero, as the authors' modules begin
    (``LoRALinearLayer`` in WeChatCV/Stand-In's models/wan_video_dit.py).
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for block in range(blocks):
        for which in "qkv":
            down = torch.randn(rank, dim, generator=generator, dtype=dtype) / rank
            weights[official_key(block, which, "down")] = torch.nn.Parameter(down)
            weights[official_key(block, which, "up")] = torch.nn.Parameter(torch.zeros(dim, rank, dtype=dtype))
    return parse_adapter(weights, "a new adapter")


def parameters(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Official key -> tensor; 6 for each block."""
    return {official_key(number, which, factor): getattr(getattr(block, which), factor)
            for number, block in enumerate(adapter.blocks) for which in "qkv" for factor in ("down", "up")}


def save_adapter(adapter: Adapter, path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that Load Stand-In, and every other reader of the official names, takes. metadata: what
    the file shall say of itself (base model, rank, data, steps).
    """
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in parameters(adapter).items()}
    unfinished = path.with_suffix(".part")
    safetensors.torch.save_file(weights, unfinished, metadata={"format": "pt", "rank": str(adapter.rank), **metadata})
    unfinished.replace(path)  # a full disk leaves the last good file
