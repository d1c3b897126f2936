"""Ordinary attention over a video and a reference: every token reads every token.

The reference's tokens then follow from the noisy video, and pass through the blocks with it in every call of the model,
beside ``restricted_attention``, where they are computed once a run.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch

from .wan import Block


class JointStream:
    """The reference's tokens of one model call, block by block, as the layers of a ``Reading``: ``stream[i]`` gives K
    before rotation and V [B, N_ref, C], ``attend`` lets both sides read and takes the tokens on to the next block.
    """

    stay = False

    def __init__(self, blocks: Sequence[Block], tokens: torch.Tensor, time: torch.Tensor, rotation: torch.Tensor):
        """blocks: all of the model's main blocks, as the reference passes them. tokens: [B, N_ref, C], a reference for
        each video. time: of ``Wan.time``. rotation: of the reference's tokens.
        """
        self.blocks, self.tokens, self.time, self.rotation = blocks, tokens, time, rotation

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._block = self.blocks[index]
        self._modulation = self._block.modulation(self.time)
        self._normed = self._block.attention_input(self.tokens, self._modulation)
        return self._block.key(self._normed), self._block.value(self._normed)

    def attend(self, host, q, k, v, identities, heads, **kwargs):
        """As ``restricted_attention``. identities: the one (K, V, bias) of this stream, K with its rotation."""
        ((key, value, _),) = identities
        k, v = torch.cat((k, key), dim=1), torch.cat((v, value), dim=1)
        query = self._block.rotate(self._block.query(self._normed), self.rotation)
        self.tokens = self._block.after_attention(self.tokens, host(query, k, v, heads=heads, **kwargs),
                                                  self._modulation)
        return host(q, k, v, heads=heads, **kwargs)
