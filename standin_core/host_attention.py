"""What computes a Wan's attention without the identity: ComfyUI's function, PyTorch's backend, another node."""
from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable

import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

from .attention import FLASH_ATTN, SAGE, SMOOTHED_SAGE, AttentionInUse, Host

OVERRIDE = "optimized_attention_override"  # in transformer_options
SMOOTHING_OFF = r"""\bsmooth_k["']?\s*[=:]\s*False\b"""  # an argument of SageAttention, or what ** hands it


def attention_in_use(options: dict) -> AttentionInUse:
    """What computes the model's attention.

    options: the model's ``transformer_options``.
    """
    override = options.get(OVERRIDE)
    if override is None:
        return _by_function(comfy.ldm.wan.model.optimized_attention)
    module, name = (getattr(override, each, None) or "" for each in ("__module__", "__qualname__"))
    module = module.rpartition(".")[2]  # ComfyUI loads its own nodes under the name of the file
    if module == "nodes_sparse_attention":
        return AttentionInUse(Host.SPARSE)
    if module == "model_patcher" and name.startswith("ModelPatcher.set_model_optimized_attention."):
        function = inspect.getclosurevars(override).nonlocals.get("optimized_attention")
        return AttentionInUse(Host.OVERRIDE) if function is None else _by_function(function)
    return AttentionInUse(Host.OVERRIDE)


def _by_function(function: Callable) -> AttentionInUse:
    """By the name of one of ComfyUI's attention functions, of which some are newer than 0.30.0."""
    name = getattr(function, "__name__", "")
    if function is not getattr(comfy.ldm.modules.attention, name, None):
        return AttentionInUse(Host.OTHER)  # another pack's, by whatever name
    if name == "attention_sage":
        try:
            source = SMOOTHED_SAGE if _smooths_keys(function) else SAGE
        except (OSError, TypeError):  # there is no source to tell which
            return AttentionInUse(Host.OTHER)
        return AttentionInUse(Host.SAGE, source, compute=function)
    known = {"attention_pytorch": AttentionInUse(Host.PYTORCH, backend=pytorch_backend, compute=function),
             "attention_flash": AttentionInUse(Host.FLASH, FLASH_ATTN, compute=function),
             "attention_comfy_kitchen_int8": AttentionInUse(Host.KITCHEN)}
    return known.get(name, AttentionInUse(Host.OTHER))


@functools.cache
def _smooths_keys(attention_sage: Callable) -> bool:
    """Whether ComfyUI leaves SageAttention's smoothing of the keys on, as 0.16.3 does and 0.30.0 does not.

    Raises OSError or TypeError where the function has no source.
    """
    return re.search(SMOOTHING_OFF, inspect.getsource(inspect.unwrap(attention_sage))) is None


class _Asking(TorchFunctionMode):
    """Within it, PyTorch's attention is not computed, and PyTorch says instead what would have computed it."""

    backend = SDPBackend.ERROR

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.backend = SDPBackend(torch._fused_sdp_choice(*args, **(kwargs or {})))
            return args[0]
        return function(*args, **(kwargs or {}))


def pytorch_backend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> SDPBackend:
    """Which of PyTorch's backends ComfyUI's attention_pytorch would have compute q, k, v, [B, H, N, D] each.

    ComfyUI calls PyTorch in a context that orders the backends, in another order in almost every version.
    """
    with _Asking() as asking:
        attention_pytorch(q, k, v, heads=q.shape[1], skip_reshape=True, skip_output_reshape=True)
    return asking.backend
