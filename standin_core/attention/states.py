"""Attention states: an attention that also tells its log-sum-exp, and the merge of two of them.

The log-sum-exp merge is section 2.2 of arXiv 2501.01005. With (o, L) of the video keys, (o_r, L_r) of the identity
keys and a bias b on the identity logits::

    out = (e^L o + e^{L_r + b} o_r) / (e^L + e^{L_r + b})  =  o + sigmoid(L_r + b - L) (o_r - o)

Nothing is concatenated, so the host's keys and values are never copied.
"""
from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend

from .naive import naive_state
from .reasons import Reason, Why
from .trial import on, refusal_by, shared, trial_inputs

State = tuple[torch.Tensor, torch.Tensor]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class StateSource:
    """A function that returns attention states, and the reason for which a run passes it over.

    device_type: where it runs, or None for everywhere.
    state: q [B, H, N, D], k and v [B, H, M, D], scale -> output [B, H, N, D], log-sum-exp [B, H, N] in fp32.
    can_use: of ``torch.backends.cuda``, whether PyTorch has a kernel for such tensors; None where it need not be asked.
    package: what must be installed, for a source that is not PyTorch's.
    backend: which of PyTorch's it is.
    rounding: how much it rounds beside the dtype, relative RMS.
    """

    name: str
    device_type: str | None
    state: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], State]
    can_use: Callable | None = None
    package: str | None = None
    backend: SDPBackend | None = None
    rounding: float = 0.0

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> Reason | None:
        """Why it cannot be taken there, or None if it computes, and computes rightly."""
        if self.device_type not in (None, device.type):
            return Reason(Why.OTHER_DEVICE, (self.device_type, device.type))
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return Reason(Why.NOT_INSTALLED, (self.package,))
        return state_trial(self, device, dtype, head_dim)


@functools.cache
def state_trial(source: StateSource, device: torch.device, dtype: torch.dtype, head_dim: int) -> Reason | None:
    """What goes wrong when a source computes two small states on this device, compared with fp64, or None.

    Packages differ between versions in what they return, and so does PyTorch between cards: on ROCm before 2.8 its
    log-sum-exps were in powers of 2 (pytorch #156012). Each source is asked once a process, before a run depends on it.
    """
    q, *keys = trial_inputs(device, dtype, head_dim)
    video, identity = keys[:2], [shared(x, len(q)) for x in keys[2:]]
    if source.can_use is not None:
        with on(device):
            for each in (video, identity):
                # PyTorch's annotations lack its last argument, hence the type: ignore
                given = torch.backends.cuda.SDPAParams(q, *each, None, 0.0, False, False)  # type: ignore[call-arg,arg-type]
                if not source.can_use(given):
                    return Reason(Why.NO_OPERATOR, (dtype, head_dim))

    def trial():
        scale = head_dim**-0.5
        # in fp64, which no setting of another pack (TF32) rounds
        exact = [naive_state(q.double(), *(x.double() for x in keys), scale) for keys in (video, identity)]
        return (*source.state(q, *video, scale), *source.state(q, *identity, scale)), (*exact[0], *exact[1])

    return refusal_by(trial, device, source.rounding + 2 * torch.finfo(dtype).eps + 1e-6)


def _cpu_flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> State:
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)


def _cuda_flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> State:
    return aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]


def _cuda_cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> State:
    output, log_sum_exp = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=scale)[:2]
    return output, log_sum_exp.reshape(q.shape[:-1])  # cuDNN keeps a trailing 1


def _cuda_efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> State:
    output, log_sum_exp = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)[:2]
    return output, log_sum_exp[..., :q.shape[-2]]  # its rows are padded to a multiple of 32


# Both take and give [B, N, H, D], so that nothing is copied on the way; neither is to be traced by torch.compile.
@torch.compiler.disable
def _sage(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, smooth_k: bool = False) -> State:
    from sageattention import sageattn  # optional

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    state = sageattn(q, k, v, tensor_layout="NHD", is_causal=False, sm_scale=scale, smooth_k=smooth_k, return_lse=True)
    if not isinstance(state, tuple):
        raise TypeError("this version of sageattention returns no log-sum-exp, version 2 does")
    output, log_sum_exp = state
    return output.transpose(1, 2), log_sum_exp


@torch.compiler.disable
def _flash_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> State:
    from flash_attn import flash_attn_func  # optional

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    output, log_sum_exp, _ = flash_attn_func(q, k, v, softmax_scale=scale, return_attn_probs=True)
    return output.transpose(1, 2), log_sum_exp


# A tile of 256 queries against 33,784 keys of 40 heads has 1.4 GB of fp32 logits.
TILE = 256


def _tiled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> State:
    k, v = k.float(), v.float()
    tiles = [naive_state(tile, k, v, scale) for tile in q.split(TILE, dim=-2)]
    return torch.cat([output for output, _ in tiles], dim=-2), torch.cat([lse for _, lse in tiles], dim=-1)


# in the order of ComfyUI 0.30 (comfy/ops.py, SDPA_BACKEND_PRIORITY), for where PyTorch does not say what it would take
FUSED = (
    StateSource("PyTorch flash attention (CPU)", "cpu", _cpu_flash, backend=SDPBackend.FLASH_ATTENTION),
    StateSource("PyTorch flash attention (CUDA)", "cuda", _cuda_flash, torch.backends.cuda.can_use_flash_attention,
                backend=SDPBackend.FLASH_ATTENTION),
    StateSource("PyTorch cuDNN attention (CUDA)", "cuda", _cuda_cudnn, torch.backends.cuda.can_use_cudnn_attention,
                backend=SDPBackend.CUDNN_ATTENTION),
    # from Ampere on, it multiplies fp32 in parts of TF32
    StateSource("PyTorch memory-efficient attention (CUDA)", "cuda", _cuda_efficient,
                torch.backends.cuda.can_use_efficient_attention, backend=SDPBackend.EFFICIENT_ATTENTION, rounding=1e-5),
)
# where ComfyUI was started with them; SageAttention computes q k^T in int8 and the weights times v in fp8 or fp16
SAGE = StateSource("SageAttention", "cuda", _sage, package="sageattention", rounding=0.1)
# with the mean taken off the keys, which costs another product for the log-sum-exp
SMOOTHED_SAGE = dataclasses.replace(SAGE, state=functools.partial(_sage, smooth_k=True))
FLASH_ATTN = StateSource("FlashAttention", "cuda", _flash_attn, package="flash_attn")
TILED = StateSource("fp32 attention in tiles of queries", None, _tiled)


def merge_states(state: State, identity: State, bias: torch.Tensor) -> State:
    """Merge the identity's state into the video's, in the memory of the video's output.

    state, identity: (output [B, H, N, D], log-sum-exp [B, H, N])
    bias: on the identity's logits, of the shape of the log-sum-exps or one that broadcasts to it; -inf leaves a query
        as it is, bit for bit.
    """
    (output, log_sum_exp), (identity_output, identity_log_sum_exp) = state, identity
    biased = identity_log_sum_exp + bias
    share = torch.sigmoid(biased - log_sum_exp).unsqueeze(-1)
    return output.lerp_(identity_output, share.to(output.dtype)), torch.logaddexp(log_sum_exp, biased)
