"""The pieces of one block of Wan, each alone, beside the whole block with and without an identity."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from standin_core.attention import choose_attention, norm_rope, restricted_attention
from standin_core.attention.extend import extend_by_kernel, kernel_refusal
from standin_core.attention.states import merge_states
from standin_core.attention.trial import shared
from standin_core.stand_in.kv_cache import ResidentLayers
from standin_core.host_attention import attention_in_use
from standin_core.wan import Reading, Wan, rotate

BLOCK, WITH_IDENTITY = "block", "block that reads an identity"


class Piece(NamedTuple):
    """flops: operations of its products, 2 for a multiplication and an addition; 0 where it has none."""

    call: Callable[[], object]
    flops: int = 0


def pieces_of(wan: Wan, device: torch.device, tokens: int, identity_tokens: int,
              prompt_tokens: int) -> tuple[dict[str, Piece], dict[str, str]]:
    """What a block computes for one video and one photo, by name; and by name why a piece is left out.

    wan: loaded on the device.
    """
    block, width, head_dim = wan.blocks[0].block, wan.dim, wan.dim // wan.heads
    attn, scale, eps = block.self_attn, head_dim**-0.5, block.self_attn.norm_q.eps
    random = functools.partial(torch.randn, device=device, dtype=wan.dtype)
    x, q, k, v = (random(1, tokens, width) for _ in range(4))
    identity_k, identity_v = (random(1, identity_tokens, width) for _ in range(2))
    prompt, time = random(1, prompt_tokens, width), random(1, 6, width)
    rotation, identity_rotation = (wan.rotation(torch.arange(count, device=device).view(1, count, 1).expand(-1, -1, 3))
                                   for count in (tokens, identity_tokens))
    bias = torch.zeros(1, 1, device=device)

    in_use = attention_in_use({})
    auto = choose_attention("auto", (), in_use, device, wan.dtype, head_dim, (tokens, identity_tokens))
    source = choose_attention("merge", (), in_use, device, wan.dtype, head_dim).source
    assert source is not None and in_use.compute is not None  # merging has one; the benchmark forces no other attention
    compute, state = in_use.compute, source.state
    split_q, split_k, split_v = (x.unflatten(-1, (wan.heads, -1)).transpose(1, 2) for x in (q, k, v))
    of_identity = [x[0].unflatten(-1, (wan.heads, -1)) for x in (identity_k, identity_v)]
    identity_states = functools.partial(state, split_q, *(shared(x, 1) for x in of_identity), scale)
    video_state, identity_state = state(split_q, split_k, split_v, scale), identity_states()

    reading = Reading(0, ResidentLayers([(identity_k, identity_v)] * len(wan.blocks)), identity_rotation, bias,
                      range(len(wan.blocks)))
    unfused = wan.fusion_refusal(device, tokens)

    def with_identity():
        with wan.identity_installed([reading], restricted_attention(auto), fused=unfused is None):
            return block(x, time, rotation, prompt)

    square, attention, read = 2 * tokens * width**2, 4 * tokens**2 * width, 4 * tokens * identity_tokens * width
    cross = 2 * square + 4 * prompt_tokens * width**2 + 4 * tokens * prompt_tokens * width
    feed_forward = 4 * tokens * width * wan.ffn_dim
    whole = 4 * square + attention + cross + feed_forward
    found = {
        BLOCK: Piece(lambda: block(x, time, rotation, prompt), whole),
        WITH_IDENTITY: Piece(with_identity, whole + read),
        "q, k, v": Piece(lambda: (attn.q(x), attn.k(x), attn.v(x)), 3 * square),
        "RMSNorm and RoPE of q and k": Piece(lambda: [rotate(attn, norm(x), rotation)
                                                      for norm, x in ((attn.norm_q, q), (attn.norm_k, k))]),
        "attention": Piece(lambda: compute(q, k, v, heads=wan.heads), attention),
        "attention with log-sum-exps": Piece(lambda: state(split_q, split_k, split_v, scale), attention),
        "identity's state": Piece(identity_states, read),
        "merge of two states": Piece(lambda: merge_states(video_state, identity_state, bias)),
        "copies of a concatenation": Piece(lambda: [torch.cat(both, dim=1)
                                                    for both in ((k, identity_k), (v, identity_v))]),
        "RoPE of the identity's keys": Piece(lambda: rotate(attn, identity_k, identity_rotation)),
        "output projection": Piece(lambda: attn.o(x), square),
        "cross-attention": Piece(lambda: block.cross_attn(x, prompt), cross),
        "feed-forward": Piece(lambda: block.ffn(x), feed_forward),
    }
    left_out = {}
    no_kernel = kernel_refusal(device, wan.dtype, head_dim)
    if no_kernel is None:
        found["identity by the Triton kernel"] = Piece(
            lambda: extend_by_kernel(split_q, *of_identity, video_state, scale, bias), read)
    else:
        left_out["identity by the Triton kernel"] = str(no_kernel)
    if unfused is None:
        weight = attn.norm_q.weight.to(device, wan.dtype)
        found["fused RMSNorm and RoPE of q and k"] = Piece(lambda: [norm_rope(x, weight, eps, rotation)
                                                                    for x in (q, k)])
    else:
        left_out["fused RMSNorm and RoPE of q and k"] = str(unfused)
    return found, left_out
