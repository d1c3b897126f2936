"""The identity's attention merged into the video's by one Triton kernel, in place.

Flash attention walks over key tiles with a running maximum m, a denominator l and an accumulator a, so that after any
tiles ``a / l`` is their attention and ``m + log(l)`` its log-sum-exp L. The video's attention, whoever computed it,
hands over its output o and L. L is at least every logit of the video, and so it serves as the maximum for all keys
that follow::

    s = scale q k^T + b                     b: of each query, log(strength); -inf where it does not read the identity
    p = e^(s - L)
    l = 1 + sum p;    a = o + sum p v

The kernel leaves ``a / l`` in the memory of o and ``L + log(l)`` in that of L, so that another identity can go on from
there. That is the merge of two attention states (section 2.2 of arXiv 2501.01005) without the second one: Q is read
once, o is read and written once, nothing is concatenated and nothing is allocated. A query that does not read the
identity keeps its o and L bit for bit.

A maximum that stays the same costs 2.1 instead of 6.3 fp32 operations a logit. Where the identity's logits are so far
above L that p would lose bits or overflow, the tile walks over the keys again with a running maximum. In fp32 it does
that at once: there the products take most of the time, and both ways together spill registers.
"""
from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .trial import on

LOG2_E = 1.4426950408889634

# The most that the weights p of a query may sum to, where the video weighs 1. A larger sum takes more bits of the
# exponents than fp32 has to spare (2^10: an exponent is off by 5e-7), and from 65504 on p leaves fp16.
MOST = 1024.0


class Tiles(NamedTuple):
    """queries and keys of a tile, and how many warps and stages of the loop are in work on it."""

    queries: int
    keys: int
    warps: int
    stages: int


# With these Triton spills no register, and two blocks fit a multiprocessor: tests/test_kernel_compiled.py. Hopper and
# the Blackwell of servers (10.x) keep the operands of their products in shared memory, which leaves registers.
WIDE, NARROW = Tiles(64, 64, 4, 2), Tiles(64, 32, 4, 2)
FP32 = {64: Tiles(32, 16, 4, 2), 128: Tiles(32, 16, 8, 2)}  # by head dim


def tiles_for(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> Tiles:
    """Tiles that a card has room for.

    capability: of the card, (9, 0) for Hopper.
    dtype, head_dim: of q, k and v.
    """
    if dtype == torch.float32:
        return FP32[head_dim]
    return WIDE if capability[0] in (9, 10) else NARROW


@torch.compiler.assume_constant_result
def tiles_on(device: torch.device, dtype: torch.dtype, head_dim: int) -> Tiles:
    """Those for the card of a device; Triton's interpreter takes an Ampere's."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    return tiles_for(capability, dtype, head_dim)


@triton.jit
def walk(b_q, k_ptr, v_ptr, b_base, k_stride_m, v_stride_m, scale, M, D: tl.constexpr, BN: tl.constexpr,
         BM: tl.constexpr):
    """Sum of p v, [BN, D], and l, [BN], where p = 2^(s + base). base: bias - L, in powers of 2."""
    o_m, o_d = tl.arange(0, BM), tl.arange(0, D)
    b_l = tl.full((BN,), 1.0, tl.float32)
    b_a = tl.zeros((BN, D), tl.float32)
    p_k = k_ptr + o_m[:, None] * k_stride_m + o_d[None, :]
    p_v = v_ptr + o_m[:, None] * v_stride_m + o_d[None, :]
    for i_m in range(0, M, BM):
        m_m = i_m + o_m < M
        # [BM, D]
        b_k = tl.load(p_k, mask=m_m[:, None], other=0.0)
        b_v = tl.load(p_v, mask=m_m[:, None], other=0.0)
        # [BN, BM]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale + b_base[:, None]
        b_p = tl.exp2(tl.where(m_m[None, :], b_s, float("-inf")))
        b_l += tl.sum(b_p, axis=1)
        b_a = tl.dot(b_p.to(b_v.dtype), b_v, b_a, input_precision="ieee")
        p_k += BM * k_stride_m
        p_v += BM * v_stride_m
    return b_a, b_l


@triton.jit
def walk_safe(b_q, k_ptr, v_ptr, b_bias, b_m, k_stride_m, v_stride_m, scale, M, D: tl.constexpr, BN: tl.constexpr,
              BM: tl.constexpr):
    """The same with a running maximum m, [BN], which begins at L and is returned too: p = 2^(s + bias - m)."""
    o_m, o_d = tl.arange(0, BM), tl.arange(0, D)
    b_l = tl.full((BN,), 1.0, tl.float32)
    b_a = tl.zeros((BN, D), tl.float32)
    p_k = k_ptr + o_m[:, None] * k_stride_m + o_d[None, :]
    p_v = v_ptr + o_m[:, None] * v_stride_m + o_d[None, :]
    for i_m in tl.range(0, M, BM, num_stages=1):
        m_m = i_m + o_m < M
        b_k = tl.load(p_k, mask=m_m[:, None], other=0.0)
        b_v = tl.load(p_v, mask=m_m[:, None], other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale + b_bias[:, None]
        b_s = tl.where(m_m[None, :], b_s, float("-inf"))
        # the maximum stays finite, since L is: no -inf - (-inf)
        b_max = tl.maximum(b_m, tl.max(b_s, axis=1))
        b_p = tl.exp2(b_s - b_max[:, None])
        b_c = tl.exp2(b_m - b_max)
        b_l = b_l * b_c + tl.sum(b_p, axis=1)
        b_a = b_a * b_c[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
        b_m = b_max
        p_k += BM * k_stride_m
        p_v += BM * v_stride_m
    return b_a, b_l, b_m


# Counts of tokens and the strides that follow from them differ from run to run, and Triton would compile anew for each
# that 16 divides or that is 1.
@triton.jit(do_not_specialize=["N", "M", "lse_stride_b", "lse_stride_h", "bias_stride_b", "bias_stride_n"])
def extend_kernel(
        q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, bias_ptr,
        q_stride_b, q_stride_h, q_stride_n, k_stride_m, k_stride_h, v_stride_m, v_stride_h,
        o_stride_b, o_stride_h, o_stride_n, lse_stride_b, lse_stride_h, lse_stride_n, bias_stride_b, bias_stride_n,
        H, N, M, scale,
        D: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, LOG2_E: tl.constexpr, MOST: tl.constexpr,
        FIXED: tl.constexpr):
    i_n, i_bh = tl.program_id(0).to(tl.int64) * BN, tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // H, i_bh % H
    o_n, o_d = tl.arange(0, BN), tl.arange(0, D)
    m_n = o_n < N - i_n
    bias_ptr += i_b * bias_stride_b + i_n * bias_stride_n
    # [BN]
    b_bias = tl.load(bias_ptr + o_n * bias_stride_n, mask=m_n, other=float("-inf"))
    # a tile none of whose queries reads the identity is done
    if tl.max(b_bias, axis=0) > float("-inf"):
        q_ptr += i_b * q_stride_b + i_h * q_stride_h + i_n * q_stride_n
        o_ptr += i_b * o_stride_b + i_h * o_stride_h + i_n * o_stride_n
        lse_ptr += i_b * lse_stride_b + i_h * lse_stride_h + i_n * lse_stride_n
        k_ptr += i_h * k_stride_h
        v_ptr += i_h * v_stride_h
        # [BN], everything that is an exponent in powers of 2
        b_lse = tl.load(lse_ptr + o_n * lse_stride_n, mask=m_n, other=0.0) * LOG2_E
        b_bias *= LOG2_E
        # [BN, D]
        b_q = tl.load(q_ptr + o_n[:, None] * q_stride_n + o_d[None, :], mask=m_n[:, None], other=0.0)
        b_m = b_lse
        if FIXED:
            b_a, b_l = walk(b_q, k_ptr, v_ptr, b_bias - b_lse, k_stride_m, v_stride_m, scale * LOG2_E, M, D, BN, BM)
            if not (tl.max(b_l, axis=0) < MOST):
                b_a, b_l, b_m = walk_safe(b_q, k_ptr, v_ptr, b_bias, b_lse, k_stride_m, v_stride_m, scale * LOG2_E, M,
                                          D, BN, BM)
        else:
            b_a, b_l, b_m = walk_safe(b_q, k_ptr, v_ptr, b_bias, b_lse, k_stride_m, v_stride_m, scale * LOG2_E, M, D,
                                      BN, BM)
        m_reads = m_n & (b_bias > float("-inf"))
        # o is not held while the keys pass, which takes registers
        p_o = o_ptr + o_n[:, None] * o_stride_n + o_d[None, :]
        b_o = tl.load(p_o, mask=m_reads[:, None], other=0.0).to(tl.float32)
        b_o *= tl.exp2(b_lse - b_m)[:, None]
        tl.store(p_o, ((b_o + b_a) / b_l[:, None]).to(o_ptr.dtype.element_ty), mask=m_reads[:, None])
        tl.store(lse_ptr + o_n * lse_stride_n, (b_m + tl.log2(b_l)) / LOG2_E, mask=m_reads)


def launch_of(tiles: Tiles, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor,
              log_sum_exp: torch.Tensor, scale: float, bias: torch.Tensor) -> tuple[tuple, tuple, dict]:
    """Grid, arguments and constants of the kernel, see ``extend_state_``."""
    batch, heads, queries, head_dim = q.shape
    arguments = (q, k, v, output, log_sum_exp, bias, *q.stride()[:3], *k.stride()[:2], *v.stride()[:2],
                 *output.stride()[:3], *log_sum_exp.stride(), *bias.stride(), heads, queries, len(k), scale)
    constants = {"D": head_dim, "BN": tiles.queries, "BM": tiles.keys, "LOG2_E": LOG2_E, "MOST": MOST,
                 "FIXED": q.dtype.itemsize == 2, "num_warps": tiles.warps, "num_stages": tiles.stages}
    return (triton.cdiv(queries, tiles.queries), batch * heads), arguments, constants


def extend_state_(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor, log_sum_exp: torch.Tensor,
                  scale: float, bias: torch.Tensor) -> None:
    """Let an attention state read the identity too, in its own memory.

    q, output: [B, H, N, D]
    k, v: [M, H, D], the same for the whole batch.
    log_sum_exp: [B, H, N] float32, natural.
    scale: of the logits.
    bias: [B, N] float32, which may be expanded from fewer numbers; -inf where a query does not read.

    D is 64 or 128. q, k, v and output have one dtype: float32, float16 or bfloat16. Their last dimension must be
    contiguous; every other stride is free.
    """
    grid, arguments, constants = launch_of(tiles_on(q.device, q.dtype, q.shape[-1]), q, k, v, output, log_sum_exp,
                                           scale, bias)
    # Triton launches on the current device, whatever the tensors are on; what torch.compile makes sees to that itself
    with contextlib.nullcontext() if torch.compiler.is_compiling() else on(q.device):
        extend_kernel[grid](*arguments, **constants)
