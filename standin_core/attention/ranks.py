"""Restricted self-attention of a video whose tokens are split over the ranks of ``torch.distributed``: Ulysses
(arXiv 2309.14509).

An all-to-all gives each of P ranks all tokens of 1/P of the heads; there attention is what it is on one device, and
another all-to-all brings the tokens back. Each rank has the whole identity and takes its heads of it, so every query
meets every identity key once. A rank that appends the identity to its own part of the video's keys, as for a ring,
would have it read P times.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed

from ..errors import UserError


def over_ranks(attend: Callable, group, tokens: int) -> Callable:
    """``attend`` for queries, keys and values of which each rank has a part, the same on all but what is padded.

    attend: a function as from ``restricted_attention``.
    group: of torch.distributed.
    tokens: N_vid of the whole video. Rank r has those from ``r * n`` on, where n is N_vid / P rounded up; what the last
        ranks have behind them is padding, which nobody reads.

    The function's q, k, v are [B, n, C], and its result too; the identities' keys, values and biases are those of the
    whole video, as is the mass that is noted.
    """
    ranks, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)

    def attend_over_ranks(host, q, k, v, identities, heads, note_mass=None, **kwargs):
        if heads % ranks:
            raise UserError(f"the model has {heads} heads, which {ranks} GPUs cannot share evenly: take a number of "
                            f"GPUs that divides {heads}.")
        if q.shape[1] != -(-tokens // ranks):
            raise UserError(f"each of {ranks} GPUs has {q.shape[1]} tokens of a video of {tokens}, because another "
                            "node adds tokens or splits them in another way: take out that node.")
        q, k, v = _to_heads(torch.cat((q, k, v)), ranks, group)[:, :tokens].chunk(3)
        own = slice(rank * q.shape[-1], (rank + 1) * q.shape[-1])
        identities = [(identity_k[..., own], identity_v[..., own], bias) for identity_k, identity_v, bias in identities]
        if note_mass is not None:
            kwargs["note_mass"] = lambda masses: note_mass([_of_all_heads(mass, ranks, group) for mass in masses])
        out = attend(host, q, k, v, identities, heads // ranks, **kwargs)
        return _to_tokens(out, ranks, group)

    return attend_over_ranks


def _to_heads(x: torch.Tensor, ranks: int, group) -> torch.Tensor:
    """[B, n, C] of this rank's tokens -> [B, P * n, C / P] of its heads."""
    return _exchanged(x.unflatten(2, (ranks, -1)).movedim(2, 0), group).movedim(0, 1).flatten(1, 2)


def _to_tokens(x: torch.Tensor, ranks: int, group) -> torch.Tensor:
    """[B, N_vid, C / P] of this rank's heads -> [B, n, C] of its tokens, zeros behind the last."""
    padding = -x.shape[1] % ranks
    x = torch.nn.functional.pad(x, (0, 0, 0, padding))
    return _exchanged(x.unflatten(1, (ranks, -1)).movedim(1, 0), group).movedim(0, 2).flatten(2)


def _exchanged(parts: torch.Tensor, group) -> torch.Tensor:
    """The r-th part of rank s becomes the s-th of rank r."""
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    torch.distributed.all_to_all_single(received, parts, group=group)
    return received


def _of_all_heads(mass: torch.Tensor, ranks: int, group) -> torch.Tensor:
    """[B, H / P, N_vid] of this rank's heads -> [B, H, N_vid]"""
    parts = [torch.empty_like(mass) for _ in range(ranks)]
    torch.distributed.all_gather(parts, mass.contiguous(), group=group)
    return torch.cat(parts, dim=1)
