"""Face detectors behind one interface: a photo in, boxes with scores out."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..contracts import StandInError
from .models import find_model, load_weights, on_compute_device

DETECTORS = ("auto", "retinaface", "cascade", "none")

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
    """photo: [H, W, 3] uint8 RGB. "auto" takes RetinaFace where its file is present, and the cascade otherwise.

    Raises StandInError if a detector was chosen by name and cannot run.
    """
    if detector == "none":
        return Detection([], "none", [])
    scale = min(1.0, LONGEST_SIDE_PX / max(photo.shape[:2]))
    small = photo if scale == 1 else cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    notes = []
    if detector == "auto" and find_model(RETINAFACE_FILE) is None:
        notes.append(f"RetinaFace not used: no {RETINAFACE_FILE} (facexlib's releases) in models/facexlib")
        detector = "cascade"
    elif detector == "auto":
        detector = "retinaface"
    faces = _retinaface(small) if detector == "retinaface" else _cascade(small)
    return Detection([Face(tuple(int(edge / scale) for edge in face.box), face.score) for face in faces], detector,
                     notes)


def _retinaface(photo: np.ndarray) -> list[Face]:
    path = find_model(RETINAFACE_FILE)
    if path is None:
        raise StandInError(f"retinaface needs {RETINAFACE_FILE} (facexlib's releases, v0.1.0) in models/facexlib: put "
                           "it there, or set detector to auto or cascade.")
    from facexlib.detection.retinaface import RetinaFace  # imports half of scipy and numba: 2 s

    network = RetinaFace(network_name="resnet50", device=torch.device("cpu"))
    load_weights(network, path)
    device = on_compute_device(network)
    network.device, network.mean_tensor = device, network.mean_tensor.to(device)
    rows = network.detect_faces(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    return [Face(tuple(int(edge) for edge in row[:4]), float(row[4])) for row in rows]


def _cascade(photo: np.ndarray) -> list[Face]:
    """The local-binary-pattern cascade of OpenCV that ships with scikit-image; frontal faces only."""
    try:
        from skimage.data import lbp_frontal_face_cascade_filename  # optional: 0.5 s
        from skimage.feature import Cascade
    except ImportError as error:
        raise StandInError("the cascade detector needs scikit-image, which is not installed: install the pack's "
                           "requirements.txt, or set detector to none.") from error
    shortest = min(photo.shape[:2])
    smallest = max(24, shortest // 12)  # 24 px is the size the cascade was trained at
    found = Cascade(lbp_frontal_face_cascade_filename()).detect_multi_scale(
        img=photo, scale_factor=1.2, step_ratio=1, min_size=(smallest, smallest), max_size=(shortest, shortest))
    return [Face((box["c"], box["r"], box["c"] + box["width"], box["r"] + box["height"]), 1.0) for box in found]
