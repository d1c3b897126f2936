"""RMSNorm and RoPE of queries or keys by one Triton kernel: one read and one write where PyTorch takes two of each.

Wan normalises all heads of a token together (arXiv 1910.07467) and then rotates pairs of channels (arXiv 2104.09864)::

    y = x / sqrt(mean(x^2) + eps) * weight                over the C channels of a token
    (y_2i, y_2i+1) <- R_i (y_2i, y_2i+1)                  R_i: a 2x2 matrix of the token, the same for every head

Everything is computed in fp32, and y is rounded to the dtype before it is rotated, as ComfyUI's two steps round it.
"""
from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl

from .trial import on

WARPS = 8  # of the 32 channels that a thread then has of Wan 14B, none spills: tests/test_kernel_compiled.py


@triton.jit(do_not_specialize=["N", "rotation_stride_b"])
def norm_rope_kernel(x_ptr, weight_ptr, rotation_ptr, y_ptr, N, rotation_stride_b, rotation_stride_n, eps,
                      H: tl.constexpr, D: tl.constexpr, BH: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    o_h = tl.arange(0, BH)
    o_c = o_h[:, None] * D + tl.arange(0, D)[None, :]
    m_h = (o_h < H)[:, None]
    # [BH, D], the heads of a token
    b_x = tl.load(x_ptr + i * H * D + o_c, mask=m_h, other=0.0).to(tl.float32)
    b_w = tl.load(weight_ptr + o_c, mask=m_h, other=0.0).to(tl.float32)
    b_y = b_x * tl.rsqrt(tl.sum(tl.sum(b_x * b_x, axis=1), axis=0) / (H * D) + eps) * b_w
    b_y = b_y.to(y_ptr.dtype.element_ty).to(tl.float32)
    b_even, b_odd = tl.split(tl.reshape(b_y, (BH, D // 2, 2)))
    # [D / 2] each, row by row the matrices of the token
    rotation_ptr += (i // N) * rotation_stride_b + (i % N) * rotation_stride_n
    p_r = (rotation_ptr + 4 * tl.arange(0, D // 2))[None, :]
    b_first = tl.load(p_r) * b_even + tl.load(p_r + 1) * b_odd
    b_second = tl.load(p_r + 2) * b_even + tl.load(p_r + 3) * b_odd
    b_y = tl.reshape(tl.join(b_first, b_second), (BH, D))
    tl.store(y_ptr + i * H * D + o_c, b_y.to(y_ptr.dtype.element_ty), mask=m_h)


def launch_of(x: torch.Tensor, weight: torch.Tensor, eps: float, rotation: torch.Tensor,
              rotated: torch.Tensor) -> tuple[tuple, tuple, dict]:
    """Grid, arguments and constants of the kernel, see ``norm_and_rotate``, which writes to rotated."""
    batch, tokens, width = x.shape
    head_dim = 2 * rotation.shape[3]
    arguments = (x, weight, rotation, rotated, tokens, rotation.stride(0) if len(rotation) > 1 else 0,
                 rotation.stride(1), eps)
    constants = {"H": width // head_dim, "D": head_dim, "BH": triton.next_power_of_2(width // head_dim),
                 "num_warps": WARPS}
    return (batch * tokens,), arguments, constants


def norm_and_rotate(x: torch.Tensor, weight: torch.Tensor, eps: float, rotation: torch.Tensor) -> torch.Tensor:
    """RoPE of the RMSNorm, [B, N, C] in the dtype of x.

    x: [B, N, C], queries or keys as they are projected.
    weight: [C], of the RMSNorm, contiguous.
    eps: of the RMSNorm.
    rotation: [1 or B, N, 1, D/2, 2, 2] float32, matrices of which each is contiguous and follows the one before; D, the
        size of a head, is a power of 2.
    """
    x = x.contiguous()
    rotated = torch.empty_like(x)
    grid, arguments, constants = launch_of(x, weight, eps, rotation, rotated)
    # Triton launches on the current device, whatever the tensors are on; what torch.compile makes sees to that itself
    with contextlib.nullcontext() if torch.compiler.is_compiling() else on(x.device):
        norm_rope_kernel[grid](*arguments, **constants)
    return rotated
