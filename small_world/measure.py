"""Is the person in the photo the person in the video? Asked of people whom no model of the small world has seen.

*Agreement* is the share of a person's visible traits that the reader finds in the frames. *Kept* puts it on a scale: 0
is the agreement of the same videos with the other people, chance; 1 is that of real videos of the same people through
the VAE.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from .cases import Case, cases, real, still
from .models import new_vae
from .people import TRAITS, Person
from .reader import Reader, Readings, load_reader, read
from .scenes import Pose
from .world import through_vae

CALIBRATED_ON = 64  # people
RESAMPLES = 1000
EXPRESSIONS = {"smiles": "smile", "talks": "mouth", "closes the eyes": "eyes"}  # action -> what it moves
VARIED = ("yaw", "pitch", "roll", "smile")  # of a pose, in photos as in videos; the crop centres the rest
UNSURE = 0.05  # share of real videos that the reader is less sure of than of a valid one


@dataclass(frozen=True, slots=True)
class Score:
    """What the reader says of the videos of some cases.

    agreement, error: the mean over the cases, and its standard error.
    actions, backgrounds: the share of videos that have the caption's.
    motion: how far the pose moves, which is not 0 in a still video, since the reader errs.
    expression: how much more mouth, eyes and smile move in the videos whose caption says so than in the others.
    pose_of_photo: what is copied from the photo though it is not the person, the correlation over the videos of the
        photo's pose with theirs, the mean over VARIED.
    """

    agreement: float
    error: float
    actions: float
    backgrounds: float
    motion: float
    expression: float
    pose_of_photo: float


@dataclass(frozen=True, slots=True)
class Kept:
    """How much of the person, and the 95 % range over other draws of the cases."""

    kept: float
    low: float
    high: float


def score(cases: list[Case], readings: list[Readings]) -> Score:
    """One video for each case, and at least as many cases as there are ACTIONS."""
    own, both = np.diag(_agreements(cases, readings)), list(zip(cases, readings))
    return Score(*(round(float(value), 4) for value in (
        own.mean(), own.std(ddof=1) / np.sqrt(len(own)),
        np.mean([reading.action() == case.scene.action for case, reading in both]),
        np.mean([reading.background() == case.scene.background for case, reading in both]),
        np.mean([reading.motion for reading in readings]),
        np.mean([_more(both, action, part) for action, part in EXPRESSIONS.items()]),
        _correlation([case.photo_scene.pose for case in cases], readings))))


def validity(readings: list[Readings], real: list[Readings]) -> float:
    """The share of videos that the reader is as sure of as of all but UNSURE of the real ones."""
    least = np.quantile([_sureness(reading) for reading in real], UNSURE)
    return round(float(np.mean([_sureness(reading) >= least for reading in readings])), 4)


def kept(cases: list[Case], readings: list[Readings], real: list[Readings],
         without: list[Readings] | None = None, together: int = 1) -> Kept:
    """How much of the person is kept, or how much more than in other videos of the same cases, case by case.

    real: the readings of the cases' real videos through the VAE, which count as 1.
    without: the readings of the other videos; None to measure the whole, not a difference.
    together: so many neighbours stand in one video: they are drawn together, and are no chance for each other.
    """
    ceilings, found = np.diag(_agreements(cases, real)), _agreements(cases, readings)
    less = None if without is None else _agreements(cases, without)

    def measured(videos: np.ndarray) -> float:
        chosen = (together * videos[:, None] + np.arange(together)).ravel()
        value = _kept(found, ceilings, chosen, together)
        return value if less is None else value - _kept(less, ceilings, chosen, together)

    rng, everything = np.random.default_rng(0), np.arange(len(cases) // together)
    drawn = [measured(rng.choice(everything, len(everything))) for _ in range(RESAMPLES)]
    return Kept(*(round(float(value), 4) for value in (measured(everything), *np.quantile(drawn, (0.025, 0.975)))))


def by_trait(cases: list[Case], readings: list[Readings]) -> dict[str, float]:
    """The share of frames in which each trait is read as it is, of the people in whom it can be seen."""
    right = np.stack([reading.traits == case.person.labels for case, reading in zip(cases, readings)])
    seen = np.broadcast_to(np.stack([case.person.visible for case in cases])[:, None], right.shape)
    return {trait: round(float(right[..., i][seen[..., i]].mean()), 4) for i, trait in enumerate(TRAITS)}


def _agreements(cases: list[Case], readings: list[Readings]) -> np.ndarray:
    """[n, n]: of the person of each case with the video of each."""
    return np.array([[reading.agreement(case.person) for reading in readings] for case in cases])


def _kept(agreements: np.ndarray, ceilings: np.ndarray, chosen: np.ndarray, together: int) -> float:
    videos = chosen // together
    others = agreements[np.ix_(chosen, chosen)][videos[:, None] != videos].mean()
    return (np.diag(agreements)[chosen].mean() - others) / (ceilings[chosen].mean() - others)


def _sureness(readings: Readings) -> float:
    """The mean confidence in the traits that are seen on who is read, since nobody is sure of what hair hides."""
    names = [[values[place] for values, place in zip(TRAITS.values(), frame)] for frame in readings.traits]
    return float(readings.confidence[np.array([Person(*frame).visible for frame in names])].mean())


def _more(both: list[tuple[Case, Readings]], action: str, part: str) -> float:
    """How much more a part of the pose moves where the action is asked for, in units of POSE_SCALE."""
    moves = {asked: [reading.part(part).std() for case, reading in both
                     if (case.scene.action == action) == asked] for asked in (True, False)}
    return np.mean(moves[True]) - np.mean(moves[False])


def _correlation(poses: list[Pose], readings: list[Readings]) -> float:
    """The correlation of the poses with the means over time of those that were read; the mean over VARIED."""
    return np.mean([np.corrcoef([getattr(pose, part) for pose in poses],
                                [reading.part(part).mean() for reading in readings])[0, 1] for part in VARIED])


def calibrate(reader: Reader | None = None, people: int | None = None) -> dict[str, dict]:
    """What the reader says of real videos of people who were never trained on, and how often it is right on each trait.

    The videos are as rendered, through the VAE, and through the VAE with the first frame alone.

    people: how many; None for CALIBRATED_ON.
    """
    reader, vae, some, found = reader or load_reader(), new_vae().eval(), cases(people or CALIBRATED_ON, seed=1), {}
    for name, shown in {"rendered": real, "through the VAE": lambda case: through_vae(vae, real(case)),
                        "still, through the VAE": lambda case: through_vae(vae, still(real(case)[0]))}.items():
        readings = [read(reader, shown(case)) for case in some]
        found[name] = {**dataclasses.asdict(score(some, readings)), "traits": by_trait(some, readings)}
    return found
