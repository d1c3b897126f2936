"""What reading an identity costs on a card, by its own clock, beside what the video's attention takes anyway."""
from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from .extend import extend_by_kernel, extend_by_state
from .states import StateSource
from .trial import on

# Each way takes time in proportion to heads and queries, so that a part of them tells which is fastest. More keys get
# fewer heads. From KEYS on the products outweigh all else, so that more keys change no order. A call has at most
# 69 GFLOP. By arithmetic that is 0.2 ms on an H100 and 3 ms at 23 TFLOP/s in the model's dtype, and all ways together
# take less than 20 ms.
HEADS, QUERIES, KEYS = 8, 16384, 8192
ROUNDS, ENOUGH_MS = 3, 2.0  # one call of 2 ms tells as much as three short ones


class Part(NamedTuple):
    """What is timed of the reading in one block: heads, queries of the video and keys of the identities."""

    heads: int
    queries: int
    keys: int

    def __str__(self) -> str:
        return f"{self.heads} heads, {self.queries} tokens of the video and {self.keys} of the identity"


def part_of(video_tokens: int, identity_tokens: int) -> Part:
    """The part that is timed for a video of so many tokens, and so many of all identities together."""
    keys = min(identity_tokens, KEYS)
    return Part(min(HEADS, KEYS // keys), min(video_tokens, QUERIES), keys)


@functools.cache
def extra_ms(source: StateSource | None, kernel: bool, compute: Callable, device: torch.device, dtype: torch.dtype,
             head_dim: int, tokens: tuple[int, int]) -> float:
    """The least milliseconds of a few calls, for ``part_of`` the tokens.

    source, kernel: of an AttentionChoice; without a source, keys and values are concatenated.
    compute: the attention in use, ``compute(q, k, v, heads=...)`` with [B, N, C] each.
    tokens: how many the video has, and how many all identities have together.
    """
    heads, queries, keys = part_of(*tokens)
    own = torch.Generator(device).manual_seed(0)  # a sampler may draw from PyTorch's, which the seed of the run set
    q, k, v, identity_k, identity_v = (
        torch.randn(1, count, heads * head_dim, device=device, dtype=dtype, generator=own)
        for count in (queries, queries, queries, keys, keys))
    if source is None:
        def call():
            for video, identity in ((k, identity_k), (v, identity_v)):
                torch.cat((video, identity), dim=1)
            compute(q, identity_k, identity_v, heads=heads)
    else:
        extend = extend_by_kernel if kernel else extend_by_state(source.state)
        split_q, output = (x.unflatten(-1, (heads, head_dim)).transpose(1, 2) for x in (q, v))
        split_k, split_v = (x[0].unflatten(-1, (heads, head_dim)) for x in (identity_k, identity_v))
        # as that of about so many keys; far below the identity's, the kernel would walk its slower, safe way
        log_sum_exp = torch.full((1, heads, queries), math.log(queries), device=device)
        bias = torch.zeros(1, 1, device=device)

        def call():
            extend(split_q, split_k, split_v, (output, log_sum_exp), head_dim**-0.5, bias)

    with on(device):
        return least_ms(call, device)


def least_ms(call: Callable[[], object], device: torch.device) -> float:
    """The least milliseconds of a few calls on the current device."""
    call()  # Triton and cuDNN prepare themselves in the first
    times: list[float] = []
    while len(times) < ROUNDS and sum(times) < ENOUGH_MS:
        times.append(_milliseconds(call, device))
    return min(times)


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
