"""A small case computed on the user's own device, before a run depends on a path that nobody has tried there."""
from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from .reasons import Reason, Why

# no tile divides these, and with more than a tile of keys; K has a mean in each channel, as trained keys have
BATCH, HEADS, QUERIES, KEYS, IDENTITY_KEYS = 2, 2, 200, 131, 77
KEY_MEAN = 2.0
LOG_SUM_EXP_BAR = 1e-3


def on(device: torch.device):
    """The context in which a device is the current one: packages launch on that, whatever their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def trial_inputs(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[torch.Tensor, ...]:
    """q [B, H, N, D], k and v [B, H, M, D] of the video, k and v [M', H, D] of an identity, with the strides that the
    engine has them in.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v, identity_k, identity_v = (
        torch.randn(batch, tokens, HEADS, head_dim, generator=generator)
        for batch, tokens in ((BATCH, QUERIES), *[(BATCH, KEYS)] * 2, *[(1, IDENTITY_KEYS)] * 2))
    for keys in (k, identity_k):
        keys += KEY_MEAN * torch.randn(1, 1, HEADS, head_dim, generator=generator)
    q, k, v, identity_k, identity_v = (x.to(device, dtype) for x in (q, k, v, identity_k, identity_v))
    return *(x.transpose(1, 2) for x in (q, k, v)), identity_k[0], identity_v[0]


def shared(identity: torch.Tensor, batch: int) -> torch.Tensor:
    """Keys or values of an identity, [M, H, D], as those of each video of a batch, [B, H, M, D], nothing copied."""
    return identity.transpose(0, 1).expand(batch, -1, -1, -1)


def failed(error: Exception) -> Reason:
    """The reason that something failed, with the first line of its error."""
    return Reason(Why.FAILED, (f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",))


def tried(judged: Callable[[], Reason | None], device: torch.device) -> Reason | None:
    """What a trial says of itself, or the error that it ends with. A lack of memory is raised: it says nothing about
    what was tried.

    judged: makes the trial.
    device: of the trial; it is made the current one.
    """
    try:
        with on(device):
            return judged()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a package, a compiler or the driver raise
        return failed(error)


def refusal_by(trial: Callable[[], tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]], device: torch.device,
               bar: float) -> Reason | None:
    """What goes wrong in a trial of attention states, or None; as ``tried``.

    trial: returns the states found and the states expected, each as outputs and log-sum-exps in turn.
    device: of the trial.
    bar: the largest allowed difference of an output, relative RMS. A log-sum-exp, in nats, may differ as much, and by
        LOG_SUM_EXP_BAR in any case.
    """
    def judged():
        found, expected = trial()
        # the maximum of tensors is no number where one of them is none
        difference = float(torch.stack([(a - b).norm() / b.norm() for a, b in zip(found[::2], expected[::2])]).max())
        sum_difference = float(torch.stack([(a - b).abs().max() for a, b in zip(found[1::2], expected[1::2])]).max())
        if difference <= bar and sum_difference <= max(bar, LOG_SUM_EXP_BAR):
            return None
        return Reason(Why.WRONG, (difference, sum_difference))

    return tried(judged, device)
