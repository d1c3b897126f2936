"""What the paper takes away to show what it is for (Stand-In, table 3), for training and for sampling.

*Shared positions* instead of conditional position mapping: the photo stands where the video's first frame stands.
*Ordinary attention* instead of restricted: the photo's tokens read the video too, so that they have to be computed anew
in every step, with the video.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from comfy.patcher_extension import WrappersMP

import standin_core.stand_in.objective as objective
import standin_core.stand_in.wrappers
from standin_core.stand_in.adapter import Adapter
from standin_core.stand_in.positions import identity_positions
from standin_core.wan import Reading, Wan

ABLATIONS = ("shared positions", "ordinary attention")


@contextlib.contextmanager
def ablated(name: str | None) -> Iterator[None]:
    """Within the context, training does without; for *shared positions* sampling too."""
    with contextlib.ExitStack() as stack:
        if name == "shared positions":
            for module in (objective, standin_core.stand_in.wrappers):
                stack.enter_context(mock.patch.object(module, "identity_positions", _shared_positions))
        elif name == "ordinary attention":
            stack.enter_context(mock.patch.object(objective, "identity_read", _ordinary_read))
        yield


def with_ordinary_attention(model, adapter: Adapter, reference_latent: torch.Tensor):
    """A clone of the ModelPatcher that samples so; reference_latent: [1, 16, 1, h, w], VAE space."""
    wan, patched = Wan(model.model), model.clone()
    reference = model.model.process_latent_in(reference_latent)

    def call(executor, x, *args, **kwargs):
        with _installed(wan, adapter, x.shape, reference.expand(len(x), -1, -1, -1, -1)):
            return executor(x, *args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "ordinary_attention", call)
    return patched


def _shared_positions(video_size, identity_size, time_offset, rope_options=None, device=None) -> torch.Tensor:
    return identity_positions((0, 0), identity_size, 0, rope_options, device)


@contextlib.contextmanager
def _ordinary_read(wan: Wan, adapter: Adapter, video_shape, reference: torch.Tensor,
                   checkpointing: bool = False) -> Iterator[None]:
    if checkpointing:
        raise ValueError("with ordinary attention nothing is computed again: train it without checkpointing")
    with objective.differentiable(), _installed(wan, adapter, video_shape, reference):
        yield


@contextlib.contextmanager
def _installed(wan: Wan, adapter: Adapter, video_shape, reference: torch.Tensor) -> Iterator[None]:
    positions = identity_positions(wan.grid(video_shape)[1:], wan.grid(reference.shape)[1:], objective.TIME_OFFSET,
                                   device=reference.device)
    layers = _JointLayers(wan, adapter, reference, wan.rotation(positions))
    reading = Reading(0, layers, layers.rotation, torch.zeros(1, 1, device=reference.device), range(len(wan.blocks)))
    with wan.identity_installed([reading], layers.attend):
        yield


class _JointLayers:
    """K and V of the photo's tokens [B, N_ref, C], one photo for each video, which go through the blocks with it."""

    stay = False

    def __init__(self, wan: Wan, adapter: Adapter, reference: torch.Tensor, rotation: torch.Tensor):
        self.wan, self.adapter, self.rotation = wan, adapter, rotation
        self.tokens = wan.embed(reference)
        self.time = wan.time(0.0, like=self.tokens)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.block, self.low_rank = self.wan.blocks[index], self.adapter.blocks[index]
        self.modulation = self.block.modulation(self.time)
        self.normed = self.block.attention_input(self.tokens, self.modulation)
        attn = self.block.attn
        return attn.norm_k(attn.k(self.normed) + self.low_rank.k(self.normed)), \
            attn.v(self.normed) + self.low_rank.v(self.normed)

    def attend(self, host, q, k, v, identities, heads, **kwargs):
        ((identity_k, identity_v, _),) = identities
        k, v, attn = torch.cat((k, identity_k), dim=1), torch.cat((v, identity_v), dim=1), self.block.attn
        query = self.block.rotate(attn.norm_q(attn.q(self.normed) + self.low_rank.q(self.normed)), self.rotation)
        self.tokens = self.block.after_attention(self.tokens, host(query, k, v, heads=heads, **kwargs), self.modulation)
        return host(q, k, v, heads=heads, **kwargs)
