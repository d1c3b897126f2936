"""Who there is: every combination of seven traits, 28,800 of them, of which 19,200 can be told apart by their looks."""
from __future__ import annotations

import dataclasses
import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Colour = tuple[int, int, int]

SKINS: dict[str, Colour] = {
    "porcelain": (250, 224, 206), "rose": (240, 190, 168), "sand": (224, 176, 130), "olive": (188, 148, 96),
    "bronze": (160, 104, 62), "umber": (112, 70, 44)}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (28, 24, 26), "brown": (98, 58, 30), "red": (178, 62, 24), "blond": (230, 192, 96),
    "white": (236, 234, 230), "blue": (52, 92, 196)}
HAIR_SHAPES = ("bald", "short", "bob", "long", "curly")
FACE_SHAPES = ("round", "oval", "square", "pointed")
EYE_COLOURS: dict[str, Colour] = {"brown": (84, 48, 22), "blue": (40, 110, 214), "green": (46, 140, 66),
                                  "amber": (206, 140, 24), "grey": (128, 138, 148)}
GLASSES = ("none", "round", "square", "dark")
FRECKLES = ("none", "freckles")

TRAITS: dict[str, tuple[str, ...]] = {
    "skin": tuple(SKINS), "hair_colour": tuple(HAIR_COLOURS), "hair_shape": HAIR_SHAPES, "face_shape": FACE_SHAPES,
    "eye_colour": tuple(EYE_COLOURS), "glasses": GLASSES, "freckles": FRECKLES}
TEST_SHARE, VALIDATION_SHARE = 10, 20  # one person of so many


@dataclass(frozen=True, slots=True)
class Person:
    """One of each of TRAITS."""

    skin: str
    hair_colour: str
    hair_shape: str
    face_shape: str
    eye_colour: str
    glasses: str
    freckles: str

    @property
    def labels(self) -> np.ndarray:
        """[7] int64, the place of each trait among TRAITS."""
        return np.array([values.index(getattr(self, name)) for name, values in TRAITS.items()])

    @property
    def visible(self) -> np.ndarray:
        """[7] bool, which traits can be seen: a bald head has no colour of hair, dark glasses hide the eyes."""
        hidden = {"hair_colour": self.hair_shape == "bald", "eye_colour": self.glasses == "dark"}
        return np.array([not hidden.get(name, False) for name in TRAITS])

    @property
    def look(self) -> tuple[str | None, ...]:
        """The traits that can be seen: people of the same look are drawn alike."""
        return tuple(getattr(self, name) if seen else None for name, seen in zip(TRAITS, self.visible))

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in dataclasses.fields(self))


def everyone() -> list[Person]:
    return [Person(*traits) for traits in itertools.product(*TRAITS.values())]


class Split(NamedTuple):
    """Who is trained on, who chooses settings, and who is reported on."""

    train: list[Person]
    validation: list[Person]
    test: list[Person]


@functools.cache
def split(seed: int = 0) -> Split:
    """The three parts, in an order that follows from the seed.

    Nobody to validate or to test on looks like somebody in another part, though each of their traits comes up there:
    it is the combination that is new. So nobody of them is bald or wears dark glasses: what that hides differs among
    people who look the same.
    """
    people = everyone()
    order = [people[i] for i in np.random.default_rng(seed).permutation(len(people))]
    tested, validated = len(people) // TEST_SHARE, len(people) // VALIDATION_SHARE
    train = order[tested + validated:]
    seen = {person.look for person in train}
    validation = [person for person in order[tested:tested + validated] if person.look not in seen]
    seen |= {person.look for person in validation}
    return Split(train, validation, [person for person in order[:tested] if person.look not in seen])
