"""Reads from a picture who is in it and in which pose, so that a generated video can be compared with what was asked.

A small network, trained on renders alone, whose truth is known. How often it is right on renders of people it never
saw, before and after the VAE, is the scale on which generated videos are measured.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch

from .models import SIDE, WEIGHTS
from .people import TRAITS, Person
from .scenes import ACTIONS, BACKGROUNDS, Pose

READER_FILE = WEIGHTS / "small_world_reader.safetensors"
WIDTHS, HIDDEN = (32, 64, 96, 128), 192
CORNER = 8  # of a side
POSE = Pose.__slots__
# how far each part of a pose moves in an action, by which they are made comparable
POSE_SCALE = torch.tensor([0.5, 0.5, 14.0, 0.06, 0.04, 0.05, 0.45, 0.35, 0.35])


class Reader(torch.nn.Module):
    """[B, 3, SIDE, SIDE] in -1..1 -> logits of each trait, [B, n] for each of TRAITS, and the pose, [B, 9]."""

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for width in WIDTHS:
            layers += [torch.nn.Conv2d(before, width, 3, stride=2, padding=1), torch.nn.GroupNorm(8, width),
                       torch.nn.SiLU(), torch.nn.Conv2d(width, width, 3, padding=1), torch.nn.SiLU()]
            before = width
        places = (SIDE // 2 ** len(WIDTHS)) ** 2
        self.body = torch.nn.Sequential(*layers, torch.nn.Flatten(),
                                        torch.nn.Linear(before * places, HIDDEN), torch.nn.SiLU())
        self.traits = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, len(values)) for values in TRAITS.values())
        self.pose = torch.nn.Linear(HIDDEN, len(POSE))

    def forward(self, pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        hidden = self.body(pixels)
        return [head(hidden) for head in self.traits], self.pose(hidden)


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """What is read from the F frames of a video.

    traits: [F, 7], the place of each trait among TRAITS.
    confidence: [F, 7], the probability that the reader gives to each of them.
    poses: [F, 9], in units of POSE_SCALE.
    corners: [2, 3], the mean colour of the upper left and the upper right one, 0 to 255.
    """

    traits: np.ndarray
    confidence: np.ndarray
    poses: np.ndarray
    corners: np.ndarray

    def agreement(self, person: Person) -> float:
        """The share of the person's visible traits, over all frames, that are read as they are."""
        return float((self.traits == person.labels)[:, person.visible].mean())

    def action(self) -> str:
        """The one of ACTIONS whose course the poses follow best."""
        t = np.linspace(0, 1, len(self.poses))
        moved = self.poses - self.poses.mean(axis=0)

        def distance(action: str) -> float:
            course = np.zeros_like(moved)
            for frame, at in enumerate(t):
                for name, change in ACTIONS[action](at).items():
                    course[frame, POSE.index(name)] = change / float(POSE_SCALE[POSE.index(name)])
            return float(((moved - (course - course.mean(axis=0))) ** 2).sum())

        return min(ACTIONS, key=distance)

    def background(self) -> str:
        """The one of BACKGROUNDS that a corner is nearest to; hair may be in the other."""
        return min(BACKGROUNDS, key=lambda name: np.abs(self.corners - BACKGROUNDS[name]).sum(axis=1).min())

    def part(self, name: str) -> np.ndarray:
        """The course of a part of POSE, [F], in units of POSE_SCALE."""
        return self.poses[:, POSE.index(name)]

    @property
    def motion(self) -> float:
        """How far the pose moves, the mean over its parts of the deviation over time."""
        return float(self.poses.std(axis=0).mean())


def load_reader() -> Reader:
    reader = Reader().eval()
    reader.load_state_dict({key: value.float() for key, value in safetensors.torch.load_file(READER_FILE).items()})
    return reader


@torch.inference_mode()
def read(reader: Reader, frames: np.ndarray) -> Readings:
    """Ask the reader about each frame.

    frames: [F, H, W, 3] uint8; they are resized to the reader's height, and their sides repeated to its width.
    """
    logits, poses = reader(framed(torch.from_numpy(frames).movedim(-1, 1).float() / 127.5 - 1))
    likely = [each.softmax(dim=1).max(dim=1) for each in logits]
    strip, side = frames[:, :frames.shape[1] // CORNER], frames.shape[2] // CORNER
    corners = np.stack([part.mean(axis=(0, 1, 2)) for part in (strip[:, :, :side], strip[:, :, -side:])])
    return Readings(torch.stack([each.indices for each in likely], dim=1).numpy(),
                    torch.stack([each.values for each in likely], dim=1).numpy(), poses.numpy(), corners)


@torch.inference_mode()
def features(reader: Reader, frames: np.ndarray) -> np.ndarray:
    """[F, HIDDEN], of length 1: what the reader sees in each frame before it names traits, as a face embedder does.

    frames: [F, H, W, 3] uint8.
    """
    seen = reader.body(framed(torch.from_numpy(frames).movedim(-1, 1).float() / 127.5 - 1))
    return torch.nn.functional.normalize(seen, dim=1).numpy()


def framed(pixels: torch.Tensor) -> torch.Tensor:
    """[F, 3, H, W] -> [F, 3, SIDE, SIDE]"""
    height, width = pixels.shape[-2:]
    if height != SIDE:
        width = min(SIDE, round(width * SIDE / height))
        pixels = torch.nn.functional.interpolate(pixels, size=(SIDE, width), mode="area")
    left = (SIDE - width) // 2
    return torch.nn.functional.pad(pixels, (left, SIDE - width - left, 0, 0), mode="replicate")


def halves(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[F, H, W, 3] -> its left and its right half, in each of which one of two people is."""
    middle = frames.shape[2] // 2
    return frames[:, :, :middle], frames[:, :, middle:]
