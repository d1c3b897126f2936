"""An adapter's weights for a run that reads them in every model call, moved by ComfyUI's memory manager.

They are moved to the device once, beside the sampled model and by the same rules: what does not fit is pinned and
streamed, layer by layer. 315 MB in bf16 for Wan 14B at rank 128, in 240 matrices, which would otherwise be copied from
pageable memory in every call.
"""
from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch

from .adapter import Adapter, BlockAdapter, LowRank


class ManagedLowRank(torch.nn.Module):
    """A LowRank made of ComfyUI's linear layers, which ComfyUI can move."""

    def __init__(self, low_rank: LowRank):
        super().__init__()
        self.down, self.up = (_linear(weight) for weight in (low_rank.down, low_rank.up))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x))


class ManagedBlock(torch.nn.Module):
    """A BlockAdapter of managed parts."""

    def __init__(self, block: BlockAdapter):
        super().__init__()
        self.q, self.k, self.v = (ManagedLowRank(low_rank) for low_rank in (block.q, block.k, block.v))


class ManagedAdapter(torch.nn.Module):
    """An Adapter of managed parts, for the identity stream.

    It shares the memory of the adapter's tensors until it is moved.
    """

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.blocks = torch.nn.ModuleList(ManagedBlock(block) for block in adapter.blocks)


def manage(adapter: Adapter, device: torch.device):
    """A ModelPatcher of a ManagedAdapter, for ComfyUI to load to the device."""
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)  # before 0.30
    return patcher(ManagedAdapter(adapter), load_device=device,
                   offload_device=comfy.model_management.unet_offload_device())


def let_go(patcher) -> None:
    """Off the device, and off the memory manager's list, even while an exception's traceback holds its module."""
    loaded_models = comfy.model_management.current_loaded_models
    for loaded in [each for each in loaded_models if each.model is patcher]:
        loaded.model_unload()
        loaded_models.remove(loaded)


def _linear(weight: torch.Tensor) -> torch.nn.Module:
    rows, columns = weight.shape
    linear = comfy.ops.manual_cast.Linear(columns, rows, bias=False, device="meta", dtype=weight.dtype)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return linear
