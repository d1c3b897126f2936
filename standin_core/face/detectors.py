"""Face detectors behind one interface: a photo in, boxes with scores out."""
from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..contracts import StandInError
from .models import load_weights, missing, on_compute_device

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
class Detection:
    """faces: what was found; detector: which looked; notes: what was passed over, a sentence each."""

    faces: list[Face]
    detector: str
    notes: list[str]


def detect(photo: np.ndarray, detector: str) -> Detection:
    """photo: [H, W, 3] uint8 RGB. "auto" takes the first detector that can run here and says why others cannot.

    Raises StandInError if a detector was chosen by name and cannot run.
    """
    notes = []
    if detector == "auto":
        detector = "none"
        for name, (_, why_not) in AUTOMATIC.items():
            reason = why_not()
            if reason is None:
                detector = name
                break
            notes.append(f"{name} not used: {reason}")
    if detector == "none":
        return Detection([], "none", notes)
    find, why_not = AUTOMATIC[detector]
    reason = why_not()
    if reason is not None:
        raise StandInError(f"{detector} cannot run: {reason}; mend that, or set detector to auto.")
    scale = min(1.0, LONGEST_SIDE_PX / max(photo.shape[:2]))
    small = photo if scale == 1 else cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    faces = [Face(tuple(int(edge / scale) for edge in face.box), face.score) for face in find(small)]
    return Detection(faces, detector, notes)


def _retinaface(photo: np.ndarray) -> list[Face]:
    from facexlib.detection.retinaface import RetinaFace  # imports half of scipy and numba: 2 s

    network = RetinaFace(network_name="resnet50", device=torch.device("cpu"))
    load_weights(network, RETINAFACE_FILE)
    device = on_compute_device(network)
    network.device, network.mean_tensor = device, network.mean_tensor.to(device)
    rows = network.detect_faces(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    return [Face(tuple(int(edge) for edge in row[:4]), float(row[4])) for row in rows]


def _cascade(photo: np.ndarray) -> list[Face]:
    """The local-binary-pattern cascade of OpenCV that ships with scikit-image; frontal faces only."""
    from skimage.data import lbp_frontal_face_cascade_filename  # 0.5 s
    from skimage.feature import Cascade

    shortest = min(photo.shape[:2])
    smallest = max(24, shortest // 12)  # 24 px is the size the cascade was trained at
    found = Cascade(lbp_frontal_face_cascade_filename()).detect_multi_scale(
        img=photo, scale_factor=1.2, step_ratio=1, min_size=(smallest, smallest), max_size=(shortest, shortest))
    return [Face((box["c"], box["r"], box["c"] + box["width"], box["r"] + box["height"]), 1.0) for box in found]


def _cascade_missing() -> str | None:
    if importlib.util.find_spec("skimage") is None:
        return "scikit-image is not installed (the pack's requirements.txt has it)"
    return None


# in the order in which "auto" tries them: name -> the detector, and why it cannot run here
AUTOMATIC = {
    "retinaface": (_retinaface, lambda: missing(RETINAFACE_FILE)),
    "cascade": (_cascade, _cascade_missing),
}
DETECTORS = ("auto", *AUTOMATIC, "none")
