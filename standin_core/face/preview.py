"""The photo, with the faces, the crops and the kept pixels drawn on it."""
from __future__ import annotations

import cv2
import numpy as np

from .detectors import Face
from .geometry import AnyPlace

LONGEST_SIDE_PX = 1024
GREEN, BLUE, RED, WHITE, BLACK = (60, 200, 90), (70, 140, 255), (230, 60, 60), (255, 255, 255), (0, 0, 0)
DROPPED_BRIGHTNESS = 0.35


class Preview:
    """A small copy of a photo on which each face is drawn."""

    def __init__(self, photo: np.ndarray, numbered: list[Face]):
        """
        photo: [H, W, 3] uint8.
        numbered: every face in it, in the order in which face_index counts.
        """
        self._numbered = numbered
        self._shape = photo.shape[:2]
        height, width = self._shape
        self.scale = min(1.0, LONGEST_SIDE_PX / max(height, width))
        self._size = max(round(width * self.scale), 1), max(round(height * self.scale), 1)
        self._picture = cv2.resize(photo, self._size, interpolation=cv2.INTER_AREA)
        self._kept = np.zeros(self._picture.shape[:2], np.uint8)
        self._faces: list[tuple[Face | None, AnyPlace]] = []

    def add(self, face: Face | None, place: AnyPlace, mask: np.ndarray) -> None:
        """Take in a face, or None for the whole photo.

        place: where the crop was cut.
        mask: [S, S] uint8, which pixels of the crop are kept.
        """
        kept = cv2.resize(place.put_back(mask, *self._shape), self._size, interpolation=cv2.INTER_AREA)
        self._kept = np.maximum(self._kept, kept)
        self._faces.append((face, place))

    def drawn(self) -> np.ndarray:
        """[h, w, 3] uint8: kept pixels are bright, the crop is blue, the box green, the key points red.

        Every face has its number at the top left of its box, in black on white; a face that was not chosen has a white
        box.
        """
        shade = DROPPED_BRIGHTNESS + (1 - DROPPED_BRIGHTNESS) / 255 * self._kept[..., None]
        picture = (self._picture * shade).astype(np.uint8)
        thick = max(1, round(max(picture.shape[:2]) / 300))
        for face, place in self._faces:
            self._outline(picture, place.corners(), BLUE, thick)
            if face is None:
                continue
            self._outline(picture, _corners(face), GREEN, thick)
            if face.keypoints is not None:
                for x, y in face.keypoints * self.scale:
                    cv2.circle(picture, (round(x), round(y)), 2 * thick, RED, -1, cv2.LINE_AA)
        chosen = [face for face, _ in self._faces]
        for number, face in enumerate(self._numbered):
            if face not in chosen:
                self._outline(picture, _corners(face), WHITE, thick)
            self._label(picture, str(number), face, thick)
        return picture

    def _label(self, picture: np.ndarray, words: str, face: Face, thick: int) -> None:
        height, width = picture.shape[:2]
        (wide, high), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * thick, thick)
        edge = 3 * thick
        x = min(max(round(face.box[0] * self.scale), 0), max(width - wide - 2 * edge, 0))
        y = min(max(round(face.box[1] * self.scale), 0), max(height - high - 2 * edge, 0))
        cv2.rectangle(picture, (x, y), (x + wide + 2 * edge, y + high + 2 * edge), WHITE, -1)
        cv2.putText(picture, words, (x + edge, y + edge + high), cv2.FONT_HERSHEY_SIMPLEX, 0.5 * thick, BLACK, thick,
                    cv2.LINE_AA)

    def _outline(self, picture: np.ndarray, corners: np.ndarray, colour, thick: int) -> None:
        cv2.polylines(picture, [np.rint(corners * self.scale).astype(np.int32)], True, colour, thick, cv2.LINE_AA)


def _corners(face: Face) -> np.ndarray:
    left, top, right, bottom = face.box
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
