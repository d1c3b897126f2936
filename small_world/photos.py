"""Reference photos, cropped as Face Preprocess does: a square around the face, wherever that was in the picture."""
from __future__ import annotations

import numpy as np

from standin_core.face.geometry import square_around

from .models import SIDE
from .people import Person
from .render import picture
from .scenes import Scene

SOURCE_SIDE = 192
FACE_HEIGHT, FACE_WIDTH = 1.0, 0.8  # of the head
CROP_SCALE = 1.35
WHITE = (255, 255, 255)


def photo(person: Person, scene: Scene) -> np.ndarray:
    """[SIDE, SIDE, 3] uint8, from the first moment of the scene in a square picture."""
    source = picture(person, scene, 0.0, SOURCE_SIDE)
    return _square(scene).cut(source, SIDE, WHITE)


def _square(scene: Scene):
    pose = scene.at(0.0)
    x, y, size = (SOURCE_SIDE * value for value in (pose.x, pose.y, pose.size))
    half_width, half_height = FACE_WIDTH * size / 2, FACE_HEIGHT * size / 2
    box = tuple(round(edge) for edge in (x - half_width, y - half_height, x + half_width, y + half_height))
    return square_around(box, SOURCE_SIDE, SOURCE_SIDE, CROP_SCALE)
