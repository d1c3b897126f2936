"""The state of one run: the reference on each device, and the bytes that it takes."""
from __future__ import annotations

import torch

from ..errors import UserError
from ..guidance import Passes
from ..latents import TIME, in_pixels
from ..runs import Run
from ..wan import Wan
from .applied import AppendedReference
from .forward import ReferenceModulation
from .run_report import ConcatIDReference, ConcatIDReport

# What a block holds at its peak for each token, in numbers, with C for dim and F for ffn_dim: in the feed-forward its
# input and output, the hidden layer before and after its activation, and the tokens themselves. tests/test_concat_id_
# memory.py compares with PyTorch's allocator.
TOKENS, HIDDEN = 4, 2


class ConcatIDRun(Run):
    """A ``Run`` that appends a reference to every call of the model."""

    report: ConcatIDReport

    def __init__(self, applied: AppendedReference, steps: int):
        super().__init__(ConcatIDReport(steps=steps), Passes(applied.guidance, applied.guidance_scale))
        self.applied = applied
        self._own: dict[tuple[torch.device, torch.dtype], ReferenceModulation] = {}

    def reported(self, wan: Wan) -> list[ConcatIDReference]:
        """For the report."""
        applied = self.applied
        height, width = applied.latent.shape[-2:]
        return [ConcatIDReference(
            file=applied.concat_id.name, sha256=applied.concat_id.sha256, variant=applied.concat_id.variant,
            reference_size=(height, width), references=len(applied.latent),
            tokens=len(applied.latent) * wan.count(applied.latent.shape), start_percent=applied.start_percent,
            end_percent=applied.end_percent, guidance=applied.guidance)]

    def own(self, device: torch.device, dtype: torch.dtype) -> ReferenceModulation | None:
        """What the AdaLN variant has for the reference, on the device, copied there once a run."""
        own = self.applied.concat_id.own
        if own is None:
            return None
        with self.lock:
            if (device, dtype) not in self._own:
                self._own[device, dtype] = own.to(device, dtype)
                self.report.own_bytes = own_bytes(own, dtype)
            return self._own[device, dtype]

    def appended(self, shape: tuple[int, ...], readers: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """The frames of one call of the model, [B, 16, M, h, w], model space.

        shape: [B, 16, T, h, w], of the video in the call.
        readers: [B] bool, which of the batch read the reference; None for all.
        """
        frames = self.applied.latent.to(device).permute(2, 1, 0, 3, 4)
        if readers is not None:
            frames = frames * readers.to(device)[:, None, None, None, None]
        # with the same strides whoever reads, or torch.compile compiles for each
        return frames.expand(shape[0], -1, -1, -1, -1).clone(memory_format=torch.contiguous_format)

    def release(self) -> None:
        self._own.clear()


def check_place(applied: AppendedReference, shape: tuple[int, ...], window=None) -> None:
    """Raises UserError unless the reference has the size of the video in a call of the model.

    shape: [B, 16, T, h, w]
    window: ComfyUI's IndexListContextWindow where the call sees a part of the video, else None.
    """
    if window is not None and window.dim != TIME:
        raise UserError("Concat-ID needs the whole picture in every call of the model, but context windows along "
                        f"height or width show it a part: set their dim to {TIME}.")
    size, video = tuple(applied.latent.shape[-2:]), tuple(shape[-2:])
    if size != video:
        raise UserError(f"the reference is for a video of {in_pixels(size)} and the model is given one of "
                        f"{in_pixels(video)}: connect the same latent to Apply Concat-ID and to the sampler, and give "
                        "no prompt an area.")


def extra_bytes(applied: AppendedReference, wan: Wan, noise_shape: tuple[int, ...]) -> int:
    """What a run needs on one device beside the plain model.

    Twice the batch, as ComfyUI's own estimate has it: positive and negative go through the model together.

    noise_shape: [B, 16, T, h, w]
    """
    tokens = 2 * noise_shape[0] * len(applied.latent) * wan.count(applied.latent.shape)
    activations = tokens * (TOKENS * wan.dim + HIDDEN * wan.ffn_dim) * wan.dtype.itemsize
    own = applied.concat_id.own
    return activations + (0 if own is None else own_bytes(own, wan.dtype))


def own_bytes(own: ReferenceModulation, dtype: torch.dtype) -> int:
    return sum(each.numel() for each in (own.weight, own.bias, own.blocks)) * dtype.itemsize
