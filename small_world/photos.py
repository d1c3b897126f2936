"""Reference photos, cropped as Face Preprocess does: a square around the face, wherever that was in the picture."""
from __future__ import annotations

import dataclasses

import numpy as np

from standin_core.face.geometry import Square, square_around

from .models import SIDE
from .people import Person
from .render import face_points, picture, subject_mask
from .scenes import Pose, Scene

SOURCE = 3  # the picture that a photo is cropped from has so many times its side
FACE_HEIGHT, FACE_WIDTH = 1.0, 0.8  # of the head
CROP_SCALE = 1.35
WHITE = (255, 255, 255)


def photo(person: Person, scene: Scene, side: int = SIDE) -> np.ndarray:
    """[side, side, 3] uint8, from the first moment of the scene in a square picture."""
    return _square(scene, SOURCE * side).cut(picture(person, scene, 0.0, SOURCE * side), side, WHITE)


def subject(person: Person, scene: Scene) -> np.ndarray:
    """[SIDE, SIDE] bool, where the photo shows the person."""
    mask = subject_mask(person, scene, 0.0, SOURCE * SIDE).astype(np.float32)
    return _square(scene, SOURCE * SIDE).cut(mask, SIDE, 0.0) > 0.5


def points(scene: Scene) -> np.ndarray:
    """[5, 2], x and y in pixels of the photo: the eyes, the nose, the corners of the mouth, from the left."""
    return _square(scene, SOURCE * SIDE).to_crop(face_points(scene, 0.0, SOURCE * SIDE), SIDE)


def chin(scene: Scene) -> int:
    """The row of the photo below which no head is."""
    shown = pose(scene)
    return round(SIDE * (shown.y + shown.size / 2))


def pose(scene: Scene) -> Pose:
    """The one that the photo shows: x, y and size are of the crop."""
    at, source = scene.at(0.0), SOURCE * SIDE
    top, bottom = (np.array([at.x, at.y + half]) * source - 0.5 for half in (-at.size / 2, at.size / 2))
    (x, above), (_, below) = (_square(scene, source).to_crop(np.stack((top, bottom)), SIDE) + 0.5) / SIDE
    return dataclasses.replace(at, x=float(x), y=float(above + below) / 2, size=float(below - above))


def _square(scene: Scene, source: int) -> Square:
    at = scene.at(0.0)
    x, y, size = (source * value for value in (at.x, at.y, at.size))
    half_width, half_height = FACE_WIDTH * size / 2, FACE_HEIGHT * size / 2
    box = tuple(round(edge) for edge in (x - half_width, y - half_height, x + half_width, y + half_height))
    return square_around(box, source, source, CROP_SCALE)
