"""The identity stream: reference latent and adapter in, K and V of every block out.

Per block (Stand-In, arXiv 2508.07901, and the authors' code): the identity tokens are modulated at timestep 0, take
``Linear(x) + up(down(x))`` for q, k and v, attend to themselves alone, pass gate and feed-forward, and skip the
cross-attention. They never read the video, the prompt or the timestep, so one pass serves the whole run. The last
block is needed for its K and V alone.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

import torch

from ..joint import JointStream
from ..rope import grid_positions
from ..wan import Block, Modulation, Wan
from .adapter import Adapter, BlockAdapter
from .managed import ManagedAdapter


class AdaptedBlock(Block):
    """A block as the identity tokens pass it, with the low-rank weights of the adapter."""

    def __init__(self, block: Block, low_rank: BlockAdapter):
        super().__init__(block.block)
        self.low_rank = low_rank

    def query(self, normed: torch.Tensor) -> torch.Tensor:
        return self.attn.norm_q(self.attn.q(normed) + self.low_rank.q(normed))

    def key(self, normed: torch.Tensor) -> torch.Tensor:
        return self.attn.norm_k(self.attn.k(normed) + self.low_rank.k(normed))

    def value(self, normed: torch.Tensor) -> torch.Tensor:
        return self.attn.v(normed) + self.low_rank.v(normed)


def adapted(wan: Wan, adapter: Adapter | ManagedAdapter) -> list[AdaptedBlock]:
    """The main blocks of the model."""
    low_ranks = cast("Iterable[BlockAdapter]", adapter.blocks)  # a ManagedBlock is called in the same way
    return [AdaptedBlock(block, low_rank) for block, low_rank in zip(wan.blocks, low_ranks, strict=True)]


def joint_stream(wan: Wan, latent: torch.Tensor, adapter: Adapter | ManagedAdapter, rotation: torch.Tensor,
                 kept_tokens: torch.Tensor | None = None) -> JointStream:
    """For an adapter of ordinary attention. latent: [B, 16, 1, h, w], as in ``identity_layers``, a photo for each video
    of the batch; rotation: of the tokens that are kept.
    """
    tokens = wan.embed(latent)
    if kept_tokens is not None:
        tokens = tokens[:, kept_tokens.to(latent.device)]
    return JointStream(adapted(wan, adapter), tokens, wan.time(0.0, like=tokens), rotation)


def _call(part: Callable, *arguments):
    return part(*arguments)


def identity_layers(wan: Wan, latent: torch.Tensor, adapter: Adapter | ManagedAdapter,
                    kept_tokens: torch.Tensor | None = None,
                    call: Callable = _call) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (K, V) of the identity tokens for one block after the other, [R, N_ref, C] each.

    K is after RMSNorm and *before* rotation: RoPE is relative, so the stream itself may stand anywhere, and one build
    serves every size of video.

    latent: [R, 16, 1, h, w], R photos that do not see each other, model space, on the device and in the dtype to
        compute in.
    kept_tokens: [n], the tokens that go through, None for all.
    call: calls the parts of a block; training gives one that does not keep what they compute.
    """
    _, height, width = wan.grid(latent.shape)
    positions = grid_positions((height, width), (0.0, 0.0, 0.0), latent.device)
    tokens = wan.embed(latent)
    if kept_tokens is not None:
        kept_tokens = kept_tokens.to(latent.device)
        positions, tokens = positions[:, kept_tokens], tokens[:, kept_tokens]
    rotation = wan.rotation(positions)
    time = wan.time(0.0, like=tokens)
    *blocks, last = adapted(wan, adapter)
    for block in blocks:
        modulation = block.modulation(time)
        normed, key, value = call(_key_value, block, tokens, modulation)
        yield key, value
        tokens = call(_onward, wan, block, tokens, normed, key, value, modulation, rotation)
        del normed  # a streaming cache keeps this frame while a block of the video reads
    _, key, value = call(_key_value, last, tokens, last.modulation(time))
    yield key, value


def _key_value(block: AdaptedBlock, tokens: torch.Tensor,
               modulation: Modulation) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The normalised tokens, their K before rotation, and their V."""
    normed = block.attention_input(tokens, modulation)
    return normed, block.key(normed), block.value(normed)


def _onward(wan: Wan, block: AdaptedBlock, tokens: torch.Tensor, normed: torch.Tensor, key: torch.Tensor,
            value: torch.Tensor, modulation: Modulation, rotation: torch.Tensor) -> torch.Tensor:
    """The tokens as they leave the block."""
    attended = wan.attention(block.rotate(block.query(normed), rotation), block.rotate(key, rotation), value)
    return block.after_attention(tokens, attended, modulation)
