"""Which path and which source of log-sum-exps a run takes, with a reason for each that it passes over."""
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..contracts import StandInError
from .states import FUSED, TILE, TILED, StateSource, merge_states


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """path: "merge" or "concatenate"; source: of the states, None when concatenating; refusals: "what: why not"."""

    path: str
    source: StateSource | None
    refusals: tuple[str, ...]

    def __str__(self) -> str:
        return self.path if self.source is None else f"{self.path}, {self.source.name}"

    def peak_bytes(self, batch: int, video_tokens: int, identity_tokens: int, heads: int, head_dim: int,
                   itemsize: int) -> int:
        """The most that this path holds beside what the plain attention holds, in one block.

        Merging holds the identity's output beside the video's; concatenating holds K and V a second time; tiles hold K
        and V in fp32, and logits and weights of one tile.
        """
        width, keys = heads * head_dim, video_tokens + identity_tokens
        if self.path == "concatenate":
            return 2 * batch * keys * width * itemsize
        merged = batch * video_tokens * width * itemsize
        if self.source is TILED:
            merged += 4 * batch * (2 * keys * width + 2 * TILE * keys * heads)
        return merged


def choose_attention(requested: str, strength: float, foreign: str | None, device: torch.device, dtype: torch.dtype,
                     head_dim: int) -> AttentionChoice:
    """Choose for one device of one run.

    requested: one of ATTENTION_PATHS; "auto" keeps the attention in use wherever the result is the same, and an
    explicit path is taken. foreign: None where the attention in use is PyTorch's own, else a clause that names it.
    """
    if requested == "concatenate":
        return AttentionChoice("concatenate", None, ("merge: attention is set to concatenate",))
    if requested == "auto" and strength == 1 and foreign is not None:
        return AttentionChoice("concatenate", None, (f"merge: {foreign}, which gives no log-sum-exp",))
    refusals = []
    if foreign is not None:
        reason = f"strength {strength:g}" if requested == "auto" else "attention set to merge"
        refusals.append(f"the attention in use: {foreign}, which gives no log-sum-exp, and {reason} needs one, so the "
                        "video's self-attention leaves it")
    for source in FUSED:
        if source.device_type == device.type:
            refusal = source.refusal(device, dtype, head_dim)
            if refusal is None:
                known = "merging copies nothing" if strength == 1 else "it knows no strength but 1"
                return AttentionChoice("merge", source, (*refusals, f"concatenate: {known}"))
            refusals.append(f"{source.name}: {refusal}")
    refusals.append(f"fused merge: no attention on {device.type} gives a log-sum-exp")
    if requested == "auto" and strength == 1:
        return AttentionChoice("concatenate", None, tuple(refusals))
    return AttentionChoice("merge", TILED, tuple(refusals))


@functools.lru_cache(maxsize=32)
def restricted_attention(choice: AttentionChoice, bias: float) -> Callable:
    """The function that ``Wan.identity_installed`` puts in: ``(host, q, k, v, identity_k, identity_v, heads, ...)``.

    host: the attention in use. q, k, v: [B, N_vid, C] (or [B, H, N_vid, D] with skip_reshape); identity_k, identity_v:
    [1, N_ref, C]; bias: log(strength). Returns what the host would return. Equal arguments give the same object, so
    that torch.compile, which guards on a function's identity, does not compile anew for every run.
    """
    if choice.path == "concatenate":
        return _concatenate
    state = choice.source.state

    def merge(host, q, k, v, identity_k, identity_v, heads, mask=None, skip_reshape=False, skip_output_reshape=False,
              scale=None, enable_gqa=False, **_):
        _require_plain(mask, enable_gqa)
        q, k, v = (x if skip_reshape else _split(x, heads) for x in (q, k, v))
        identity_k, identity_v = (_split(x, heads).expand(len(q), -1, -1, -1) for x in (identity_k, identity_v))
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        output = merge_states(state(q, k, v, scale), state(q, identity_k, identity_v, scale), bias)
        return output if skip_output_reshape else output.transpose(1, 2).flatten(2)

    return merge


def _concatenate(host, q, k, v, identity_k, identity_v, heads, mask=None, skip_reshape=False, enable_gqa=False,
                 **kwargs):
    _require_plain(mask, enable_gqa)
    if skip_reshape:
        identity_k, identity_v = _split(identity_k, heads), _split(identity_v, heads)
        kwargs["skip_reshape"] = True
    k, v = (torch.cat((x, y.expand(len(x), *y.shape[1:])), dim=-2) for x, y in ((k, identity_k), (v, identity_v)))
    return host(q, k, v, heads=heads, **kwargs)


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, N, C] -> [B, H, N, D]


def _require_plain(mask, enable_gqa: bool) -> None:
    if mask is not None or enable_gqa:
        came = "a mask" if mask is not None else "grouped keys"
        raise StandInError(f"the self-attention of this model comes with {came}, which the identity cannot be read "
                           "beside: take out the node that brings it.")
