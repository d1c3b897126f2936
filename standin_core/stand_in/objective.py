"""Flow matching with an identity: what the video's velocity should be, and what the model says that reads the photo.

``x = (1 - s) x_0 + s noise``, target ``noise - x_0``, loss the mean square of the difference over the video's latents
(WeChatCV/Stand-In's ``pipeline.training_loss``, without its weights over s). The frozen model runs as in inference,
with the same restricted self-attention; the identity stream is computed anew in every step and its K and V stay
attached.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import comfy.model_management
import torch

from ..attention import AttentionChoice, restricted_attention
from ..contracts import StandInError
from ..wan import RECOMPUTED, Reading, Wan
from .adapter import Adapter
from .kv_cache import ResidentLayers
from .method import ORDINARY
from .positions import POSITIONS
from .stream import identity_layers, joint_stream

TIME_OFFSET = -1  # the paper's place of the identity, one frame before the video
# keys and values are appended, which autograd sees through: a log-sum-exp has no gradient in PyTorch's operators
ATTACHED = AttentionChoice("concatenate", None, ())


@dataclass(frozen=True, slots=True)
class Batch:
    """Videos, each with a photo of its person, in model space, on the device of the model.

    video, noise: [B, 16, T, h, w] float32; reference: [B, 16, 1, h, w] and context: [B, N, text dim], the text
    encoder's, in the dtype of the model; sigma: [B] float32 in 0..1.
    """

    video: torch.Tensor
    noise: torch.Tensor
    reference: torch.Tensor
    context: torch.Tensor
    sigma: torch.Tensor


def flow_matching_loss(wan: Wan, adapter: Adapter, batch: Batch, checkpointing: bool = False,
                       backward: Callable[[torch.Tensor], None] | None = None) -> float:
    """The loss. backward: is called with it as a tensor, before what its gradients need is gone; they reach the
    adapter, and the model, if its parameters take any. checkpointing: compute what is inside the blocks again in the
    backward pass, for a third more time, and do not keep it.
    """
    with identity_read(wan, adapter, batch.video.shape, batch.reference, checkpointing):
        sigma = batch.sigma.reshape(-1, 1, 1, 1, 1)
        noisy = (1 - sigma) * batch.video + sigma * batch.noise
        predicted = wan(noisy.to(wan.dtype), 1000 * batch.sigma, batch.context)
        loss = torch.nn.functional.mse_loss(predicted.float(), batch.noise - batch.video)
        if backward is not None:
            backward(loss)
    return float(loss.detach())


@contextlib.contextmanager
def identity_read(wan: Wan, adapter: Adapter, video_shape: tuple[int, ...], reference: torch.Tensor,
                  checkpointing: bool = False) -> Iterator[None]:
    """Within the context, calls of ``wan`` for a latent of video_shape read the identities, each video its own,
    with gradients, by the adapter's method.

    Raises StandInError where checkpointing cannot be.
    """
    method, size, photo_size = adapter.method, wan.grid(video_shape)[1:], wan.grid(reference.shape)[1:]
    if checkpointing and method.attention == ORDINARY:
        raise StandInError("with ordinary attention nothing can be computed again: train without checkpointing.")
    with differentiable(), contextlib.ExitStack() as stack:
        rotation = wan.rotation(POSITIONS[method.positions](size, photo_size, TIME_OFFSET, device=reference.device))
        if method.attention == ORDINARY:
            layers = joint_stream(wan, reference, adapter, rotation)
            attend = layers.attend
        else:
            call = {}
            if checkpointing:
                stack.enter_context(wan.checkpointed())
                call = {"call": RECOMPUTED}
            layers = ResidentLayers(identity_layers(wan, reference, adapter, **call))
            attend = restricted_attention(ATTACHED, own=True)
        reading = Reading(0, layers, rotation, torch.zeros(1, 1, device=reference.device), range(len(wan.blocks)))
        stack.enter_context(wan.identity_installed([reading], attend))
        yield


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """ComfyUI's RoPE has a gradient only while it knows that it trains."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
