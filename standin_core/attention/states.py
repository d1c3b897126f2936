"""Attention states: an attention that also tells its log-sum-exp, and the merge of two of them.

The log-sum-exp merge is section 2.2 of arXiv 2501.01005. With (o, L) of the video keys, (o_r, L_r) of the identity
keys and a bias b on the identity logits::

    out = (e^L o + e^{L_r + b} o_r) / (e^L + e^{L_r + b})  =  o + sigmoid(L_r + b - L) (o_r - o)

Nothing is concatenated, so the host's keys and values are never copied.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .naive import naive_state

State = tuple[torch.Tensor, torch.Tensor]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class StateSource:
    """A function that returns attention states, and the sentence with which it refuses what it cannot compute.

    state: q [B, H, N, D], k and v [B, H, M, D] -> output [B, H, N, D], log-sum-exp [B, H, N] in fp32.
    refusal: (device, dtype, head dim) -> why not, or None.
    """

    name: str
    state: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], State]
    refusal: Callable[[torch.device, torch.dtype, int], str | None]


def _cpu_flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> State:
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)


def _cpu_flash_refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return None if device.type == "cpu" else f"it runs on the CPU, the model is on {device}"


def _cuda_flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> State:
    return aten._scaled_dot_product_flash_attention(q, k, v)[:2]


def _cuda_flash_refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type != "cuda":
        return f"it runs on CUDA, the model is on {device}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes fp16 and bf16, the model computes in {dtype}"
    if head_dim % 8 or head_dim > 256:
        return f"it takes head dims that are multiples of 8 up to 256, the model has {head_dim}"
    if torch.version.cuda is not None and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0 or newer"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this build of PyTorch has none"
    return None


def _cuda_efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> State:
    output, log_sum_exp = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    return output, log_sum_exp[..., :q.shape[-2]]  # its rows are padded to a multiple of 32


def _cuda_efficient_refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type != "cuda":
        return f"it runs on CUDA, the model is on {device}"
    if head_dim % 8:
        return f"it takes head dims that are multiples of 8, the model has {head_dim}"
    return None


# 256 queries x 33,784 keys x 40 heads in fp32 are 1.4 GB of logits, what a 14B model's feed-forward needs as well.
TILE = 256


def _tiled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> State:
    tiles = [naive_state(tile, k, v) for tile in q.split(TILE, dim=-2)]
    return torch.cat([output for output, _ in tiles], dim=-2), torch.cat([lse for _, lse in tiles], dim=-1)


FUSED = (
    StateSource("PyTorch flash attention (CPU)", _cpu_flash, _cpu_flash_refusal),
    StateSource("PyTorch flash attention (CUDA)", _cuda_flash, _cuda_flash_refusal),
    StateSource("PyTorch memory-efficient attention (CUDA)", _cuda_efficient, _cuda_efficient_refusal),
)
TILED = StateSource("fp32 attention in tiles of queries", _tiled, lambda device, dtype, head_dim: None)


def merge_states(state: State, identity: State, bias: float) -> torch.Tensor:
    """Merge the identity's state into the video's, in place where the output allows.

    state, identity: (output [B, H, N, D], log-sum-exp [B, H, N]); bias: log(strength) on the identity's logits.
    """
    (output, log_sum_exp), (identity_output, identity_log_sum_exp) = state, identity
    share = torch.sigmoid(identity_log_sum_exp + (bias - log_sum_exp)).unsqueeze(-1)
    return output.lerp_(identity_output, share.to(output.dtype))
