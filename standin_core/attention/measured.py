"""What reading an identity costs on a card, by its own clock, beside what the video's attention takes anyway."""
from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from .extend import extend_by_kernel, extend_by_state
from .states import StateSource
from .trial import on

# Each way takes time in proportion to heads and queries, so that a part of them tells which is fastest: on an H100,
# 0.2 ms a call by arithmetic, and all ways together less than 20 ms.
HEADS, QUERIES, ROUNDS = 8, 16384, 3


@functools.cache
def extra_ms(source: StateSource | None, kernel: bool, compute: Callable, device: torch.device, dtype: torch.dtype,
             head_dim: int, tokens: tuple[int, int]) -> float:
    """The least milliseconds of a few calls, for HEADS heads and QUERIES queries or fewer.

    source, kernel: of an AttentionChoice; without a source, keys and values are concatenated.
    compute: the attention in use, ``compute(q, k, v, heads=...)`` with [B, N, C] each.
    tokens: how many the video has, and how many all identities have together.
    """
    queries, keys = min(tokens[0], QUERIES), tokens[1]
    q, k, v = (torch.randn(1, queries, HEADS * head_dim, device=device, dtype=dtype) for _ in range(3))
    identity_k, identity_v = (torch.randn(1, keys, HEADS * head_dim, device=device, dtype=dtype) for _ in range(2))
    if source is None:
        def call():
            for video, identity in ((k, identity_k), (v, identity_v)):
                torch.cat((video, identity), dim=1)
            compute(q, identity_k, identity_v, heads=HEADS)
    else:
        extend = extend_by_kernel if kernel else extend_by_state(source.state)
        split_q, output = (x.unflatten(-1, (HEADS, head_dim)).transpose(1, 2) for x in (q, v))
        split_k, split_v = (x[0].unflatten(-1, (HEADS, head_dim)) for x in (identity_k, identity_v))
        log_sum_exp = torch.zeros(1, HEADS, queries, device=device)
        bias = torch.zeros(1, 1, device=device)

        def call():
            extend(split_q, split_k, split_v, (output, log_sum_exp), head_dim**-0.5, bias)

    with on(device):
        return least_ms(call, device)


def least_ms(call: Callable[[], object], device: torch.device) -> float:
    """The least milliseconds of a few calls on the current device."""
    call()  # Triton and cuDNN prepare themselves in the first
    return min(_milliseconds(call, device) for _ in range(ROUNDS))


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
