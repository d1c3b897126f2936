"""What happens: an action, named in the caption, and everything else that is not the person, which is not."""
from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Pose:
    """One moment. yaw, pitch: where the face looks, -1 to 1, right and up; roll: degrees; x, y: of the head in the
    picture, 0 to 1; size: the head's height; smile: -1 to 1; mouth, eyes: how far open, 0 to 1.
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


def _wave(t: float, turns: float = 1.0) -> float:
    return math.sin(2 * math.pi * turns * t)


def _bump(t: float) -> float:
    """0 at both ends, 1 in the middle."""
    return math.sin(math.pi * t) ** 2


# name in the caption -> what changes at time t, 0 to 1
ACTIONS: dict[str, Callable[[float], dict[str, float]]] = {
    "nods": lambda t: {"pitch": 0.8 * _wave(t)},
    "shakes the head": lambda t: {"yaw": 0.9 * _wave(t)},
    "smiles": lambda t: {"smile": -0.4 + 1.4 * t},
    "talks": lambda t: {"mouth": abs(_wave(t, 1.5))},
    "closes the eyes": lambda t: {"eyes": 1 - _bump(t)},
    "leans": lambda t: {"roll": 22 * _wave(t)},
    "comes nearer": lambda t: {"size": 0.16 * t},
    "walks by": lambda t: {"x": 0.26 * (t - 0.5), "yaw": 0.6},
}


@dataclass(frozen=True, slots=True)
class Scene:
    """action: of ACTIONS, background: of BACKGROUNDS, both in the caption; the rest in neither caption nor person.

    pose: to which the action is added; light: where it comes from, degrees; gain: its brightness.
    """

    action: str
    background: str
    pose: Pose
    shirt: Colour
    light: float
    gain: float

    @property
    def caption(self) -> str:
        return _caption(self.action, self.background)

    def at(self, t: float) -> Pose:
        """The pose at time t, 0 to 1."""
        changes = ACTIONS[self.action](t)
        added = {"x", "y", "size", "yaw", "pitch", "roll"}
        return Pose(**{name: getattr(self.pose, name) + changes.get(name, 0.0) if name in added
                       else changes.get(name, getattr(self.pose, name)) for name in Pose.__slots__})


def captions() -> list[str]:
    """Every one that a scene can have."""
    return [_caption(action, background) for action, background in itertools.product(ACTIONS, BACKGROUNDS)]


def _caption(action: str, background: str) -> str:
    return f"a person {action}, {background} background"


def random_scene(rng: np.random.Generator, action: str | None = None) -> Scene:
    """Anything that may happen, or one action in any circumstances."""
    pose = Pose(yaw=rng.uniform(-0.3, 0.3), pitch=rng.uniform(-0.2, 0.2), roll=rng.uniform(-6, 6),
                x=rng.uniform(0.44, 0.56), y=rng.uniform(0.46, 0.54), size=rng.uniform(0.56, 0.66),
                smile=rng.uniform(-0.5, 0.8), mouth=0.0, eyes=1.0)
    return Scene(action or str(rng.choice(list(ACTIONS))), str(rng.choice(list(BACKGROUNDS))), pose,
                 SHIRTS[rng.integers(len(SHIRTS))], rng.uniform(0, 360), rng.uniform(0.85, 1.08))


def photo_scene(rng: np.random.Generator) -> Scene:
    """A reference photo: frontal, on white, in a light, a cut and an expression of its own."""
    pose = Pose(yaw=rng.uniform(-0.25, 0.25), pitch=rng.uniform(-0.15, 0.15), roll=rng.uniform(-4, 4),
                x=rng.uniform(0.46, 0.54), y=rng.uniform(0.47, 0.54), size=rng.uniform(0.62, 0.78),
                smile=rng.uniform(-0.6, 0.9), mouth=float(rng.random() < 0.3) * rng.uniform(0, 0.8))
    return Scene("nods", "white", pose, SHIRTS[rng.integers(len(SHIRTS))], rng.uniform(0, 360), rng.uniform(0.9, 1.06))
