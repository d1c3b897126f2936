"""The model that reads the photo, with gradients.

The frozen model runs as in inference, with the same restricted self-attention; the identity stream is computed anew in
every step, and its K and V stay attached.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..attention import ATTACHED, restricted_attention
from ..contracts import UserError
from ..joint import JointStream
from ..wan import RECOMPUTED, Reading, Wan, differentiable
from .adapter import Adapter
from .kv_cache import ResidentLayers
from .positions import POSITIONS
from .stream import identity_layers, joint_stream
from .variant import ORDINARY

TIME_OFFSET = -1  # the paper's place of the identity, one frame before the video


@contextlib.contextmanager
def reading_photo(wan: Wan, adapter: Adapter, video_shape: tuple[int, ...], reference: torch.Tensor,
                  checkpointing: bool = False) -> Iterator[None]:
    """Within the context, calls of ``wan`` for a latent of video_shape read the identities, each video its own,
    with gradients, by the adapter's method.

    Raises UserError where checkpointing cannot be.
    """
    variant, size, photo_size = adapter.variant, wan.grid(video_shape)[1:], wan.grid(reference.shape)[1:]
    if checkpointing and variant.self_attention == ORDINARY:
        raise UserError("ordinary attention does not support checkpointing: switch checkpointing off.")
    with differentiable(), contextlib.ExitStack() as stack:
        rotation = wan.rotation(POSITIONS[variant.positions](size, photo_size, TIME_OFFSET, device=reference.device))
        layers: JointStream | ResidentLayers
        if variant.self_attention == ORDINARY:
            layers = joint_stream(wan, reference, adapter, rotation)
            attend = layers.attend
        else:
            if checkpointing:
                stack.enter_context(wan.checkpointed())
                layers = ResidentLayers(identity_layers(wan, reference, adapter, call=RECOMPUTED))
            else:
                layers = ResidentLayers(identity_layers(wan, reference, adapter))
            attend = restricted_attention(ATTACHED, own=True)
        reading = Reading(0, layers, rotation, torch.zeros(1, 1, device=reference.device), range(len(wan.blocks)))
        stack.enter_context(wan.identity_installed([reading], attend))
        yield
