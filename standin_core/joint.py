"""Ordinary attention over a video and a reference: every token reads every token.

The reference's tokens then follow from the noisy video, and pass through the blocks with it in every call of the model,
beside ``restricted_attention``, where they are computed once a run.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch

from .attention import require_plain, split_heads
from .wan import Block


class JointStream:
    """The reference's tokens in one model call, block by block, as the layers of a ``Reading``.

    ``stream[i]`` gives K before rotation and V of the i-th block, [B, N_ref, C]. ``attend`` then lets the video and the
    reference read each other, and takes the reference's tokens on to the next block.
    """

    stay = False

    def __init__(self, blocks: Sequence[Block], tokens: torch.Tensor, time: torch.Tensor, rotation: torch.Tensor):
        """The stream before the first block.

        blocks: all of the model's main blocks, as the reference passes them.
        tokens: [B, N_ref, C], a reference for each video.
        time: of ``Wan.time``.
        rotation: of the reference's tokens, from ``Wan.rotation``.
        """
        self.blocks, self.tokens, self.time, self.rotation = blocks, tokens, time, rotation

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._block = self.blocks[index]
        self._modulation = self._block.modulation(self.time)
        self._normed = self._block.attention_input(self.tokens, self._modulation)
        return self._block.key(self._normed), self._block.value(self._normed)

    def attend(self, host, q, k, v, identities, heads, mask=None, skip_reshape=False, skip_output_reshape=False,
               enable_gqa=False, **kwargs):
        """An ``attend`` of ``Wan.identity_installed``.

        identities: the one (K, V, bias) of this stream; K is rotated.
        """
        require_plain(mask, enable_gqa)
        ((key, value, _),) = identities
        query = self._block.rotate(self._block.query(self._normed), self.rotation)
        if skip_reshape:
            query, key, value = (split_heads(x, heads) for x in (query, key, value))
            kwargs["skip_reshape"] = True
        k, v = torch.cat((k, key), dim=-2), torch.cat((v, value), dim=-2)
        attended = host(query, k, v, heads=heads, **kwargs)
        self.tokens = self._block.after_attention(self.tokens, attended, self._modulation)
        if skip_output_reshape:
            kwargs["skip_output_reshape"] = True
        return host(q, k, v, heads=heads, **kwargs)
