"""Draws a person in a pose: shapes filled by OpenCV at four times the size, then averaged down."""
from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from .people import EYE_COLOURS, HAIR_COLOURS, SKINS, Person
from .scenes import BACKGROUNDS, Pose, Scene

OVERSAMPLED = 4
# half width of the face at its temples, cheeks and chin, in heights of the head
FACE_OUTLINES = {"round": (0.38, 0.45, 0.28), "oval": (0.33, 0.33, 0.17), "square": (0.38, 0.39, 0.37),
                 "pointed": (0.40, 0.30, 0.04)}
EYE = (0.185, -0.03)  # of the head, the right one of the picture; the other one mirrors it
LIGHT = 0.2  # how much brighter the side of the light is
CLUTTER = 9  # shapes


def video(person: Person, scene: Scene, frames: int, size: int,
          beside: tuple[Person, Scene] | None = None) -> np.ndarray:
    """[frames, size, size, 3] uint8 RGB"""
    return np.stack([picture(person, scene, index / max(frames - 1, 1), size, beside)
                     for index in range(frames)])


def picture(person: Person, scene: Scene, t: float, size: int,
            beside: tuple[Person, Scene] | None = None) -> np.ndarray:
    """[size, size, 3] uint8 RGB

    t: the time, 0 to 1.
    beside: somebody else in the same picture, of whose scene the action, the pose and the shirt count.
    """
    canvas = np.full((size * OVERSAMPLED, size * OVERSAMPLED, 3), BACKGROUNDS[scene.background], np.uint8)
    if scene.clutter is not None:
        _clutter(canvas, np.random.default_rng(scene.clutter))
    for who, does in ((person, scene), *([beside] if beside else [])):
        _draw(_Head(canvas, does.at(t)), who, does)
    return _lit(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA), scene)


def subject_mask(person: Person, scene: Scene, t: float, size: int) -> np.ndarray:
    """[size, size] bool: where no background shows, known from two backgrounds."""
    first, second = (picture(person, dataclasses.replace(scene, background=name, clutter=None), t, size)
                     for name in ("grey", "pink"))
    return (first == second).all(axis=-1)


def face_points(scene: Scene, t: float, size: int) -> np.ndarray:
    """[5, 2], x and y in pixels: the eyes, the nose, the corners of the mouth at time t, from the left."""
    head = _Head(np.empty((size * OVERSAMPLED, size * OVERSAMPLED, 3), np.uint8), scene.at(t))
    x, y = EYE
    return np.stack([head.place(point, depth) for point, depth in (
        ((-x, y), 1), ((x, y), 1), ((0, 0.1), 1.5), ((-0.15, 0.3), 1), ((0.15, 0.3), 1))]) / OVERSAMPLED


def _draw(head: _Head, person: Person, scene: Scene) -> None:
    _body(head, scene, SKINS[person.skin])
    _hair_behind(head, person)
    _face(head, person)
    _features(head, person)
    _hair_before(head, person)
    _glasses(head, person)


def _clutter(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Rectangles of any colour, each up to half as large as the picture."""
    height, width = canvas.shape[:2]
    for _ in range(CLUTTER):
        left, top = rng.integers(width), rng.integers(height)
        right, bottom = left + rng.integers(width // 8, width // 2), top + rng.integers(height // 8, height // 2)
        cv2.rectangle(canvas, (int(left), int(top)), (int(right), int(bottom)), rng.integers(40, 230, 3).tolist(), -1)


class _Head:
    """Drawing in the head's own coordinates: x right, y down, (0, 0) its middle, 1 its height, turned by roll.

    canvas: [H, W, 3] uint8, drawn on.
    """

    def __init__(self, canvas: np.ndarray, pose: Pose):
        height, width = canvas.shape[:2]
        self.canvas, self.pose = canvas, pose
        angle = np.deg2rad(pose.roll)
        self._turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._scale = pose.size * height
        self._middle = np.array([pose.x * width, pose.y * height])
        self._look = np.array([0.09 * pose.yaw, -0.07 * pose.pitch])  # what lies in front moves with the gaze

    def fill(self, points, colour, depth: float = 0.0, upright: bool = False) -> None:
        """Fill a polygon.

        points: [n, 2], of the head.
        depth: 0 moves with the head, 1 with the gaze.
        upright: without the roll.
        """
        placed = np.rint(16 * self.place(points, depth, upright)).astype(np.int32)
        cv2.fillPoly(self.canvas, [placed], tuple(int(value) for value in colour), cv2.LINE_AA, shift=4)

    def place(self, points, depth: float = 0.0, upright: bool = False) -> np.ndarray:
        """Points of the head, in pixels of the canvas."""
        points = np.asarray(points, float) + depth * self._look
        return (points if upright else points @ self._turn.T) * self._scale + self._middle


def _ellipse(x: float, y: float, half_width: float, half_height: float, start: float = 0,
             end: float = 360) -> np.ndarray:
    angles = np.deg2rad(np.linspace(start, end, 48))
    return np.stack((x + half_width * np.cos(angles), y + half_height * np.sin(angles)), axis=1)


def _box(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    return np.array([(x - half_width, y - half_height), (x + half_width, y - half_height),
                     (x + half_width, y + half_height), (x - half_width, y + half_height)])


def _shade(colour, factor: float) -> np.ndarray:
    return np.clip(np.array(colour) * factor, 0, 255)


def _outline(shape: str) -> np.ndarray:
    """The face's outline from the top around, smoothed, through temples, cheeks and chin."""
    temples, cheeks, chin = FACE_OUTLINES[shape]
    heights = np.array([-0.5, -0.44, -0.25, 0.08, 0.3, 0.44, 0.5])
    widths = np.array([0.0, 0.6 * temples, temples, cheeks, 0.45 * (cheeks + chin) + 0.1 * chin, chin, 0.0])
    y = np.linspace(-0.5, 0.5, 60)
    right = np.stack((np.interp(y, heights, widths), y), axis=1)
    left = right[::-1] * (-1, 1)
    outline = np.concatenate((right, left))
    smooth = np.array([1, 2, 3, 2, 1]) / 9
    padded = np.concatenate((outline[-2:], outline, outline[:2]))
    return np.stack([np.convolve(padded[:, axis], smooth, mode="valid") for axis in range(2)], axis=1)


def _body(head: _Head, scene: Scene, skin) -> None:
    head.fill(_box(0, 0.55, 0.15, 0.25), _shade(skin, 0.82), upright=True)
    head.fill(_ellipse(0, 1.25, 0.75, 0.58), scene.shirt, upright=True)


def _hair_behind(head: _Head, person: Person) -> None:
    colour = _shade(HAIR_COLOURS[person.hair_colour], 0.85)
    if person.hair_shape == "long":
        head.fill(np.concatenate((_ellipse(0, -0.12, 0.48, 0.46, 180, 360), [(0.5, 0.72), (-0.5, 0.72)])), colour)
    elif person.hair_shape == "bob":
        head.fill(np.concatenate((_ellipse(0, -0.12, 0.49, 0.46, 180, 360), [(0.47, 0.3), (-0.47, 0.3)])), colour)
    elif person.hair_shape == "curly":
        for angle in np.deg2rad(np.arange(170, 380, 20)):
            head.fill(_ellipse(0.43 * np.cos(angle), -0.14 + 0.4 * np.sin(angle), 0.15, 0.15), colour)


def _face(head: _Head, person: Person) -> None:
    skin = SKINS[person.skin]
    for side in (-1, 1):
        head.fill(_ellipse(side * 0.37, 0.04, 0.06, 0.1), _shade(skin, 0.9), depth=-0.5)
    head.fill(_outline(person.face_shape), skin)
    if person.freckles == "freckles":
        for x, y in ((0.14, 0.13), (0.22, 0.15), (0.28, 0.11), (0.18, 0.21), (0.26, 0.21)):
            for side in (-1, 1):
                head.fill(_ellipse(side * x, y, 0.03, 0.03), _shade(skin, 0.55), depth=1)


def _features(head: _Head, person: Person) -> None:
    pose = head.pose
    skin = np.array(SKINS[person.skin])
    for side in (-1, 1):
        x, y = side * EYE[0], EYE[1]
        if pose.eyes > 0.12:
            head.fill(_ellipse(x, y, 0.135, 0.105 * pose.eyes), (250, 250, 250), depth=1)
            iris = min(0.095, 0.1 * pose.eyes + 0.002)
            head.fill(_ellipse(x + 0.025 * pose.yaw, y, 0.095, iris), EYE_COLOURS[person.eye_colour], depth=1.1)
            head.fill(_ellipse(x + 0.025 * pose.yaw, y, 0.03, min(iris, 0.03)), (16, 14, 14), depth=1.15)
        else:
            head.fill(_box(x, y, 0.135, 0.018), _shade(skin, 0.5), depth=1)
        head.fill(_box(x, y - 0.175, 0.12, 0.022), _shade(skin, 0.45), depth=1)
    head.fill([(0, 0.0), (0.045, 0.15), (-0.045, 0.15)], _shade(skin, 0.84), depth=1.5)
    corners, width = -0.13 * pose.smile, 0.16 + 0.04 * pose.smile
    x = np.linspace(-width, width, 24)
    bow = (x / width) ** 2
    middle = 0.3 + 0.03 * pose.smile
    upper = np.stack((x, middle + corners * bow - 0.02), axis=1)
    lower = np.stack((x, middle + corners * bow + 0.02 + 0.13 * pose.mouth * (1 - bow)), axis=1)
    head.fill(np.concatenate((upper, lower[::-1])), (150, 48, 52) if pose.mouth < 0.15 else (90, 22, 28), depth=1)


def _hair_before(head: _Head, person: Person) -> None:
    colour = HAIR_COLOURS[person.hair_colour]
    if person.hair_shape == "bald":
        return
    if person.hair_shape == "curly":
        for angle in np.deg2rad(np.arange(195, 350, 22)):
            head.fill(_ellipse(0.34 * np.cos(angle), -0.16 + 0.3 * np.sin(angle), 0.12, 0.12), colour, depth=0.3)
        return
    top = _ellipse(0, -0.14, 0.43, 0.42, 180, 360)
    fringe = {"short": [(0.38, -0.2), (0.2, -0.3), (-0.2, -0.27), (-0.38, -0.18)],
              "bob": [(0.43, -0.1), (0.34, -0.17), (-0.34, -0.17), (-0.43, -0.1)],
              "long": [(0.43, 0.05), (0.36, -0.12), (0.02, -0.34), (-0.36, -0.12), (-0.43, 0.05)]}[person.hair_shape]
    head.fill(np.concatenate((top, fringe)), colour, depth=0.3)


def _glasses(head: _Head, person: Person) -> None:
    if person.glasses == "none":
        return
    frame, dark = (30, 30, 34), (44, 46, 52)
    shape = _ellipse if person.glasses == "round" else _box
    for side in (-1, 1):
        x, y = side * EYE[0], EYE[1]
        if person.glasses == "dark":
            head.fill(_box(x, y, 0.165, 0.13), dark, depth=1.2)
            continue
        outer, inner = shape(x, y, 0.178, 0.165), shape(x, y, 0.138, 0.125)
        ring = np.concatenate((outer, outer[:1], inner[:1], inner[::-1]))
        head.fill(ring, frame, depth=1.2)
    head.fill(_box(0, -0.04, 0.03, 0.018), frame if person.glasses != "dark" else dark, depth=1.2)


def _lit(pixels: np.ndarray, scene: Scene) -> np.ndarray:
    height, width = pixels.shape[:2]
    down, across = ((np.arange(size) + 0.5) / size - 0.5 for size in (height, width))
    direction = np.deg2rad(scene.light)
    ramp = np.cos(direction) * across[None, :] + np.sin(direction) * down[:, None]
    return np.clip(pixels * (scene.gain * (1 + LIGHT * ramp))[..., None], 0, 255).astype(np.uint8)
