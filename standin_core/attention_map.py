"""Where in the video an identity is read: the mass of the attention on its tokens, recorded and shown.

The merge of attention states knows it without further work: with L before an identity was merged, L' after it and T
after all of them (log-sum-exps), its tokens have the share ``e^(L' - T) - e^(L - T)`` of the softmax.
"""
from __future__ import annotations

import math
import threading

import cv2
import numpy as np
import torch

from .contracts import AttentionMap, StandInError
from .latent_time import FRAMES_PER_LATENT, frames_of

COLOURS = cv2.COLORMAP_INFERNO


class AttentionRecorder:
    """Sums the mass over the model calls of one run. Several devices may call at a time, hence the lock."""

    def __init__(self, persons: int, blocks: int):
        self.shape = persons, blocks
        self.calls = 0
        self._counts: torch.Tensor | None = None
        self._sums: dict[torch.device, torch.Tensor] = {}  # on each device, so that no block waits for the host
        self._lock = threading.Lock()

    def for_call(self, grid: tuple[int, int, int], window=None):
        """The function that notes the masses of one model call. window: as in ``Run.region``."""
        frames = list(range(grid[0])) if window is None else list(window.index_list)
        total = grid[0] if window is None else window.total_frames
        with self._lock:
            self.calls += 1
            if self._counts is None:
                self._counts = torch.zeros(total)
            self._counts[frames] += 1

        def note(block: int, persons: list[int], masses: list[torch.Tensor]) -> None:
            for person, mass in zip(persons, masses, strict=True):
                if mass.shape[-1] != math.prod(grid):
                    raise StandInError(f"the attention map has {math.prod(grid)} places and this model "
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
        if not self._sums:
            return None
        total = sum(each.cpu() for each in self._sums.values())
        return AttentionMap(total / self._counts.clamp(min=1)[:, None, None], self.calls)


def show_map(images: torch.Tensor, maps: list[AttentionMap], opacity: float, person: int = 0, first_block: int = 0,
             last_block: int = -1) -> tuple[torch.Tensor, torch.Tensor, str]:
    """The frames under the map, the map as a mask [F, H, W] that is 1 at its most, and its figures in words.

    images: [F, H, W, 3], of the run that the maps (of each expert) are of; the rest is as in ``combined``.
    """
    mass = on_frames(combined(maps, person, first_block, last_block), *images.shape[:3])
    mask = mass / mass.max().clamp(min=1e-12)
    return heat(images, mask, opacity), mask, as_text(maps, person)


def combined(maps: list[AttentionMap], person: int, first_block: int, last_block: int) -> torch.Tensor:
    """[t, h, w], the mean over blocks, both ends included (-1 is the last), and over runs by their calls.

    Raises StandInError for a person or blocks that are not there.
    """
    if not maps:
        raise StandInError("there is no attention map: switch attention_map on in Stand-In Sampler, with Apply "
                           "Identity Branch before it at a strength above 0.")
    persons, blocks = maps[0].mass.shape[:2]
    if person >= persons:
        raise StandInError(f"person is {person} and the model reads {persons}, counted from 0: lower it.")
    end = blocks if last_block == -1 else min(last_block + 1, blocks)
    if first_block >= end:
        raise StandInError(f"blocks {first_block} to {last_block} are none of the model's, 0 to {blocks - 1}: set the "
                           "first below the last (-1 is the last there is).")
    calls = sum(each.calls for each in maps)
    return sum(each.mass[person, first_block:end].mean(dim=0) * (each.calls / calls) for each in maps)


def on_frames(mass: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
    """mass: [t, h, w] -> [F, H, W], bilinear in space; a frame has the value of its latent frame.

    Latent frames that the video no longer has are those before it, like a reference picture of VACE, cut off again.
    Raises StandInError for a video that is longer than what was sampled.
    """
    kept = (frames - 1) // FRAMES_PER_LATENT + 1
    if frames != frames_of(kept) or kept > len(mass):
        raise StandInError(f"the video has {frames} frames, the attention map {frames_of(len(mass))}: connect the "
                           "frames of this very run, all of them.")
    latent_frame = [0, *(1 + i // FRAMES_PER_LATENT for i in range(frames - 1))]
    mass = mass[-kept:][latent_frame]
    return torch.nn.functional.interpolate(mass[:, None], (height, width), mode="bilinear")[:, 0]


def heat(images: torch.Tensor, mask: torch.Tensor, opacity: float) -> torch.Tensor:
    """images: [F, H, W, 3] and mask: [F, H, W] in 0..1 -> [F, H, W, 3], from black (0) to yellow (1)."""
    shown = torch.empty_like(images[..., :3])
    for frame, values in enumerate(np.rint(255 * mask.numpy()).astype(np.uint8)):
        colours = cv2.cvtColor(cv2.applyColorMap(values, COLOURS), cv2.COLOR_BGR2RGB)
        shown[frame] = torch.lerp(images[frame, ..., :3], torch.from_numpy(colours).float() / 255, opacity)
    return shown


def as_text(maps: list[AttentionMap], person: int) -> str:
    """The mean and the largest mass, and those of each block."""
    calls = sum(each.calls for each in maps)
    of_blocks = sum(each.mass[person].mean(dim=(1, 2, 3)) * (each.calls / calls) for each in maps)
    largest = max(float(each.mass[person].max()) for each in maps)
    most = int(of_blocks.argmax())
    return "\n".join([
        f"{100 * float(of_blocks.mean()):.1f} % of the attention of the video lies on the photo, {100 * largest:.1f} % "
        "at most for one place in one block",
        f"most in block {most}: {100 * float(of_blocks[most]):.1f} %",
        "by block: " + ", ".join(f"{100 * float(value):.1f}" for value in of_blocks) + " %",
    ])
