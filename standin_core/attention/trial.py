"""A small case computed on the user's own device, before a run depends on a path that nobody has tried there."""
from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from .reasons import Reason, Why

State = tuple[torch.Tensor, torch.Tensor]

# no tile divides these, and with more than a tile of keys; K has a mean in each channel, as trained keys have
HEADS, QUERIES, KEYS = 2, 200, 131
KEY_MEAN = 2.0
LOG_SUM_EXP_BAR = 1e-3


def on(device: torch.device):
    """The context in which a device is the current one: packages launch on that, whatever their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def trial_inputs(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[torch.Tensor, ...]:
    """q [1, H, N, D], k and v [1, H, M, D], with the strides that the engine has them in."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, tokens, HEADS, head_dim, generator=generator) for tokens in (QUERIES, KEYS, KEYS))
    k += KEY_MEAN * torch.randn(1, 1, HEADS, head_dim, generator=generator)
    return tuple(x.to(device, dtype).transpose(1, 2) for x in (q, k, v))


def refusal_by(trial: Callable[[], tuple[State, State]], device: torch.device, bar: float) -> Reason | None:
    """What goes wrong in a trial, or None. A lack of memory is raised: it says nothing about the path.

    trial: returns the state found and the state expected.
    device: of the trial; it is made the current one.
    bar: the largest allowed difference of the output, relative RMS. The log-sum-exp, in nats, may differ as much, and
        by LOG_SUM_EXP_BAR in any case.
    """
    try:
        with on(device):
            (output, log_sum_exp), (expected, expected_log_sum_exp) = trial()
        difference = float((output - expected).norm() / expected.norm())
        sum_difference = float((log_sum_exp - expected_log_sum_exp).abs().max())
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a package, a compiler or the driver raise
        return Reason(Why.FAILED, (f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",))
    if difference <= bar and sum_difference <= max(bar, LOG_SUM_EXP_BAR):
        return None
    return Reason(Why.WRONG, (difference, sum_difference))
