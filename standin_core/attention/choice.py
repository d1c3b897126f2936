"""Which path and which source of log-sum-exps a run takes, with a reason for each that it passes over."""
from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn.attention import SDPBackend

from ..errors import UserError
from .extend import extend_by_kernel, extend_by_state, kernel_refusal
from .measured import extra_ms, part_of
from .reasons import Host, Need, PassedOver, Reason, Why
from .states import FUSED, SMOOTHED_SAGE, TILE, TILED, StateSource

# how the video reads the identity: chosen for each run, merged attention states, or appended keys and values
ATTENTION_PATHS = ("auto", "merge", "concatenate")
# how many numbers the q has for which PyTorch says its backend: on Windows, ComfyUI 0.16.3 takes another backend from
# 131,072 numbers on, and the q of a video has more
ASKED_HEADS, ASKED_TOKENS = 2, 4096


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """How the video reads the identity in one run on one device.

    path: "merge" or "concatenate".
    source: what computes the attention states; None when concatenating.
    passed_over: what comes before this in the order of choice, and why it is not taken.
    kernel: whether the Triton kernel merges the identity.
    """

    path: str
    source: StateSource | None
    passed_over: tuple[PassedOver, ...] = field(compare=False)  # two runs may take the same way for other reasons
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
    """What computes the model's attention without the identity; merging keeps PyTorch's.

    source: the same attention with a log-sum-exp; None where there is none.
    backend: for PyTorch's, tells which of its backends would compute q, k, v, [B, H, N, D] each.
    compute: the attention itself, ``compute(q, k, v, heads=...)`` with [B, N, C] each; None where it is not known.
    """

    host: Host
    source: StateSource | None = None
    backend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], SDPBackend] | None = None
    compute: Callable | None = None


PYTORCH = AttentionInUse(Host.PYTORCH)


def choose_attention(requested: str, needs: tuple[Reason, ...], in_use: AttentionInUse, device: torch.device,
                     dtype: torch.dtype, head_dim: int, tokens: tuple[int, int] | None = None) -> AttentionChoice:
    """Choose for one device of one run.

    requested: one of ATTENTION_PATHS; "auto" keeps the attention in use wherever the result is the same, and an
        explicit path is taken.
    needs: what needs a log-sum-exp; empty where every query reads every identity at weight 1.
    in_use: what computes the model's attention.
    device, dtype, head_dim: of the queries, keys and values.
    tokens: how many the video has, and how many all identities have together; a GPU is then asked which of the exact
        ways is the fastest. None for the order of the ways alone.
    """
    if requested == "concatenate":
        return AttentionChoice("concatenate", None, (
            *_sparse_no_more(in_use), PassedOver("merge", Reason(Why.CONCATENATION_SET))))
    kept = requested == "auto" and not needs
    reading_by = functools.partial(_reading_by, needs, kept, in_use, device, dtype, head_dim, tokens)
    passed_over = []
    if in_use.source is not None:
        refusal = in_use.source.refusal(device, dtype, head_dim)
        if refusal is None:
            return reading_by(in_use.source, [])
        passed_over.append(PassedOver(in_use.source.name, refusal))
    if in_use.host is not Host.PYTORCH:
        no_states = Reason(Why.NO_STATES if in_use.source is None else Why.NO_STATES_HERE, (in_use.host,))
        if kept:
            return AttentionChoice("concatenate", None, (
                *passed_over, *_sparse_no_more(in_use), PassedOver("merge", no_states)))
        left_for = needs if requested == "auto" else (Reason(Need.MERGE),)
        passed_over.append(PassedOver("the attention in use", Reason(Why.LEFT, (no_states, left_for))))
    sources = [source for source in FUSED if source.device_type == device.type]
    taken = _backend_taken(in_use, device, dtype, head_dim) if len(sources) > 1 else None
    for source in sorted(sources, key=lambda source: source.backend != taken):
        refusal = source.refusal(device, dtype, head_dim)
        if refusal is None:
            return reading_by(source, passed_over)
        passed_over.append(PassedOver(source.name, refusal))
        if kept and source.backend == taken:  # another backend would cost more than concatenating for this one
            return AttentionChoice("concatenate", None, tuple(passed_over))
    passed_over.append(PassedOver("fused merge", Reason(Why.NONE_ON_DEVICE, (device.type,))))
    if kept:
        return AttentionChoice("concatenate", None, tuple(passed_over))
    return AttentionChoice("merge", TILED, tuple(passed_over))


def _backend_taken(in_use: AttentionInUse, device: torch.device, dtype: torch.dtype,
                   head_dim: int) -> SDPBackend | None:
    """Which of PyTorch's computes the model's attention without the identity; None where it is not PyTorch's."""
    if in_use.backend is None:
        return None
    q = torch.empty(1, ASKED_TOKENS, ASKED_HEADS, head_dim, device=device, dtype=dtype).transpose(1, 2)
    return in_use.backend(q, q, q)


def _sparse_no_more(in_use: AttentionInUse) -> tuple[PassedOver, ...]:
    """What appended keys do to an attention that picks among the keys of a video."""
    return (PassedOver("sparse attention", Reason(Why.DENSE)),) if in_use.host is Host.SPARSE else ()


def _reading_by(needs: tuple[Reason, ...], kept: bool, in_use: AttentionInUse, device: torch.device,
                dtype: torch.dtype, head_dim: int, tokens: tuple[int, int] | None, source: StateSource,
                passed_over: list[PassedOver]) -> AttentionChoice:
    """The fastest exact way to read beside a source of states where a GPU can be asked, else the first of them.

    kept: whether the attention in use may compute the identity's keys with the video's.
    """
    merge, whole = AttentionChoice("merge", source, ()), AttentionChoice("concatenate", None, ())
    with_kernel = dataclasses.replace(merge, kernel=True)
    no_kernel = kernel_refusal(device, dtype, head_dim)
    beside_sage = source is in_use.source and in_use.host is Host.SAGE
    ways = [whole, merge, with_kernel] if beside_sage else [with_kernel, merge, whole]
    ways = [way for way in ways if (kept or way is not whole) and (no_kernel is None or way is not with_kernel)]
    # a log-sum-exp of the video would cost another product, which is not in what is timed
    incomparable = whole in ways and source is SMOOTHED_SAGE
    times = {} if incomparable else _times(ways, in_use, device, dtype, head_dim, tokens)
    best = min(times, key=lambda way: times[way]) if times else ways[0]
    if needs or not kept:
        passed_over = [*passed_over, PassedOver("concatenate", Reason(Why.ONE_WEIGHT if needs else Why.COPIES))]
    if times:
        assert tokens is not None  # without, nothing is timed
        passed_over = [*passed_over, *(
            PassedOver(str(way), Reason(Why.SLOWER, (times[way], str(best), times[best], str(part_of(*tokens)))))
            for way in ways if way is not best)]
    elif best is whole:
        passed_over = [*passed_over, PassedOver("merge", Reason(Why.WITH_THE_VIDEO, (source.name,)))]
    elif kept:
        passed_over = [*passed_over, PassedOver("concatenate", Reason(Why.COPIES))]
    if no_kernel is not None and best is not whole:
        passed_over = [*passed_over, PassedOver("Triton kernel", no_kernel)]
    elif not times and best is merge:
        passed_over = [*passed_over, PassedOver("Triton kernel", Reason(Why.SECOND_CALL, (source.name,)))]
    return dataclasses.replace(best, passed_over=tuple(passed_over))


def _times(ways: list[AttentionChoice], in_use: AttentionInUse, device: torch.device, dtype: torch.dtype, head_dim: int,
           tokens: tuple[int, int] | None) -> dict[AttentionChoice, float]:
    """Milliseconds of each way; nothing where there is no GPU, nothing to choose from, or no memory to try it in."""
    if device.type != "cuda" or tokens is None or in_use.compute is None or len(ways) < 2:
        return {}
    try:
        return {way: extra_ms(way.source, way.kernel, in_use.compute, device, dtype, head_dim, tokens) for way in ways}
    except torch.cuda.OutOfMemoryError:
        return {}


@functools.lru_cache(maxsize=32)
def restricted_attention(choice: AttentionChoice, own: bool = False) -> Callable:
    """The function that ``Wan.identity_installed`` puts in: ``(host, q, k, v, identities, heads, ...)``.

    It returns what the host would return. Equal arguments give the same object, so that torch.compile, which guards on
    a function's identity, does not compile anew for every run.

    own: the b-th video reads the b-th of the R photos alone, as in training; with the path "concatenate" only.

    The function's arguments:

    host: the attention in use.
    q, k, v: [B, N_vid, C], or [B, H, N_vid, D] with skip_reshape.
    identities: for each person K and V, [R, N_ref, C], and the bias of each query, [B or 1, N_vid or 1] float32.
    note_mass: called, when merging, with the share of the softmax on each person's tokens, a list of [B, H, N_vid]
        float32.
    """
    if choice.path == "concatenate":
        return _concatenate_own if own else _concatenate
    assert choice.source is not None  # only concatenating has none
    state = choice.source.state
    extend = extend_by_kernel if choice.kernel else extend_by_state(state)

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
