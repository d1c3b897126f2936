"""The truth: restricted self-attention in fp32, as the equation says it, with every logit in memory."""
from __future__ import annotations

import torch
from einops import rearrange


def naive_state(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, [B, H, N, D] in the dtype of q, and the log-sum-exp of its scaled logits, [B, H, N].

    It is computed in fp32, or in fp64 where q is fp64.

    q: [B, H, N, D], any float dtype.
    k, v: [B, H, M, D], any float dtype.
    scale: of the logits, 1 / sqrt(D) for Wan.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    logits = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * scale
    return (logits.softmax(dim=-1) @ v.to(dtype)).to(q.dtype), logits.logsumexp(dim=-1)


def naive_restricted_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, identities: list,
                               heads: int) -> torch.Tensor:
    """The video's self-attention that reads the identities too, [B, N_vid, C] in fp32.

    No run calls it: it is what the tests compare every path with.

    q, k, v: [B, N_vid, C]
    identities: for each person K and V, [R, N_ref, C], R photos that a query reads alike, and the bias of each query,
        [B or 1, N_vid or 1]: log(strength), -inf where the query does not read them.
    """
    def split(x):
        return rearrange(x.float(), "b n (h d) -> b h n d", h=heads)

    q, keys, values = split(q), [split(k)], [split(v)]
    biases = [torch.zeros(1, 1, 1, k.shape[1], device=q.device)]
    for identity_k, identity_v, bias in identities:
        keys.append(rearrange(identity_k.float(), "r n (h d) -> 1 h (r n) d", h=heads).expand(len(q), -1, -1, -1))
        values.append(rearrange(identity_v.float(), "r n (h d) -> 1 h (r n) d", h=heads).expand(len(q), -1, -1, -1))
        biases.append(bias[:, None, :, None].expand(-1, -1, -1, keys[-1].shape[-2]))
    scale = q.shape[-1] ** -0.5
    logits = torch.cat([q @ key.transpose(-1, -2) * scale + bias for key, bias in zip(keys, biases)], dim=-1)
    return rearrange(logits.softmax(dim=-1) @ torch.cat(values, dim=-2), "b h n d -> b n (h d)")
