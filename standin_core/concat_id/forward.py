"""Concat-ID's forward pass: the clean latent of a reference runs through the blocks behind the noisy video.

The equations are those of arXiv 2503.14151 and of the authors' code for Wan (ML-GSAI/Concat-ID at b15cb95). With the
video's tokens v, the reference's tokens r, and six modulation vectors for each, shift s, scale c and gate g of the
attention (1) and the feed-forward (2), a block computes::

    a  = SelfAttn([ LN(v) (1 + c1) + s1 ; LN(r) (1 + c1') + s1' ])      every token reads every token
    v += g1 a_v                          r += g1' a_r
    v += CrossAttn(LN3(v), text)                                        the reference never reads the text
    f  = FFN([ LN(v) (1 + c2) + s2 ; LN(r) (1 + c2') + s2' ])
    v += g2 f_v                          r += g2' f_r

Both sides have the timestep of the video. The reference of a ``first_stage`` is modulated as the video is; the AdaLN
variant has a projection of the timestep and vectors of its own, and takes (s1', c1') for (s2', c2') again.

ComfyUI's model appends the frames (``time_dim_concat``) and drops them at its end; the blocks take the class that is
made here for the time of a call, in a run as in training.
"""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..exchange import exchanged, in_own_thread
from ..rope import grid_positions
from ..wan import Modulation, Wan, modulation

# shift, scale and gate of the attention, then of the feed-forward, whose own shift and scale the authors never use
SLOTS = [0, 1, 2, 0, 1, 5]


@dataclass(frozen=True, slots=True)
class ReferenceModulation:
    """The modulation that the AdaLN variant has for the reference, beside the native weights.

    weight: [6 C, C] of the projection of the timestep.
    bias: [6 C]
    blocks: [L, 6, C], the vectors of every block.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    blocks: torch.Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> ReferenceModulation:
        return ReferenceModulation(*(each.to(device, dtype) for each in (self.weight, self.bias, self.blocks)))

    def at(self, embedded: torch.Tensor) -> torch.Tensor:
        """What each block takes, [L, B, 6, C].

        embedded: [B, C], the embedding of the timestep.
        """
        projected = torch.nn.functional.linear(torch.nn.functional.silu(embedded), self.weight, self.bias)
        return (self.blocks.unsqueeze(1) + projected.unflatten(1, (6, -1)))[:, :, SLOTS]


def reference_positions(grid: tuple[int, int, int], references: int, rope_options: dict | None = None,
                        device: torch.device | None = None) -> torch.Tensor:
    """Positions of the references' tokens, [1, M * h * w, 3] float32, as (t, y, x).

    The first reference stands one frame after the video and to its right, at (T, y, w + x); each further one stands a
    frame later.

    grid: (T, h, w) of the video in tokens.
    references: M, how many frames are appended.
    rope_options: by which ComfyUI scales and shifts the video's positions; the references follow.
    """
    options = rope_options or {}
    frames, height, width = grid
    shift_t, shift_y, shift_x = (options.get(f"shift_{axis}", 0.0) for axis in "tyx")
    scale_t, scale_y, scale_x = (options.get(f"scale_{axis}", 1.0) for axis in "tyx")
    return torch.cat([
        grid_positions((height, width), (shift_t + scale_t * frame, shift_y, shift_x + scale_x * width), device,
                       (scale_y, scale_x))
        for frame in range(frames, frames + references)], dim=1)


@contextlib.contextmanager
def references_appended(wan: Wan, grid: tuple[int, int, int], references: int, timestep: torch.Tensor,
                        own: ReferenceModulation | None, rope_options: dict | None = None) -> Iterator[None]:
    """Within the context, calls of the model take the last frames of what they are given for references.

    grid: (T, h, w) of the video in tokens.
    references: M, how many frames are appended.
    timestep: [B], 0 to 1000.
    own: on the device and in the dtype of the call; None for a ``first_stage``.
    rope_options: as in ``reference_positions``.

    Raises UserError where another node has put a forward of its own into a block.
    """
    rotation = wan.rotation(reference_positions(grid, references, rope_options, timestep.device))
    modulations = None if own is None else own.at(wan.time_embedding(timestep, own.blocks.dtype)).unbind(0)
    del own  # an exception would keep this frame, and with it what the run holds on the device
    with contextlib.ExitStack() as stack:
        for i, block in enumerate(wan.blocks):
            if "forward" in block.block.__dict__:
                raise UserError("another node replaced the transformer blocks of this model, but Concat-ID needs its "
                                "own: take that node out.")
            stack.enter_context(exchanged(
                block.block, _with_references, reference_rotation=rotation,
                reference_modulation=None if modulations is None else modulations[i]))
        yield


@functools.cache
def _with_references(base: type) -> type:
    return type(f"{base.__name__}WithReferences", (base,), {"forward": in_own_thread(base, _forward)})


def _forward(self, x, e, freqs, context, context_img_len=257, transformer_options={}):  # noqa: B006  # as ComfyUI's block has it
    """As the forward of ComfyUI's block, whose sub-modules are called, so that whatever others put on them works.

    x: [B, (T + M) * n, C]
    e: [B, 1, 6, C], the projected time embedding.
    freqs: [1, (T + M) * n, 1, D/2, 2, 2]
    """
    if e.ndim == 4 and e.shape[1] != 1:
        raise UserError("this model gives every frame a timestep of its own, but Concat-ID knows one for all: load it "
                        "with Load Concat-ID.")
    count = self.reference_rotation.shape[1]
    of_video = modulation(self, e.reshape(e.shape[0], 6, -1))
    of_reference = of_video
    if self.reference_modulation is not None:
        of_reference = Modulation(*self.reference_modulation.chunk(6, dim=1))
    video, reference = x[:, :-count], x[:, -count:]
    attended = self.self_attn(
        torch.cat((torch.addcmul(of_video.shift, self.norm1(video), 1 + of_video.scale),
                   torch.addcmul(of_reference.shift, self.norm1(reference), 1 + of_reference.scale)), dim=1),
        torch.cat((freqs[:, :-count], self.reference_rotation.to(freqs.dtype)), dim=1),
        transformer_options=transformer_options)
    video = torch.addcmul(video, attended[:, :-count], of_video.gate)
    reference = torch.addcmul(reference, attended[:, -count:], of_reference.gate)
    del attended
    video = video + self.cross_attn(self.norm3(video), context, context_img_len=context_img_len,
                                    transformer_options=transformer_options)
    for patch in transformer_options.get("patches", {}).get("attn2_patch", ()):
        video = patch({"x": video, "transformer_options": transformer_options})
    hidden = self.ffn(
        torch.cat((torch.addcmul(of_video.ffn_shift, self.norm2(video), 1 + of_video.ffn_scale),
                   torch.addcmul(of_reference.ffn_shift, self.norm2(reference), 1 + of_reference.ffn_scale)), dim=1))
    return torch.cat((torch.addcmul(video, hidden[:, :-count], of_video.ffn_gate),
                      torch.addcmul(reference, hidden[:, -count:], of_reference.ffn_gate)), dim=1)
