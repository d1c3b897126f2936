"""The identity stream: reference latent and adapter in, K and V of every block out.

Per block (Stand-In, arXiv 2508.07901, and the authors' code): the identity tokens are modulated at timestep 0, take
``Linear(x) + up(down(x))`` for q, k and v, attend to themselves alone, pass gate and feed-forward, and skip the
cross-attention. They never read the video, the prompt or the timestep, so one pass serves the whole run. Of the last
block only K and V are needed.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch

from .contracts import Adapter
from .rope import identity_positions
from .wan import Wan


def identity_layers(model: Wan, latent: torch.Tensor, adapter: Adapter,
                    kept_tokens: torch.Tensor | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (K, V) of the identity tokens for one block after the other, [R, N_ref, C] each.

    K is after RMSNorm and *before* rotation: RoPE is relative, so the stream itself may stand anywhere, and one build
    serves every size of video. latent: [R, 16, 1, h, w], R photos that do not see each other, model space, on the
    device and in the dtype to compute in. kept_tokens: [n], the tokens that go through, None for all.
    """
    _, height, width = model.grid(latent.shape)
    positions = identity_positions((0, 0), (height, width), 0.0, device=latent.device)
    tokens = model.embed(latent)
    if kept_tokens is not None:
        kept_tokens = kept_tokens.to(latent.device)
        positions, tokens = positions[:, kept_tokens], tokens[:, kept_tokens]
    rotation = model.rotation(positions)
    time = model.time(0.0, like=tokens)
    for block, low_rank in zip(model.blocks, adapter.blocks, strict=True):
        modulation = block.modulation(time)
        normed = block.attention_input(tokens, modulation)
        key = block.attn.norm_k(block.attn.k(normed) + low_rank.k(normed))
        value = block.attn.v(normed) + low_rank.v(normed)
        yield key, value
        if block is model.blocks[-1]:
            return
        query = block.attn.norm_q(block.attn.q(normed) + low_rank.q(normed))
        attended = model.attention(block.rotate(query, rotation), block.rotate(key, rotation), value)
        tokens = block.after_attention(tokens, attended, modulation)
        del query, attended  # a streaming cache keeps this frame while a block of the video reads
