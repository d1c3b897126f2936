"""RMSNorm and RoPE of queries and keys in one pass, where that is right and faster on the user's card."""
from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from .extend import KERNEL_HEAD_DIMS, triton_refusal
from .measured import least_ms
from .reasons import Reason, Why
from .trial import on, tried

Apart = Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor], torch.Tensor]

TRIAL_TOKENS = 5
TIMED_TOKENS = 8192  # of two videos: 168 MB for Wan 14B in bf16, more than any card keeps in its caches
EPS = 1e-6


def norm_rope(x: torch.Tensor, weight: torch.Tensor, eps: float, rotation: torch.Tensor) -> torch.Tensor:
    """As ``fusion_kernel.norm_and_rotate``."""
    from .fusion_kernel import norm_and_rotate  # Triton defines its kernels at import

    return norm_and_rotate(x, weight, eps, rotation)


def can_fuse(rotation: torch.Tensor, batch: int, tokens: int) -> bool:
    """Whether the kernel takes the matrices of a model call.

    rotation: as ComfyUI hands them over.
    batch, tokens: of the queries.
    """
    count, places, heads, *matrices = rotation.shape
    return (rotation.dtype == torch.float32 and count in (1, batch) and (places, heads) == (tokens, 1)
            and rotation.stride()[3:] == (4, 2, 1) and matrices[1:] == [2, 2])


def fusion_refusal(apart: Apart, device: torch.device, dtype: torch.dtype, heads: int, head_dim: int,
                   tokens: int) -> Reason | None:
    """Why RMSNorm and RoPE stay two steps, or None.

    apart: computes them as two steps; its arguments are those of ``norm_rope``.
    device, dtype, heads, head_dim: of the queries.
    tokens: how many the video has.
    """
    if device.type == "cuda" and head_dim not in KERNEL_HEAD_DIMS:
        return Reason(Why.OTHER_HEAD_DIM, (KERNEL_HEAD_DIMS, head_dim))
    return (triton_refusal(device) or fusion_trial(device, dtype, heads, head_dim)
            or _slower(apart, device, dtype, heads, head_dim, min(tokens, TIMED_TOKENS)))


def _inputs(device: torch.device, dtype: torch.dtype, heads: int, head_dim: int,
            tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [2, N, C], weight [C], rotation [1, N, 1, D/2, 2, 2]"""
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (torch.randn(*shape, heads * head_dim, generator=generator, device=device).to(dtype)
                 for shape in ((2, tokens), ()))
    angle = torch.randn(1, tokens, 1, head_dim // 2, generator=generator, device=device)
    matrices = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=-1)
    return x, weight, matrices.unflatten(-1, (2, 2))


@functools.cache
def fusion_trial(device: torch.device, dtype: torch.dtype, heads: int, head_dim: int) -> Reason | None:
    """What goes wrong when the kernel computes a few tokens on this device, compared with fp64, or None."""
    def judged():
        x, weight, rotation = _inputs(device, dtype, heads, head_dim, TRIAL_TOKENS)
        found = norm_rope(x, weight, EPS, rotation).double()
        normed = torch.nn.functional.rms_norm(x.double(), weight.shape, weight.double(), EPS)
        pairs = normed.unflatten(-1, (heads, -1, 1, 2))
        expected = (rotation.double() * pairs).sum(-1).flatten(2)
        difference = float((found - expected).norm() / expected.norm())
        return None if difference <= torch.finfo(dtype).eps + 1e-6 else Reason(Why.OFF, (difference,))

    return tried(judged, device)


@functools.cache
def _slower(apart: Apart, device: torch.device, dtype: torch.dtype, heads: int, head_dim: int,
            tokens: int) -> Reason | None:
    """The reason that two steps take less time on this device; None where they do not, or cannot be timed for lack of
    memory.
    """
    try:
        with on(device):
            x, weight, rotation = _inputs(device, dtype, heads, head_dim, tokens)
            fused, two_steps = (least_ms(functools.partial(way, x, weight, EPS, rotation), device)
                                for way in (norm_rope, apart))
    except torch.cuda.OutOfMemoryError:
        return None
    if fused < two_steps:
        return None
    return Reason(Why.SLOWER, (fused, "ComfyUI's way", two_steps, f"{tokens} tokens of two videos"))
