"""Face detectors behind one interface: a photo in, boxes with scores out."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..contracts import StandInError
from .models import ManagedNetwork, missing

# Both detectors find faces by scanning scales, so a large photo costs time and gains nothing.
LONGEST_SIDE_PX = 1024
RETINAFACE_FILE = "detection_Resnet50_Final.pth"


@dataclass(frozen=True, slots=True)
class Face:
    """box: (left, top, right, bottom) in pixels of the photo; score: the detector's own, higher is surer."""

    box: tuple[int, int, int, int]
    score: float

    @property
    def area(self) -> int:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector that is ready. notes: what "auto" passed over and why, a sentence each."""

    name: str
    scan: Callable[[np.ndarray], list[Face]]
    notes: tuple[str, ...] = ()

    def find(self, photo: np.ndarray) -> list[Face]:
        """photo: [H, W, 3] uint8 RGB."""
        scale = min(1.0, LONGEST_SIDE_PX / max(photo.shape[:2]))
        small = photo if scale == 1 else cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return [Face(tuple(int(edge / scale) for edge in face.box), face.score) for face in self.scan(small)]


def load_detector(name: str) -> Detector:
    """name: one of DETECTORS. "auto" takes the first that can run here and says why others cannot.

    Raises StandInError if a detector was chosen by name and cannot run.
    """
    if name != "auto":
        load, why_not = BY_NAME[name]
        reason = why_not()
        if reason is not None:
            raise StandInError(f"{name} cannot run: {reason}; mend that, or set detector to auto.")
        return Detector(name, load())
    notes = []
    for candidate, (load, why_not) in BY_NAME.items():
        reason = why_not()
        if reason is None:
            return Detector(candidate, load(), tuple(notes))
        notes.append(f"{candidate} not used: {reason}")
    raise AssertionError("none can always run")


def _retinaface() -> Callable[[np.ndarray], list[Face]]:
    from facexlib.detection.retinaface import RetinaFace  # imports half of scipy and numba: 2 s

    managed = ManagedNetwork(RetinaFace(network_name="resnet50", device=torch.device("cpu")), RETINAFACE_FILE)
    network = managed.network

    def scan(photo: np.ndarray) -> list[Face]:
        managed.load()
        network.device, network.mean_tensor = managed.device, network.mean_tensor.to(managed.device)
        rows = network.detect_faces(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
        return [Face(tuple(int(edge) for edge in row[:4]), float(row[4])) for row in rows]

    return scan


def _cascade() -> Callable[[np.ndarray], list[Face]]:
    """The local-binary-pattern cascade of OpenCV that ships with scikit-image; frontal faces only."""
    from skimage.data import lbp_frontal_face_cascade_filename  # 0.5 s
    from skimage.feature import Cascade

    cascade = Cascade(lbp_frontal_face_cascade_filename())

    def scan(photo: np.ndarray) -> list[Face]:
        shortest = min(photo.shape[:2])
        smallest = max(24, shortest // 12)  # 24 px is the size the cascade was trained at
        found = cascade.detect_multi_scale(img=photo, scale_factor=1.2, step_ratio=1, min_size=(smallest, smallest),
                                           max_size=(shortest, shortest))
        return [Face((box["c"], box["r"], box["c"] + box["width"], box["r"] + box["height"]), 1.0) for box in found]

    return scan


def _cascade_missing() -> str | None:
    if importlib.util.find_spec("skimage") is None:
        return "scikit-image is not installed (the pack's requirements.txt has it)"
    return None


# in the order in which "auto" tries them: name -> how to get it ready, and why it cannot run here
BY_NAME = {
    "retinaface": (_retinaface, lambda: missing(RETINAFACE_FILE)),
    "cascade": (_cascade, _cascade_missing),
    "none": (lambda: lambda photo: [], lambda: None),
}
DETECTORS = ("auto", *BY_NAME)
