"""What happens: an action, named in the caption, and everything else that is not the person, which is not."""
from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

BACKGROUNDS: dict[str, Colour] = {"grey": (150, 152, 156), "green": (96, 158, 104), "pink": (226, 150, 170),
                                  "yellow": (232, 206, 110), "violet": (140, 110, 180), "white": (244, 244, 244)}
SHIRTS: tuple[Colour, ...] = ((70, 74, 84), (180, 60, 60), (60, 120, 90), (210, 170, 60), (90, 90, 160),
                              (235, 235, 235))
WHO = {1: "a person", 2: "two people, each"}  # by how many there are, at the beginning of a caption


@dataclass(frozen=True, slots=True)
class Pose:
    """One moment of a head.

    yaw, pitch: where the face looks, -1 to 1, right and up.
    roll: degrees.
    x, y: the middle of the head, 0 to 1 of the picture's width and height.
    size: the head's height, of the picture's.
    smile: -1 to 1.
    mouth, eyes: how far open, 0 to 1.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    x: float = 0.5
    y: float = 0.5
    size: float = 0.62
    smile: float = 0.1
    mouth: float = 0.0
    eyes: float = 1.0


def _wave(t: float) -> float:
    """One turn: 0 at both ends and in the middle, 1 between."""
    return math.sin(2 * math.pi * t)


def _bump(t: float) -> float:
    """0 at both ends, 1 in the middle."""
    return math.sin(math.pi * t) ** 2


# name in the caption -> what changes at time t, 0 to 1; slow enough for a VAE that holds four frames in one
ACTIONS: dict[str, Callable[[float], dict[str, float]]] = {
    "nods": lambda t: {"pitch": -0.7 * _bump(t)},
    "shakes the head": lambda t: {"yaw": 0.6 * (2 * t - 1)},
    "smiles": lambda t: {"smile": -0.6 + 1.6 * t},
    "talks": lambda t: {"mouth": abs(_wave(t))},
    "closes the eyes": lambda t: {"eyes": 1 - _bump(t)},
    "leans": lambda t: {"roll": 16 * _bump(t)},
    "comes nearer": lambda t: {"size": 0.12 * t},
    "walks by": lambda t: {"x": 0.12 * (t - 0.5), "yaw": 0.6},
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What one person does, and where. Caption and person say nothing of pose, shirt, light, gain and clutter.

    action: one of ACTIONS, which the caption names.
    background: one of BACKGROUNDS, which the caption names.
    pose: the action is added to it.
    light: where it comes from, degrees.
    gain: its brightness.
    clutter: the seed of shapes that lie on the background; None for a plain one.
    """

    action: str
    background: str
    pose: Pose
    shirt: Colour
    light: float
    gain: float
    clutter: int | None = None

    def at(self, t: float) -> Pose:
        """The pose at time t, 0 to 1."""
        changes = ACTIONS[self.action](t)
        added = {"x", "y", "size", "yaw", "pitch", "roll"}
        return Pose(**{name: getattr(self.pose, name) + changes.get(name, 0.0) if name in added
                       else changes.get(name, getattr(self.pose, name)) for name in Pose.__slots__})


def caption(scene: Scene, people: int = 1) -> str:
    """What a clip of one or two people is called; two do the same."""
    return _caption(scene.action, scene.background, people)


def captions() -> list[str]:
    """Every one that a clip can have."""
    return [_caption(*words) for words in itertools.product(ACTIONS, BACKGROUNDS, WHO)]


def _caption(action: str, background: str, people: int) -> str:
    return f"{WHO[people]} {action}, {background} background"


def random_scene(rng: np.random.Generator, action: str | None = None) -> Scene:
    """Anything that may happen anywhere in the frame, or one action in any circumstances."""
    return _scene(rng, action, x=rng.uniform(0.32, 0.68), y=rng.uniform(0.46, 0.56), size=rng.uniform(0.48, 0.72))


def random_pair(rng: np.random.Generator, action: str | None = None) -> tuple[Scene, Scene]:
    """Two people side by side who do the same, in one light before one background."""
    left = _scene(rng, action, x=rng.uniform(0.25, 0.28), y=rng.uniform(0.44, 0.56), size=rng.uniform(0.4, 0.48))
    right = _scene(rng, left.action, x=rng.uniform(0.72, 0.75), y=rng.uniform(0.44, 0.56), size=rng.uniform(0.4, 0.48))
    return left, dataclasses.replace(right, background=left.background, light=left.light, gain=left.gain)


def _scene(rng: np.random.Generator, action: str | None, x: float, y: float, size: float) -> Scene:
    pose = Pose(yaw=rng.uniform(-0.3, 0.3), pitch=rng.uniform(-0.2, 0.2), roll=rng.uniform(-6, 6), x=x, y=y, size=size,
                smile=rng.uniform(-0.5, 0.8), mouth=0.0, eyes=1.0)
    return Scene(action or str(rng.choice(list(ACTIONS))), str(rng.choice(list(BACKGROUNDS))), pose,
                 SHIRTS[rng.integers(len(SHIRTS))], rng.uniform(0, 360), rng.uniform(0.88, 1.06))


def photo_scene(rng: np.random.Generator, busy: bool = False) -> Scene:
    """The square picture that a photo is cropped from: anywhere in it, in a light and an expression of its own.

    busy: before clutter instead of plain white.
    """
    pose = Pose(yaw=rng.uniform(-0.25, 0.25), pitch=rng.uniform(-0.15, 0.15), roll=rng.uniform(-4, 4),
                x=rng.uniform(0.35, 0.65), y=rng.uniform(0.4, 0.55), size=rng.uniform(0.4, 0.6),
                smile=rng.uniform(-0.6, 0.9), mouth=float(rng.random() < 0.3) * rng.uniform(0, 0.8))
    background, clutter = (str(rng.choice(list(BACKGROUNDS))), int(rng.integers(2**31))) if busy else ("white", None)
    return Scene("nods", background, pose, SHIRTS[rng.integers(len(SHIRTS))], rng.uniform(0, 360),
                 rng.uniform(0.9, 1.06), clutter)
