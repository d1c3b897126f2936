"""One person through a video, and steady points on the face."""
from __future__ import annotations

import math

import numpy as np

from ..face import Face, choose

# how far a face may move between two frames, in its own size, and how much it may grow or shrink, to be the same one
REACH, RESIZE = 0.5, 1.5
# for how many frames without a face its reach grows, and the places of others are remembered
MEMORY_FRAMES = 8


class Follower:
    """Picks one face of the first frame that has it, then the nearest to where it was last seen.

    A face that is nearer to where someone else was last seen is theirs, so that a neighbour is not taken for the person
    who has just left.
    """

    def __init__(self, which: str, face_index: int):
        self._which, self._index = which, face_index
        self._last: Face | None = None
        self._others: list[tuple[Face, int]] = []  # with the number of frames since they were seen
        self.missed = 0

    def pick(self, faces: list[Face]) -> Face | None:
        """The person in this frame, or None; the longer they were not seen, the farther they may have gone."""
        found = self._first(faces) if self._last is None else self._nearest(faces)
        if found is None:
            self.missed += 1
        else:
            self._last, self.missed = found, 0
        # a box over the person's own face is a second finding of it, not somebody else
        self._remember([face for face in faces if found is None
                        or _distance(face, found) > REACH * math.sqrt(found.area)])
        return found

    def _first(self, faces: list[Face]) -> Face | None:
        if len(faces) <= (self._index if self._which == "from left" else 0):
            return None
        return choose(faces, self._which, self._index)[0]

    def _nearest(self, faces: list[Face]) -> Face | None:
        frames = min(self.missed + 1, MEMORY_FRAMES)
        mine = [face for face in faces if _may_be(face, self._last, frames)
                and not any(_distance(face, other) < _distance(face, self._last) and _may_be(face, other, age + 1)
                            for other, age in self._others)]
        return min(mine, key=lambda face: _distance(face, self._last), default=None)

    def _remember(self, seen: list[Face]) -> None:
        unseen = [(other, age + 1) for other, age in self._others
                  if age + 1 < MEMORY_FRAMES and not any(_may_be(face, other, age + 1) for face in seen)]
        self._others = [(face, 0) for face in seen] + unseen


def _may_be(face: Face, last: Face, frames: int) -> bool:
    """Whether a face can be the one that was last seen this many frames ago."""
    size = math.sqrt(last.area)
    return (_distance(face, last) <= REACH * frames * size
            and RESIZE**-frames <= math.sqrt(face.area) / size <= RESIZE**frames)


def _distance(face: Face, other: Face) -> float:
    return math.dist(face.centre, other.centre)


class OneEuro:
    """The one-euro filter of Casiez, Roussel and Vogel (CHI 2012) on the points of a face, a step for each frame.

    Cutoffs are in cycles per frame and speed is in eye distances per frame, so that neither resolution nor frame rate
    changes what it does. amount: 0 leaves the points alone, 1 holds a still face hardest.
    """

    WEAKEST, STRONGEST = 0.5, 0.01  # cutoff of a still face at the ends of amount
    # Measured at an eye distance of 44 px: jitter of 1 px shrinks to 0.49 at amount 0.5 and to 0.34 at 1; a face that
    # sets off at 20 px a frame is behind by 6 px at most.
    SPEED_CUTOFF, BETA = 0.1, 2.0

    def __init__(self, amount: float):
        self._cutoff = self.WEAKEST * (self.STRONGEST / self.WEAKEST)**amount
        self._amount = amount
        self.forget()

    def forget(self) -> None:
        self._points = self._speed = None

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """points: [5, 2] -> the same, steadied."""
        if self._amount == 0:
            return points
        if self._points is None:
            self._points, self._speed = points, np.zeros_like(points)
            return points
        eye_distance = max(math.dist(points[0], points[1]), 1.0)
        self._speed = _lowpass((points - self._points) / eye_distance, self._speed, self.SPEED_CUTOFF)
        # one cutoff for all points, so that the face keeps its shape
        speed = float(np.linalg.norm(self._speed, axis=1).mean())
        self._points = _lowpass(points, self._points, self._cutoff + self.BETA * speed)
        return self._points


def _lowpass(new: np.ndarray, old: np.ndarray, cutoff: float) -> np.ndarray:
    share = 1 / (1 + 1 / (2 * math.pi * cutoff))
    return share * new + (1 - share) * old
