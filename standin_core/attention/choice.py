"""Which path and which source of log-sum-exps a run takes, with a reason for each that it passes over."""
from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..contracts import UserError
from .naive import naive_state
from .reasons import Host, Need, PassedOver, Reason, Why
from .states import FUSED, TILE, TILED, StateSource, merge_states
from .trial import refusal_by, trial_inputs

# how the video reads the identity: chosen for each run, merged attention states, or appended keys and values
ATTENTION_PATHS = ("auto", "merge", "concatenate")
KERNEL_HEAD_DIMS = (64, 128)


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """path: "merge" or "concatenate"; source: of the states, None when concatenating; kernel: whether the identity is
    merged by the Triton kernel.
    """

    path: str
    source: StateSource | None
    passed_over: tuple[PassedOver, ...]
    kernel: bool = False

    def __str__(self) -> str:
        parts = [self.path, *([self.source.name] if self.source else []), *(["Triton kernel"] if self.kernel else [])]
        return ", ".join(parts)

    def working_bytes(self, batch: int, video_tokens: int, identity_tokens: int, heads: int, head_dim: int,
                      itemsize: int) -> int:
        """The most that this path holds beside what the plain attention holds, in one block.

        Merging holds the identity's output beside the video's, the kernel nothing; concatenating holds K and V a second
        time; tiles hold K and V in fp32, and logits and weights of one tile.
        """
        width, keys = heads * head_dim, video_tokens + identity_tokens
        if self.path == "concatenate":
            return 2 * batch * keys * width * itemsize
        merged = 0 if self.kernel else batch * video_tokens * width * itemsize
        if self.source is TILED:
            merged += 4 * batch * (2 * keys * width + 2 * TILE * keys * heads)
        return merged


# for training: keys and values are appended, because PyTorch's operators give a log-sum-exp no gradient
ATTACHED = AttentionChoice("concatenate", None, ())


@dataclass(frozen=True, slots=True)
class AttentionInUse:
    """What computes the model's attention without the identity; merging keeps PyTorch's. source: the same with a
    log-sum-exp, where there is such a thing.
    """

    host: Host
    source: StateSource | None = None


PYTORCH = AttentionInUse(Host.PYTORCH)


def choose_attention(requested: str, needs: tuple[Reason, ...], in_use: AttentionInUse, device: torch.device,
                     dtype: torch.dtype, head_dim: int) -> AttentionChoice:
    """Choose for one device of one run.

    requested: one of ATTENTION_PATHS; "auto" keeps the attention in use wherever the result is the same, and an
    explicit path is taken. needs: what needs a log-sum-exp, nothing where every query reads every identity at weight 1.
    """
    if requested == "concatenate":
        return AttentionChoice("concatenate", None, (PassedOver("merge", Reason(Why.CONCATENATION_SET)),))
    no_concatenation = PassedOver("concatenate", Reason(Why.ONE_WEIGHT if needs else Why.COPIES))
    passed_over = []
    if in_use.source is not None:
        refusal = in_use.source.refusal(device, dtype, head_dim)
        if refusal is None:
            return _merging_by(in_use.source, [no_concatenation], device, dtype, head_dim)
        passed_over.append(PassedOver(in_use.source.name, refusal))
    if in_use.host is not Host.PYTORCH:
        no_states = Reason(Why.NO_STATES if in_use.source is None else Why.NO_STATES_HERE, (in_use.host,))
        if requested == "auto" and not needs:
            return AttentionChoice("concatenate", None, (*passed_over, PassedOver("merge", no_states)))
        left_for = needs if requested == "auto" else (Reason(Need.MERGE),)
        passed_over.append(PassedOver("the attention in use", Reason(Why.LEFT, (no_states, left_for))))
    for source in FUSED:
        if source.device_type == device.type:
            refusal = source.refusal(device, dtype, head_dim)
            if refusal is None:
                return _merging_by(source, [*passed_over, no_concatenation], device, dtype, head_dim)
            passed_over.append(PassedOver(source.name, refusal))
    passed_over.append(PassedOver("fused merge", Reason(Why.NONE_ON_DEVICE, (device.type,))))
    if requested == "auto" and not needs:
        return AttentionChoice("concatenate", None, tuple(passed_over))
    return AttentionChoice("merge", TILED, tuple(passed_over))


def _merging_by(source: StateSource, passed_over: list[PassedOver], device: torch.device, dtype: torch.dtype,
                head_dim: int) -> AttentionChoice:
    no_kernel = kernel_refusal(device, dtype, head_dim)
    if no_kernel is not None:
        passed_over.append(PassedOver("Triton kernel", no_kernel))
    return AttentionChoice("merge", source, tuple(passed_over), kernel=no_kernel is None)


def kernel_refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> Reason | None:
    """Why the Triton kernel cannot merge there, or None."""
    if device.type != "cuda":
        return Reason(Why.OTHER_DEVICE, ("CUDA", device.type))
    if head_dim not in KERNEL_HEAD_DIMS:
        return Reason(Why.OTHER_HEAD_DIM, (KERNEL_HEAD_DIMS, head_dim))
    if importlib.util.find_spec("triton") is None:
        return Reason(Why.NO_TRITON)
    return kernel_trial(device, dtype, head_dim)


@functools.cache
def kernel_trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> Reason | None:
    """What goes wrong when the kernel merges two small states on this device, compared with PyTorch, or None.

    A kernel is compiled on the user's machine, by a compiler and for a card that nobody has tried it with: it is asked
    once a process whether it is right there, before a run depends on it.
    """
    def trial():
        q, k, v = trial_inputs(device, dtype, head_dim)
        identity_k, identity_v = (x[0].transpose(0, 1) for x in (k, v))  # [M, H, D]
        bias = torch.zeros(1, 1, device=device)
        video, log_sum_exp = q.flip(2), torch.zeros(q.shape[:-1], device=device)
        scale = head_dim**-0.5
        expected = _extend_by_state(naive_state)(q.double(), identity_k.double(), identity_v.double(),
                                                 (video.to(torch.float64, copy=True), log_sum_exp), scale, bias)
        return _extend_by_kernel(q, identity_k, identity_v, (video.clone(), log_sum_exp.clone()), scale, bias), expected

    return refusal_by(trial, device, 2 * torch.finfo(dtype).eps + 1e-6)


@functools.lru_cache(maxsize=32)
def restricted_attention(choice: AttentionChoice, own: bool = False) -> Callable:
    """The function that ``Wan.identity_installed`` puts in: ``(host, q, k, v, identities, heads, ...)``.

    host: the attention in use. q, k, v: [B, N_vid, C] (or [B, H, N_vid, D] with skip_reshape); identities: for each
    person K and V, [R, N_ref, C], and the bias of each query, [B or 1, N_vid or 1] float32. note_mass: called, when
    merging, with the share of the softmax on each person's tokens, a list of [B, H, N_vid] float32. Returns what the
    host would return. Equal arguments give the same object, so that torch.compile, which guards on a function's
    identity, does not compile anew for every run. own: as in training, on the path "concatenate": the b-th video reads
    the b-th of the R photos alone.
    """
    if choice.path == "concatenate":
        return _concatenate_own if own else _concatenate
    assert choice.source is not None  # only concatenating has none
    state, extend = choice.source.state, _extend_by_kernel if choice.kernel else _extend_by_state(choice.source.state)

    def merge(host, q, k, v, identities, heads, mask=None, skip_reshape=False, skip_output_reshape=False, scale=None,
              enable_gqa=False, note_mass=None, **_):
        require_plain(mask, enable_gqa)
        q, k, v = (x if skip_reshape else split_heads(x, heads) for x in (q, k, v))
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        merged = state(q, k, v, scale)
        sums = [] if note_mass is None else [merged[1].clone()]  # the kernel writes on the log-sum-exps
        for identity_k, identity_v, bias in identities:
            merged = extend(q, *(x.flatten(0, 1).unflatten(-1, (heads, -1)) for x in (identity_k, identity_v)), merged,
                            scale, bias)
            if note_mass is not None:
                sums.append(merged[1].clone())
        output, total = merged
        if note_mass is not None:
            note_mass([torch.exp(after - total) - torch.exp(before - total)
                       for before, after in itertools.pairwise(sums)])
        return output if skip_output_reshape else output.transpose(1, 2).flatten(2)

    return merge


def _extend_by_state(state: Callable) -> Callable:
    """The identity's attention as a state of its own, merged into the video's. identity_k, identity_v: [M, H, D]."""
    def extend(q, identity_k, identity_v, video, scale, bias):
        k, v = (x.transpose(0, 1).expand(len(q), -1, -1, -1) for x in (identity_k, identity_v))
        return merge_states(video, state(q, k, v, scale), bias.unsqueeze(1))

    return extend


def _extend_by_kernel(q, identity_k, identity_v, video, scale, bias):
    from .kernel import extend_state_  # Triton defines its kernels at import

    output, log_sum_exp = video
    extend_state_(q, identity_k, identity_v, output, log_sum_exp, scale, bias.expand(len(q), q.shape[-2]))
    return video


def _concatenate(host, q, k, v, identities, heads, mask=None, skip_reshape=False, enable_gqa=False, note_mass=None,
                 own=False, **kwargs):
    require_plain(mask, enable_gqa)
    keys, values = [k], [v]
    for identity_k, identity_v, _ in identities:
        for collected, x in ((keys, identity_k), (values, identity_v)):
            x = x if own else x.flatten(0, 1).unsqueeze(0).expand(len(q), -1, -1)
            collected.append(split_heads(x, heads) if skip_reshape else x)
    if skip_reshape:
        kwargs["skip_reshape"] = True
    return host(q, torch.cat(keys, dim=-2), torch.cat(values, dim=-2), heads=heads, **kwargs)


_concatenate_own = functools.partial(_concatenate, own=True)


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, C] -> [B, H, N, D]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def require_plain(mask, enable_gqa: bool) -> None:
    """Raise UserError for an attention beside which no identity can be read."""
    if mask is not None or enable_gqa:
        came = "a mask" if mask is not None else "grouped keys"
        raise UserError(f"the self-attention of this model comes with {came}, which the identity cannot be read "
                        "beside: take out the node that brings it.")
