"""Follow one person through a video, and steady the points of the face."""
from __future__ import annotations

import math

import numpy as np

from ..face import Face, choose

# A face in the next frame is the same one if it moved less than REACH times its size, and grew or shrank by less than
# a factor of RESIZE.
REACH, RESIZE = 0.5, 1.5
# For so many frames, the reach of a face that is out of sight grows, and the places of other faces are remembered.
MEMORY_FRAMES = 8


class Follower:
    """Picks one face in the first frame that has it, and then the face nearest to where it was last seen.

    A face that is nearer to where somebody else was last seen belongs to them, so that a neighbour is not taken for the
    person who has just left.
    """

    def __init__(self, which: str, face_index: int):
        """The face to follow.

        which: "largest" or "from left".
        face_index: which face "from left" follows; 0 is the leftmost.
        """
        self._which, self._index = which, face_index
        self._last: Face | None = None
        self._others: list[tuple[Face, int]] = []  # and how many frames ago each was seen
        self.missed = 0

    def pick(self, faces: list[Face]) -> Face | None:
        """The person's face in this frame, or None. The longer it was out of sight, the farther it may have moved."""
        found = self._first(faces) if self._last is None else self._nearest(faces, self._last)
        if found is None:
            self.missed += 1
        else:
            self._last, self.missed = found, 0
        # a second box over the person's own face is nobody else
        self._remember([face for face in faces if found is None
                        or _distance(face, found) > REACH * math.sqrt(found.area)])
        return found

    def _first(self, faces: list[Face]) -> Face | None:
        if len(faces) <= (self._index if self._which == "from left" else 0):
            return None
        return choose(faces, self._which, self._index)[0]

    def _nearest(self, faces: list[Face], last: Face) -> Face | None:
        frames = min(self.missed + 1, MEMORY_FRAMES)
        mine = [face for face in faces if _may_be(face, last, frames)
                and not any(_distance(face, other) < _distance(face, last) and _may_be(face, other, age + 1)
                            for other, age in self._others)]
        return min(mine, key=lambda face: _distance(face, last), default=None)

    def _remember(self, seen: list[Face]) -> None:
        unseen = [(other, age + 1) for other, age in self._others
                  if age + 1 < MEMORY_FRAMES and not any(_may_be(face, other, age + 1) for face in seen)]
        self._others = [(face, 0) for face in seen] + unseen


def _may_be(face: Face, last: Face, frames: int) -> bool:
    """Whether a face can be the one that was last seen so many frames ago."""
    size = math.sqrt(last.area)
    return (_distance(face, last) <= REACH * frames * size
            and RESIZE**-frames <= math.sqrt(face.area) / size <= RESIZE**frames)


def _distance(face: Face, other: Face) -> float:
    return math.dist(face.centre, other.centre)


class OneEuro:
    """The one-euro filter (Casiez, Roussel and Vogel, CHI 2012) on the points of a face, with one step for each frame.

    Cutoff frequencies are in cycles per frame and speeds in eye distances per frame, so that the result depends on
    neither resolution nor frame rate.
    """

    WEAKEST, STRONGEST = 0.5, 0.01  # cutoff of a still face where amount is nearly 0, and where it is 1
    # Measured at an eye distance of 44 px: jitter of 1 px shrinks to 0.49 px at amount 0.5 and to 0.34 px at amount 1.
    # The points of a face that sets off at 20 px a frame lag by 6 px at most.
    SPEED_CUTOFF, BETA = 0.1, 2.0

    def __init__(self, amount: float):
        """amount: 0 leaves the points as they are, 1 holds a still face hardest."""
        self._cutoff = self.WEAKEST * (self.STRONGEST / self.WEAKEST)**amount
        self._amount = amount
        self.forget()

    def forget(self) -> None:
        self._points: np.ndarray | None = None

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """The points, [5, 2], steadied."""
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
