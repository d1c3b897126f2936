"""Who is asked about: people to test on, each with a photo, a scene that has nothing to do with it, and a seed."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from .data import Clip
from .models import FRAMES
from .people import Person, split
from .photos import photo
from .scenes import ACTIONS, Scene, photo_scene, random_pair, random_scene

DEMONSTRATED = 6  # people, the first ones
DRAWN = 1  # apart from the draws of the training clips


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Somebody who was never trained on, the scene of a photo, and another one that has nothing to do with it."""

    person: Person
    photo_scene: Scene
    scene: Scene
    seed: int

    @property
    def photo(self) -> np.ndarray:
        """[SIDE, SIDE, 3] uint8, on white"""
        return photo(self.person, self.photo_scene)

    @property
    def clip(self) -> Clip:
        return clip_of(self)

    @property
    def busy_photo(self) -> np.ndarray:
        """The same before clutter."""
        return photo(self.person, dataclasses.replace(self.photo_scene, clutter=self.seed))

    def photos(self, count: int) -> list[np.ndarray]:
        """So many of the person, this one first."""
        rng = np.random.default_rng([DRAWN, 7, self.seed])
        return [self.photo, *(photo(self.person, photo_scene(rng)) for _ in range(count - 1))]


def pairs(count: int) -> list[tuple[Case, Case]]:
    """Two who stand side by side and do the same, every action in turn; the seed of the first is the pair's."""
    people, made = split().test, []
    for number in range(count):
        rng = np.random.default_rng([DRAWN, 2, number])
        scenes = random_pair(rng, list(ACTIONS)[number % len(ACTIONS)])
        chosen = rng.choice(len(people), 2, replace=False)
        made.append(tuple(Case(people[i], photo_scene(rng), scene, number) for i, scene in zip(chosen, scenes)))
    return made


def clip_of(*side_by_side: Case) -> Clip:
    return Clip(tuple((case.person, case.scene) for case in side_by_side))


def cases(count: int, seed: int = 0, people: list[Person] | None = None) -> list[Case]:
    """Every action in turn.

    people: who is drawn from; None for those to test on.
    """
    people, made = people or split().test, []
    for number in range(count):
        rng = np.random.default_rng([DRAWN, seed, number])
        person = people[rng.integers(len(people))]
        made.append(Case(person, photo_scene(rng), random_scene(rng, list(ACTIONS)[number % len(ACTIONS)]), number))
    return made


def real(case: Case) -> np.ndarray:
    """The case as it is, [FRAMES, SIDE, SIDE, 3] uint8."""
    return case.clip.video()


def still(picture: np.ndarray) -> np.ndarray:
    """A video in which nothing moves, [FRAMES, H, W, 3] uint8."""
    return np.repeat(picture[None], FRAMES, axis=0)
