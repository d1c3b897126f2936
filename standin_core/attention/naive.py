"""The truth: restricted self-attention in fp32, as the equation says it, with every logit in memory."""
from __future__ import annotations

import torch
from einops import rearrange


def naive_state(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with its log-sum-exp.

    q: [B, H, N, D]; k, v: [B, H, M, D]; any float dtype, computed in fp32; scale: of the logits, 1 / sqrt(D) for Wan.
    -> output [B, H, N, D] in the dtype of q, log-sum-exp of the scaled logits [B, H, N] in fp32.
    """
    logits = q.float() @ k.float().transpose(-1, -2) * scale
    return (logits.softmax(dim=-1) @ v.float()).to(q.dtype), logits.logsumexp(dim=-1)


def naive_restricted_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, identity_k: torch.Tensor,
                               identity_v: torch.Tensor, heads: int, bias: float = 0.0) -> torch.Tensor:
    """q, k, v: [B, N_vid, C]; identity_k, identity_v: [1, N_ref, C]; bias: log(strength), -inf for strength 0.

    -> [B, N_vid, C] in fp32.
    """
    q, k, v, identity_k, identity_v = (
        rearrange(x.float(), "b n (h d) -> b h n d", h=heads) for x in (q, k, v, identity_k, identity_v))
    scale = q.shape[-1] ** -0.5
    logits = torch.cat((q @ k.transpose(-1, -2) * scale, q @ identity_k.transpose(-1, -2) * scale + bias), dim=-1)
    values = torch.cat((v, identity_v.expand(len(v), -1, -1, -1)), dim=-2)
    return rearrange(logits.softmax(dim=-1) @ values, "b h n d -> b n (h d)")
