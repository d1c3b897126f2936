"""The identity's attention as one more turn of the video's online softmax, in one Triton kernel, in place.

Flash attention walks over key tiles with a running maximum m, a denominator l and an accumulator a, so that after any
tiles ``a / l`` is their attention and ``m + log(l)`` its log-sum-exp L. The video's attention, whoever computed it,
hands over its output o and L; that is the running state ``m = L, l = 1, a = o``. The kernel starts there and walks over
the identity's keys::

    s = scale q k^T + b                     b: of each query, log(strength); -inf where it does not read the identity
    m' = max(m, max s);  c = e^(m - m');  p = e^(s - m')
    l' = c l + sum p;    a' = c a + p v

and leaves ``a / l`` in the memory of o and ``m + log(l)`` in that of L, so that another identity can go on from there.
That is the merge of two attention states (section 2.2 of arXiv 2501.01005)
without the second one: Q is read once, o is read and written once, nothing is concatenated and nothing is allocated. A
query that does not read the identity keeps its o and L bit for bit.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


# M is a constant because the interpreter, with numpy 2.4, cannot loop to a bound that comes as an argument.
@triton.jit
def _extend_kernel(
        q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, bias_ptr,
        q_stride_b, q_stride_h, q_stride_n, k_stride_m, k_stride_h, v_stride_m, v_stride_h,
        o_stride_b, o_stride_h, o_stride_n, lse_stride_b, lse_stride_h, lse_stride_n, bias_stride_b, bias_stride_n,
        H, N, scale,
        M: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, LOG2_E: tl.constexpr):
    i_n, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // H, i_bh % H
    o_n, o_m, o_d = (i_n * BN + tl.arange(0, BN)).to(tl.int64), tl.arange(0, BM).to(tl.int64), tl.arange(0, D)
    m_n = o_n < N
    # [BN], everything that is an exponent in powers of 2
    b_bias = tl.load(bias_ptr + i_b * bias_stride_b + o_n * bias_stride_n, mask=m_n, other=float("-inf")) * LOG2_E
    # a tile none of whose queries reads the identity is done
    if tl.max(b_bias, axis=0) > float("-inf"):
        p_o = o_ptr + i_b * o_stride_b + i_h * o_stride_h + o_n[:, None] * o_stride_n + o_d[None, :]
        p_q = q_ptr + i_b * q_stride_b + i_h * q_stride_h + o_n[:, None] * q_stride_n + o_d[None, :]
        p_lse = lse_ptr + i_b * lse_stride_b + i_h * lse_stride_h + o_n * lse_stride_n
        # [BN, D]
        b_q = tl.load(p_q, mask=m_n[:, None], other=0.0)
        b_a = tl.load(p_o, mask=m_n[:, None], other=0.0).to(tl.float32)
        # [BN]
        b_m = tl.load(p_lse, mask=m_n, other=0.0) * LOG2_E
        b_l = tl.full((BN,), 1.0, tl.float32)
        for i_m in range(0, M, BM):
            m_m = i_m + o_m < M
            # [BM, D]
            p_k = k_ptr + i_h * k_stride_h + (i_m + o_m)[:, None] * k_stride_m + o_d[None, :]
            p_v = v_ptr + i_h * v_stride_h + (i_m + o_m)[:, None] * v_stride_m + o_d[None, :]
            b_k = tl.load(p_k, mask=m_m[:, None], other=0.0)
            b_v = tl.load(p_v, mask=m_m[:, None], other=0.0)
            # [BN, BM]
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * (scale * LOG2_E) + b_bias[:, None]
            b_s = tl.where(m_m[None, :], b_s, float("-inf"))
            # the maximum stays finite, since the video's log-sum-exp is: no -inf - (-inf)
            b_max = tl.maximum(b_m, tl.max(b_s, axis=1))
            b_p = tl.exp2(b_s - b_max[:, None])
            b_c = tl.exp2(b_m - b_max)
            b_l = b_l * b_c + tl.sum(b_p, axis=1)
            b_a = b_a * b_c[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
            b_m = b_max
        m_reads = m_n & (b_bias > float("-inf"))
        tl.store(p_o, (b_a / b_l[:, None]).to(o_ptr.dtype.element_ty), mask=m_reads[:, None])
        tl.store(p_lse, (b_m + tl.log2(b_l)) / LOG2_E, mask=m_reads)


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
    batch, heads, queries, head_dim = q.shape
    # 128 x 64 is what flash attention takes at these head dims; tiles of fp32 are twice as large
    tile_n, tile_m = (128, 64) if q.dtype.itemsize == 2 else (64, 32)
    _extend_kernel[triton.cdiv(queries, tile_n), batch * heads](
        q, k, v, output, log_sum_exp, bias,
        *q.stride()[:3], *k.stride()[:2], *v.stride()[:2], *output.stride()[:3], *log_sum_exp.stride(), *bias.stride(),
        heads, queries, scale,
        M=k.shape[0], D=head_dim, BN=tile_n, BM=tile_m, LOG2_E=LOG2_E, num_warps=8, num_stages=2)
