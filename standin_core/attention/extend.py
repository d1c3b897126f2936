"""An attention state reads an identity too: by a second state and a merge, or by the Triton kernel in one go."""
from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

from .naive import naive_state
from .reasons import Reason, Why
from .states import State, merge_states
from .trial import failed, refusal_by, shared, trial_inputs

KERNEL_HEAD_DIMS = (64, 128)
# Before Ampere, the kernel's products leave the tensor cores (compiled for sm_75: 7 to 13 KB of registers spilled).
# Triton 3.2 ends the process when it compiles for Blackwell, and 3.3 is the first that knows it.
OLDEST_CAPABILITY, NEW_CAPABILITY, TRITON_FOR_NEW = (8, 0), (10, 0), (3, 3)


def extend_by_state(state: Callable) -> Callable:
    """A function that computes the identity's attention as a state of its own and merges it into the video's.

    Its arguments: q [B, H, N, D]; identity_k, identity_v [M, H, D]; video, the state; scale of the logits; bias of each
    query, [B or 1, N or 1] float32.
    """
    def extend(q: torch.Tensor, identity_k: torch.Tensor, identity_v: torch.Tensor, video: State, scale: float,
               bias: torch.Tensor) -> State:
        k, v = (shared(x, len(q)) for x in (identity_k, identity_v))
        return merge_states(video, state(q, k, v, scale), bias.unsqueeze(1))

    return extend


def extend_by_kernel(q: torch.Tensor, identity_k: torch.Tensor, identity_v: torch.Tensor, video: State, scale: float,
                     bias: torch.Tensor) -> State:
    """The same in the memory of the state."""
    from .kernel import extend_state_  # Triton defines its kernels at import

    output, log_sum_exp = video
    extend_state_(q, identity_k, identity_v, output, log_sum_exp, scale, bias.expand(len(q), q.shape[-2]))
    return video


def kernel_refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> Reason | None:
    """Why the Triton kernel cannot merge there, or None."""
    if device.type == "cuda" and head_dim not in KERNEL_HEAD_DIMS:
        return Reason(Why.OTHER_HEAD_DIM, (KERNEL_HEAD_DIMS, head_dim))
    return triton_refusal(device) or kernel_trial(device, dtype, head_dim)


def triton_refusal(device: torch.device) -> Reason | None:
    """Why no kernel of ours is compiled there, or None. Triton itself is asked last: where it cannot compile for a
    card, it may hang or end the process, which nothing catches.
    """
    if device.type != "cuda":
        return Reason(Why.OTHER_DEVICE, ("CUDA", device.type))
    if torch.version.hip is not None:
        return Reason(Why.NOT_NVIDIA)
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return Reason(Why.OLD_CARD, (_dotted(capability), _dotted(OLDEST_CAPABILITY)))
    if importlib.util.find_spec("triton") is None:
        return Reason(Why.NO_TRITON)
    if capability >= NEW_CAPABILITY:
        try:
            version = triton_version()
        except Exception as error:  # an installation that is broken
            return failed(error)
        if version < TRITON_FOR_NEW:
            return Reason(Why.OLD_TRITON, (_dotted(version), _dotted(capability), _dotted(TRITON_FOR_NEW)))
    return None


def triton_version() -> tuple[int, int]:
    """The version that would be imported, from whichever package (triton, triton-windows, pytorch-triton)."""
    import triton  # optional

    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@functools.cache
def kernel_trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> Reason | None:
    """What goes wrong when the kernel lets a small state read an identity on this device, compared with fp64, or None.

    A kernel is compiled on the user's machine, by a compiler and for a card that nobody has tried it with: it is asked
    once a process whether it is right there, before a run depends on it.
    """
    q, _, _, identity_k, identity_v = trial_inputs(device, dtype, head_dim)
    bias = torch.zeros(1, 1, device=device)
    scale = head_dim**-0.5
    # the identity weighs as much as the video, and in the last head so much that the maximum must move
    _, log_sum_exp = naive_state(q, shared(identity_k, len(q)), shared(identity_v, len(q)), scale)
    log_sum_exp[:, -1] -= 20
    video = q.flip(2)

    def trial():
        expected = extend_by_state(naive_state)(q.double(), identity_k.double(), identity_v.double(),
                                                 (video.to(torch.float64, copy=True), log_sum_exp), scale, bias)
        return extend_by_kernel(q, identity_k, identity_v, (video.clone(), log_sum_exp.clone()), scale, bias), expected

    return refusal_by(trial, device, 2 * torch.finfo(dtype).eps + 1e-6)
