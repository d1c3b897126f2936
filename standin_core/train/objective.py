"""Flow matching with an identity: what the video's velocity should be, and what the model says that reads the photo.

``x = (1 - s) x_0 + s noise``, target ``noise - x_0``, loss the mean square of the difference over the video's latents
(WeChatCV/Stand-In's ``pipeline.training_loss``, without its weights over s). The frozen model runs as in inference,
with the same restricted self-attention; the identity stream is computed anew in every step and its K and V stay
attached.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import comfy.model_management
import torch

from ..attention import AttentionChoice, restricted_attention
from ..contracts import Adapter
from ..identity import identity_layers
from ..kv_cache import ResidentLayers
from ..rope import identity_positions
from ..wan import Reading, Wan

TIME_OFFSET = -1  # the paper's place of the identity, one frame before the video
# keys and values are appended, which autograd sees through: a log-sum-exp has no gradient in PyTorch's operators
ATTACHED = AttentionChoice("concatenate", None, ())


@dataclass(frozen=True, slots=True)
class Batch:
    """Videos of one person with a photo of him or her, in model space, on the device and in the dtype of the model.

    video, noise: [B, 16, T, h, w]; reference: [R, 16, 1, h, w]; context: [B, N, text dim], the text encoder's; sigma:
    [B] in 0..1.
    """

    video: torch.Tensor
    noise: torch.Tensor
    reference: torch.Tensor
    context: torch.Tensor
    sigma: torch.Tensor


def flow_matching_loss(wan: Wan, adapter: Adapter, batch: Batch) -> torch.Tensor:
    """A scalar, to call ``backward`` on; gradients reach the adapter alone if the model's parameters take none."""
    sigma = batch.sigma.reshape(-1, 1, 1, 1, 1)
    noisy = (1 - sigma) * batch.video + sigma * batch.noise
    predicted = velocity(wan, adapter, noisy, batch.sigma, batch.context, batch.reference)
    return torch.nn.functional.mse_loss(predicted.float(), (batch.noise - batch.video).float())


def velocity(wan: Wan, adapter: Adapter, noisy: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor,
             reference: torch.Tensor) -> torch.Tensor:
    """What the model says of noisy [B, 16, T, h, w] at sigma [B], reading the identity; the same shape."""
    with differentiable():
        layers = ResidentLayers(identity_layers(wan, reference, adapter))
        positions = identity_positions(wan.grid(noisy.shape)[1:], wan.grid(reference.shape)[1:], TIME_OFFSET,
                                       device=noisy.device)
        reading = Reading(0, layers, wan.rotation(positions), torch.zeros(1, 1, device=noisy.device),
                          range(len(wan.blocks)))
        with wan.identity_installed([reading], restricted_attention(ATTACHED)):
            return wan.model(noisy, 1000 * sigma, context)


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """ComfyUI's RoPE has a gradient only while it knows that it trains."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
