"""Where in the video an identity is read: the mass of the attention on its tokens, recorded and shown.

The merge of attention states knows it without further work: with L before an identity was merged, L' after it and T
after all of them (log-sum-exps), its tokens have the share ``e^(L' - T) - e^(L - T)`` of the softmax.
"""
from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import comfy.model_management
import cv2
import numpy as np
import torch

from ..checks import check_number, checked_masks, checked_pictures
from ..errors import UserError
from ..latents import FRAMES_PER_LATENT, frames_of

COLOURS = cv2.COLORMAP_INFERNO


@dataclass(frozen=True, slots=True)
class AttentionMap:
    """How much of the video's self-attention went to each identity in one run.

    mass: [P, L, t, h, w] float32 on the CPU, for P identities, L main blocks and the video's tokens: the share of the
    softmax that lies on the identity's tokens, the mean over heads, steps and passes; 0 where a block did not read.
    calls: how many calls of the model were recorded.
    """

    mass: torch.Tensor
    calls: int


class AttentionRecorder:
    """Sums the mass over the model calls of one run. Several devices may call at a time, hence the lock."""

    def __init__(self, persons: int, blocks: int):
        self.shape = persons, blocks
        self.calls = 0
        self._counts: torch.Tensor | None = None
        self._sums: dict[torch.device, torch.Tensor] = {}  # on each device, so that no block waits for the host
        self._lock = threading.Lock()

    def for_call(self, grid: tuple[int, int, int], window=None):
        """The function that notes the masses of one model call.

        grid: (t, h, w) in tokens of what the call sees.
        window: as in ``StandInRun.region``.
        """
        frames = list(range(grid[0])) if window is None else list(window.index_list)
        total = grid[0] if window is None else window.total_frames
        counted = False

        def count() -> None:
            """At the first block that reads: a step that EasyCache skips has none."""
            nonlocal counted
            with self._lock:
                if counted:
                    return
                counted = True
                self.calls += 1
                if self._counts is None:
                    self._counts = torch.zeros(total)
                self._counts[frames] += 1

        def note(block: int, persons: list[int], masses: list[torch.Tensor]) -> None:
            count()
            for person, mass in zip(persons, masses, strict=True):
                if mass.shape[-1] != math.prod(grid):
                    raise UserError(f"the attention map has {math.prod(grid)} places and this model "
                                    f"{mass.shape[-1]} video tokens, because another node adds some: switch "
                                    "attention_map off.")
                # [B, H, N] -> [t, h, w]; a window may have a frame more before its own first
                mean = mass.mean(dim=(0, 1)).reshape(grid)[grid[0] - len(frames):]
                with self._lock:
                    if mean.device not in self._sums:
                        self._sums[mean.device] = torch.zeros(*self.shape, total, *grid[1:], device=mean.device)
                    self._sums[mean.device][person, block, frames] += mean

        return note

    def map(self) -> AttentionMap | None:
        """None where nothing was recorded."""
        if self._counts is None or not self._sums:
            return None
        total = sum(each.cpu() for each in self._sums.values())
        return AttentionMap(total / self._counts.clamp(min=1)[:, None, None], self.calls)


def show_map(images: torch.Tensor, maps: list[AttentionMap], opacity: float, person: int = 0, first_block: int = 0,
             last_block: int = -1, trim_latent: int = 0) -> tuple[torch.Tensor, torch.Tensor, str]:
    """The frames under the map, the map as a mask [F, H, W] that is 1 at its most, and its figures in words.

    images: [F, H, W, 3], the frames of the run.
    maps: one for each expert of the run.
    opacity: of the map over the frames, 0 to 1.
    person: see ``of_person``.
    first_block, last_block: see ``of_blocks``.
    trim_latent: how many latent frames were cut off the beginning.
    """
    images = checked_pictures(images, "images")
    check_number(trim_latent, "trim_latent", 0, whole=True)
    by_block = of_person(maps, person)
    by_block = checked_masks(by_block.flatten(0, 1), "attention_map").view(by_block.shape)  # shares of a softmax
    mass = on_frames(of_blocks(by_block, first_block, last_block)[trim_latent:], *images.shape[:3])
    mask = mass / mass.max().clamp(min=1e-12)
    return heat(images.cpu(), mask, opacity), mask, as_text(by_block)


def of_person(maps: list[AttentionMap], person: int) -> torch.Tensor:
    """The map of one person, [L, t, h, w]: the mean over the experts, weighted by their calls.

    Raises UserError for a person who is not there, and for experts whose people, blocks or videos differ in number or
    size.
    """
    if not maps:
        raise UserError("there is no attention map: switch attention_map on in Stand-In Sampler, with Apply "
                        "Identity Branch before it at a strength above 0.")
    shapes = {tuple(each.mass.shape) for each in maps}
    if len(shapes) > 1:
        raise UserError(f"the two experts read {' and '.join(str(shape[0]) for shape in sorted(shapes))} people, or "
                        "have other blocks, so they have no map in common: give both the same people.")
    persons = maps[0].mass.shape[0]
    if person >= persons:
        raise UserError(f"person is {person} and the model reads {persons}, counted from 0: lower it.")
    calls = sum(each.calls for each in maps)
    return sum((each.mass[person] * (each.calls / calls) for each in maps), start=torch.zeros(()))


def of_blocks(mass: torch.Tensor, first_block: int, last_block: int) -> torch.Tensor:
    """The mean over blocks, [L, t, h, w] -> [t, h, w].

    first_block, last_block: both included; last_block -1 is the last.

    Raises UserError for blocks that are not there.
    """
    blocks = len(mass)
    end = blocks if last_block == -1 else min(last_block + 1, blocks)
    if first_block >= end:
        raise UserError(f"the model has blocks 0 to {blocks - 1}, and {first_block} to {last_block} selects none of "
                        "them: set first_block no higher than last_block (-1 is the last block).")
    return mass[first_block:end].mean(dim=0)


def on_frames(mass: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
    """The map on the frames of the video, [t, h, w] -> [F, H, W]: bilinear in space, and in time each frame has the
    value of its latent frame.

    Raises UserError unless the video has just the frames that were sampled.
    """
    if frames != frames_of(len(mass)):
        raise UserError(f"the video has {frames} frames, the attention map {frames_of(len(mass))}: connect all the "
                        "frames of this very run, one video, and set trim_latent to what Trim Video Latent cut off.")
    latent_frame = [0, *(1 + i // FRAMES_PER_LATENT for i in range(frames - 1))]
    return torch.nn.functional.interpolate(mass[latent_frame][:, None], (height, width), mode="bilinear")[:, 0]


def heat(images: torch.Tensor, mask: torch.Tensor, opacity: float) -> torch.Tensor:
    """The frames under the map as colours from black (0) to yellow (1), [F, H, W, 3].

    images: [F, H, W, 3] in 0..1.
    mask: [F, H, W] in 0..1.
    opacity: of the colours, 0 to 1.
    """
    shown = torch.empty_like(images[..., :3])
    for frame, values in enumerate(np.rint(255 * mask.numpy()).astype(np.uint8)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        colours = cv2.cvtColor(cv2.applyColorMap(values, COLOURS), cv2.COLOR_BGR2RGB)
        shown[frame] = torch.lerp(images[frame, ..., :3], torch.from_numpy(colours).float() / 255, opacity)
    return shown


def as_text(mass: torch.Tensor) -> str:
    """The mean and the largest value of a map [L, t, h, w], and the mean of each block, in words."""
    of_each = mass.mean(dim=(1, 2, 3))
    most = int(of_each.argmax())
    return "\n".join([
        f"{100 * float(of_each.mean()):.1f} % of the attention of the video lies on the photo, "
        f"{100 * float(mass.max()):.1f} % at most for one place in one block",
        f"most in block {most}: {100 * float(of_each[most]):.1f} %",
        "by block: " + ", ".join(f"{100 * float(value):.1f}" for value in of_each) + " %",
    ])
