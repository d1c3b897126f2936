"""Which path and which source of log-sum-exps a run takes, each refusal as a sentence."""
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..contracts import StandInError
from .states import FUSED, TILED, StateSource, merge_states

PATHS = ("auto", "merge", "concatenate")


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """path: "merge" or "concatenate"; source: of the states, None when concatenating; refusals: why nothing else."""

    path: str
    source: StateSource | None
    refusals: tuple[str, ...]

    def __str__(self) -> str:
        return self.path if self.source is None else f"{self.path}, {self.source.name}"


def choose_attention(requested: str, strength: float, host: str | None, device: torch.device, dtype: torch.dtype,
                     head_dim: int) -> AttentionChoice:
    """Choose for one run. host: None where the video's attention is PyTorch's own, else a clause that names what it is.

    "auto" keeps the host's function wherever the result is the same, and says what it left. An explicit path that
    cannot run raises StandInError.
    """
    if requested == "concatenate" and strength != 1:
        raise StandInError(f"attention is set to concatenate, which knows no strength but 1 (it is {strength}): set "
                           "attention to auto or merge, or strength to 1.")
    if requested == "concatenate":
        return AttentionChoice("concatenate", None, ("merge: attention is set to concatenate",))
    if requested == "auto" and strength == 1 and host is not None:
        return AttentionChoice("concatenate", None, (f"merge: {host}, which gives no log-sum-exp",))
    refusals = []
    if host is not None:
        needs = f"strength {strength} needs" if requested == "auto" else "attention is set to merge, which needs"
        refusals.append(f"{host}: {needs} a log-sum-exp, which it does not give, so the self-attention of the video "
                        "leaves it")
    for source in FUSED:
        refusal = source.refusal(device, dtype, head_dim)
        if refusal is None:
            return AttentionChoice("merge", source, tuple(refusals))
        refusals.append(f"{source.name}: {refusal}")
    if requested == "auto" and strength == 1:
        return AttentionChoice("concatenate", None, tuple(refusals))
    return AttentionChoice("merge", TILED, tuple(refusals))


@functools.lru_cache(maxsize=32)
def restricted_attention(choice: AttentionChoice, bias: float) -> Callable:
    """The function that ``Wan.identity_installed`` puts in: ``(host, q, k, v, identity_k, identity_v, heads, ...)``.

    q, k, v: [B, N_vid, C] (or [B, H, N_vid, D] with skip_reshape); identity_k, identity_v: [1, N_ref, C]; bias:
    log(strength). Returns what the host would return. Equal arguments give the same object, so that torch.compile,
    which guards on a function's identity, does not compile anew for every run.
    """
    if choice.path == "concatenate":
        return _concatenate
    state = choice.source.state

    def merge(host, q, k, v, identity_k, identity_v, heads, mask=None, skip_reshape=False, skip_output_reshape=False,
              **_):
        _require_no_mask(mask)
        q, k, v = (x if skip_reshape else _split(x, heads) for x in (q, k, v))
        identity_k, identity_v = (_split(x, heads).expand(len(q), -1, -1, -1) for x in (identity_k, identity_v))
        output = merge_states(state(q, k, v), state(q, identity_k, identity_v), bias)
        return output if skip_output_reshape else output.transpose(1, 2).flatten(2)

    return merge


def _concatenate(host, q, k, v, identity_k, identity_v, heads, mask=None, skip_reshape=False, **kwargs):
    _require_no_mask(mask)
    if skip_reshape:
        identity_k, identity_v = _split(identity_k, heads), _split(identity_v, heads)
        kwargs["skip_reshape"] = True
    k, v = (torch.cat((x, y.expand(len(x), *y.shape[1:])), dim=-2) for x, y in ((k, identity_k), (v, identity_v)))
    return host(q, k, v, heads=heads, **kwargs)


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, N, C] -> [B, H, N, D]


def _require_no_mask(mask) -> None:
    if mask is not None:
        raise StandInError("the self-attention of this model comes with a mask, which the identity branch cannot read "
                           "beside; take out the node that masks it.")
