"""Face detectors behind one interface: a photo in, faces out."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from ..contracts import StandInError
from .models import (
    BISENET,
    RETINAFACE,
    ManagedNetwork,
    find_insightface,
    find_model,
    insightface_missing,
    missing,
)

# A face of a tenth of this is well within what the detectors find; a larger picture costs time.
LONGEST_SIDE_PX = 1024
# Smallest face the cascade looks for, as a part of the shorter side: first the larger, which is four times as fast.
CASCADE_PARTS = (12, 25)
INSIGHTFACE_FILES = ("det_*.onnx", "scrfd_*.onnx")
INSIGHTFACE_PX = 640  # what its detectors were exported for, and what the authors use

# The cascade's square reaches from the brows to below the mouth; the boxes for which crop scales were chosen, from the
# forehead to the chin. Left, top, right, bottom of such a box as shares of the square, read off a photograph.
FACE_IN_SQUARE = np.array([0.05, 0.02, 0.95, 1.15])
# Left eye, right eye (of the viewer), nose, left and right corner of the mouth as shares of a face box, likewise.
POINTS_IN_BOX = np.array([[0.26, 0.31], [0.74, 0.31], [0.50, 0.54], [0.30, 0.66], [0.70, 0.66]])


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """box: (left, top, right, bottom) in pixels of the photo; score: the detector's own, higher is surer.

    keypoints: [5, 2] float, x and y in pixels of the photo, in the order of POINTS_IN_BOX, or None where the detector
    finds none.
    """

    box: tuple[int, int, int, int]
    score: float = 1.0
    keypoints: np.ndarray | None = None

    @property
    def area(self) -> int:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def points(self) -> np.ndarray:
        """The key points, or where they would lie in an upright, frontal face of this box."""
        if self.keypoints is not None:
            return self.keypoints
        left, top, right, bottom = self.box
        return (left, top) + POINTS_IN_BOX * (right - left, bottom - top)

    def scaled(self, factor: float) -> Face:
        return Face(tuple(int(edge * factor) for edge in self.box), self.score,
                    None if self.keypoints is None else self.keypoints * factor)

    def moved(self, x: int, y: int) -> Face:
        left, top, right, bottom = self.box
        return Face((left + x, top + y, right + x, bottom + y), self.score,
                    None if self.keypoints is None else self.keypoints + np.array((x, y)))


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector that is ready.

    find: photo [H, W, 3] uint8 RGB and its index in the batch -> its faces. has_keypoints: whether they come with
    points. notes: what "auto" passed over and why, a sentence each.
    """

    name: str
    find: Callable[[np.ndarray, int], list[Face]]
    has_keypoints: bool
    notes: tuple[str, ...] = ()


def load_detector(name: str, min_score: float) -> Detector:
    """name: one of DETECTORS. "auto" takes the first that can run here and says why others cannot.

    Faces below min_score, 0 to 1, are left out. Raises StandInError if a detector was chosen by name and cannot run.
    """
    if name != "auto":
        load, why_not = BY_NAME[name]
        reason = why_not()
        if reason is not None:
            raise StandInError(f"{name} cannot run: {reason}; mend that, or set detector to auto.")
        return load(min_score)
    notes = []
    for candidate, (load, why_not) in BY_NAME.items():
        reason = why_not()
        if reason is None:
            return replace(load(min_score), notes=tuple(notes))
        notes.append(f"{candidate} not used: {reason}")
    raise AssertionError("none can always run")


def refusal(name: str) -> str | None:
    """Why a detector of BY_NAME cannot run here, or None."""
    _, why_not = BY_NAME[name]
    return why_not()


def choose(faces: list[Face], which: str, index: int) -> list[Face]:
    """which: one of WHICH; index: counted from 0 at the left, for "from left". Several faces come from left to right.

    Raises StandInError if there are faces, but not as many as the index asks for.
    """
    from_left = sorted(faces, key=lambda face: face.centre[0])
    if which == "all" or not faces:
        return from_left
    if which == "largest":
        return [max(faces, key=lambda face: face.area)]
    if index >= len(faces):
        raise StandInError(f"face_index is {index}, but {len(faces)} faces were found, counted from 0: lower it, or "
                           "lower min_score to find more.")
    return [from_left[index]]


def _retinaface(min_score: float) -> Detector:
    from facexlib.detection.retinaface import RetinaFace  # imports half of scipy and numba: 2 s

    managed = ManagedNetwork(RetinaFace(network_name="resnet50", device=torch.device("cpu")), RETINAFACE)
    network = managed.network

    def scan(photo: np.ndarray) -> list[Face]:
        managed.load()
        network.device, network.mean_tensor = managed.device, network.mean_tensor.to(managed.device)
        rows = network.detect_faces(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), conf_threshold=min_score)
        return [Face(_edges(row[:4]), float(row[4]), row[5:].reshape(5, 2).astype(np.float64)) for row in rows]

    return Detector("retinaface", _on_small_copy(scan, LONGEST_SIDE_PX), has_keypoints=True)


def _insightface(min_score: float) -> Detector:
    """SCRFD of the first model pack found, on the CPU: onnxruntime's memory is not ComfyUI's to manage."""
    from insightface.model_zoo import get_model

    model = get_model(str(find_insightface(INSIGHTFACE_FILES)), providers=["CPUExecutionProvider"])
    model.prepare(ctx_id=-1, input_size=(INSIGHTFACE_PX, INSIGHTFACE_PX), det_thresh=min_score)

    def scan(photo: np.ndarray) -> list[Face]:
        rows, points = model.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
        return [Face(_edges(row[:4]), float(row[4]), None if points is None else points[i].astype(np.float64))
                for i, row in enumerate(rows)]

    return Detector("insightface", _on_small_copy(scan, INSIGHTFACE_PX), has_keypoints=bool(model.use_kps))


def installed_models() -> tuple[str, ...]:
    """Those of the face models that are here: what a node may give depends on it."""
    found = (find_model(RETINAFACE.name), find_model(BISENET.name), find_insightface(INSIGHTFACE_FILES))
    return tuple(path.name for path in found if path is not None)


def _insightface_missing() -> str | None:
    return insightface_missing("a detector", INSIGHTFACE_FILES)


def _cascade(min_score: float) -> Detector:
    """The local-binary-pattern cascade of OpenCV that ships with scikit-image: frontal faces, no points, no score."""
    from skimage.data import lbp_frontal_face_cascade_filename  # 0.5 s
    from skimage.feature import Cascade

    cascade = Cascade(lbp_frontal_face_cascade_filename())

    def scan(photo: np.ndarray) -> list[Face]:
        shortest = min(photo.shape[:2])
        # 24 px is the size the cascade was trained at
        for smallest in dict.fromkeys(max(24, shortest // part) for part in CASCADE_PARTS):
            if smallest > shortest:
                break
            # With 10 neighbours scikit-image's photographs, at several sizes, gave every face up to a tilt of 10
            # degrees and nothing else; with its default of 4 false ones came, from 13 on a tilt of 5 degrees was lost.
            # In a photo that lies on its side it finds no face, and at 10 one wrong box.
            found = cascade.detect_multi_scale(
                img=photo, scale_factor=1.1, step_ratio=1, min_size=(smallest, smallest), max_size=(shortest, shortest),
                min_neighbor_number=10)
            if found:
                return [Face(_edges((box["c"], box["r"]) * 2 + FACE_IN_SQUARE * box["width"])) for box in found]
        return []

    return Detector("cascade", _on_small_copy(scan, LONGEST_SIDE_PX), has_keypoints=False)


def _cascade_missing() -> str | None:
    if importlib.util.find_spec("skimage") is None:
        return "scikit-image is not installed (the pack's requirements.txt has it)"
    return None


def _none(min_score: float) -> Detector:
    return Detector("none", lambda photo, index: [], has_keypoints=False)


def _on_small_copy(scan: Callable[[np.ndarray], list[Face]],
                   longest_side: int) -> Callable[[np.ndarray, int], list[Face]]:
    def find(photo: np.ndarray, index: int) -> list[Face]:
        height, width = photo.shape[:2]
        scale = min(1.0, longest_side / max(height, width))
        if scale == 1:
            faces = scan(photo)
        else:
            small = cv2.resize(photo, (max(round(width * scale), 1), max(round(height * scale), 1)),
                               interpolation=cv2.INTER_AREA)
            faces = [face.scaled(1 / scale) for face in scan(small)]
        # a box may reach out of the photo, but a face whose centre does is not in it, nor is one without area
        return [face for face in faces if 0 <= face.centre[0] < width and 0 <= face.centre[1] < height
                and face.box[0] < face.box[2] and face.box[1] < face.box[3]]

    return find


def _edges(row: np.ndarray) -> tuple[int, int, int, int]:
    return tuple(int(edge) for edge in row)


# in the order in which "auto" tries them: name -> how to get it ready, and why it cannot run here
BY_NAME = {
    "retinaface": (_retinaface, lambda: missing(RETINAFACE)),
    "insightface": (_insightface, _insightface_missing),
    "cascade": (_cascade, _cascade_missing),
    "none": (_none, lambda: None),
}
DETECTORS = ("auto", *BY_NAME)
WHICH = ("largest", "from left", "all")
