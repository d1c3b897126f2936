"""The identity stream: reference latent and adapter in, K and V of every block out.

Per block (Stand-In, arXiv 2508.07901, and the authors' code): the identity tokens are modulated at timestep 0, take
``Linear(x) + up(down(x))`` for q, k and v, attend to themselves alone, pass gate and feed-forward, and skip the
cross-attention. They never read the video, the prompt or the timestep, so one pass serves the whole run. Of the last
block only K and V are needed.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..wan import Block, Modulation, Wan
from .adapter import Adapter, BlockAdapter
from .positions import identity_positions


def _call(part: Callable, *arguments):
    return part(*arguments)


def identity_layers(model: Wan, latent: torch.Tensor, adapter: Adapter, kept_tokens: torch.Tensor | None = None,
                    call: Callable = _call) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (K, V) of the identity tokens for one block after the other, [R, N_ref, C] each.

    K is after RMSNorm and *before* rotation: RoPE is relative, so the stream itself may stand anywhere, and one build
    serves every size of video. latent: [R, 16, 1, h, w], R photos that do not see each other, model space, on the
    device and in the dtype to compute in. kept_tokens: [n], the tokens that go through, None for all.
    call: calls the parts of a block; training gives one that does not keep what they compute.
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
        normed, key, value = call(_key_value, block, low_rank, tokens, modulation)
        yield key, value
        if block is model.blocks[-1]:
            return
        tokens = call(_onward, model, block, low_rank, tokens, normed, key, value, modulation, rotation)
        del normed  # a streaming cache keeps this frame while a block of the video reads


def _key_value(block: Block, low_rank: BlockAdapter, tokens: torch.Tensor,
               modulation: Modulation) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The normalised tokens, and of them K before rotation and V."""
    normed = block.attention_input(tokens, modulation)
    key = block.attn.norm_k(block.attn.k(normed) + low_rank.k(normed))
    return normed, key, block.attn.v(normed) + low_rank.v(normed)


def _onward(model: Wan, block: Block, low_rank: BlockAdapter, tokens: torch.Tensor, normed: torch.Tensor,
            key: torch.Tensor, value: torch.Tensor, modulation: Modulation, rotation: torch.Tensor) -> torch.Tensor:
    """The tokens as they leave the block."""
    query = block.attn.norm_q(block.attn.q(normed) + low_rank.q(normed))
    attended = model.attention(block.rotate(query, rotation), block.rotate(key, rotation), value)
    return block.after_attention(tokens, attended, modulation)
