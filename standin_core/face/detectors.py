"""Face detectors behind one interface: a photo in, faces out."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from ..errors import UserError
from .models import (
    REQUIRED,
    RETINAFACE,
    YUNET,
    ManagedNetwork,
    file_refusal,
    find_insightface,
    insightface_network,
    insightface_refusal,
    opencv_network,
)
from .refusal import Refusal

# A detector sees a copy of the photo whose longer side has this many pixels at most. A face of a tenth of it is well
# within what the detectors find; a larger copy costs time.
LONGEST_SIDE_PX = 1024
# The smallest face that the cascade looks for, as a part of the photo's shorter side. The search for larger faces comes
# first: it is four times as fast.
CASCADE_PARTS = (12, 25)
INSIGHTFACE_FILES = ("det_*.onnx", "scrfd_*.onnx")
INSIGHTFACE_PX = 640  # what its detectors were exported for, and what Stand-In's authors use
# YuNet was trained on pictures of 640 px and finds faces of 10 to 300 px (opencv_zoo, face_detection_yunet/README.md).
YUNET_PX, YUNET_LARGEST_PX = 640, 300

# The cascade's square reaches from the brows to below the mouth. Crop scales are meant for boxes from the forehead to
# the chin: left, top, right and bottom of such a box as shares of the square, read off a photograph.
FACE_IN_SQUARE = np.array([0.05, 0.02, 0.95, 1.15])
# left eye, right eye (as the viewer sees them), nose, left and right corner of the mouth as shares of a face box, read
# off the same photograph
POINTS_IN_BOX = np.array([[0.26, 0.31], [0.74, 0.31], [0.50, 0.54], [0.30, 0.66], [0.70, 0.66]])


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """A face in a photo.

    box: left, top, right, bottom in pixels of the photo.
    score: how sure the detector is, on its own scale.
    keypoints: [5, 2] float, x and y in pixels of the photo, in the order of POINTS_IN_BOX; None if the detector gives
        no key points.
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
        """[5, 2]: the key points, or where they would lie in an upright, frontal face of this box."""
        if self.keypoints is not None:
            return self.keypoints
        left, top, right, bottom = self.box
        return (left, top) + POINTS_IN_BOX * (right - left, bottom - top)

    def scaled(self, factor: float) -> Face:
        return Face(_edges(edge * factor for edge in self.box), self.score,
                    None if self.keypoints is None else self.keypoints * factor)

    def moved(self, x: int, y: int) -> Face:
        left, top, right, bottom = self.box
        return Face((left + x, top + y, right + x, bottom + y), self.score,
                    None if self.keypoints is None else self.keypoints + np.array((x, y)))


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector that is ready to run.

    find: takes a photo, [H, W, 3] uint8 RGB, and its index in the batch; returns the faces in it.
    has_keypoints: whether the faces come with key points.
    notes: each detector that "auto" passed over, and why.
    """

    name: str
    find: Callable[[np.ndarray, int], list[Face]]
    has_keypoints: bool
    notes: tuple[str, ...] = ()


def load_detector(name: str, min_score: float) -> Detector:
    """The detector that ``resolve_detector`` finds for a name.

    min_score: 0 to 1; faces with a lower score are left out.
    """
    name, notes = resolve_detector(name)
    load, _ = BY_NAME[name]
    return replace(load(min_score), notes=notes)


def resolve_detector(name: str) -> tuple[str, tuple[str, ...]]:
    """The name of the detector that runs, and a note for each that "auto" passed over.

    name: one of DETECTORS; "auto" takes the first of BY_NAME that can run here.

    Raises UserError if a detector was chosen by name and cannot run.
    """
    if name != "auto":
        refusal = detector_refusal(name)
        if refusal is not None:
            raise UserError(f"{name} cannot run: {refusal}. Supply what is missing, or set detector to auto.")
        return name, ()
    notes: list[str] = []
    for candidate in BY_NAME:
        refusal = detector_refusal(candidate)
        if refusal is None:
            return candidate, tuple(notes)
        notes.append(f"{candidate} not used: {refusal.fact}")
    raise AssertionError("none can always run")


def detector_refusal(name: str) -> Refusal | None:
    """Why a detector of BY_NAME cannot run here, or None if it can."""
    _, refuse = BY_NAME[name]
    return refuse()


def keypoint_detector() -> str | None:
    """The name of the first detector with key points that can run here, or None."""
    return next((name for name in KEYPOINT_DETECTORS if detector_refusal(name) is None), None)


def choose(faces: list[Face], which: str, index: int) -> list[Face]:
    """The faces that the user asked for, from left to right.

    which: one of WHICH.
    index: which face "from left" takes; 0 is the leftmost.

    Raises UserError if there are faces, but fewer than the index asks for.
    """
    from_left = sorted(faces, key=lambda face: face.centre[0])
    if which == "all" or not faces:
        return from_left
    if which == "largest":
        return [max(faces, key=lambda face: face.area)]
    if index >= len(faces):
        raise UserError(f"face_index is {index}, but the faces found have the numbers 0 to {len(faces) - 1}: lower it, "
                        "or lower min_score to find more.")
    return [from_left[index]]


def _retinaface(min_score: float) -> Detector:
    from facexlib.detection.retinaface import RetinaFace  # imports half of scipy and numba: 2 s

    network = RetinaFace(network_name="resnet50", device=torch.device("cpu"))
    managed = ManagedNetwork(network, RETINAFACE)

    def scan(photo: np.ndarray) -> list[Face]:
        managed.load()
        network.device, network.mean_tensor = managed.device, network.mean_tensor.to(managed.device)
        rows = network.detect_faces(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), conf_threshold=min_score)
        return [Face(_edges(row[:4]), float(row[4]), row[5:].reshape(5, 2).astype(np.float64)) for row in rows]

    return Detector("retinaface", _on_small_copy(scan, LONGEST_SIDE_PX), has_keypoints=True)


def _insightface(min_score: float) -> Detector:
    """SCRFD of the first model pack found."""
    file = find_insightface(INSIGHTFACE_FILES)
    assert file is not None  # or _insightface_refusal would say so

    def try_out(network) -> None:
        network.prepare(ctx_id=-1, input_size=(INSIGHTFACE_PX, INSIGHTFACE_PX), det_thresh=min_score)
        network.detect(np.zeros((INSIGHTFACE_PX, INSIGHTFACE_PX, 3), np.uint8))

    model = insightface_network(file, try_out)

    def scan(photo: np.ndarray) -> list[Face]:
        rows, points = model.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
        return [Face(_edges(row[:4]), float(row[4]), None if points is None else points[i].astype(np.float64))
                for i, row in enumerate(rows)]

    return Detector("insightface", _on_small_copy(scan, INSIGHTFACE_PX), has_keypoints=bool(model.use_kps))


def _insightface_refusal() -> Refusal | None:
    return insightface_refusal("a detector", INSIGHTFACE_FILES)


def _yunet(min_score: float) -> Detector:
    """YuNet, run by OpenCV on the CPU (Wu, Peng, Yu: YuNet, a tiny millisecond-level face detector, 2023)."""
    def create(kind: str, weights: np.ndarray, configuration: np.ndarray):
        return cv2.FaceDetectorYN.create(kind, weights, configuration, (32, 32), min_score)

    network = opencv_network(YUNET, create,
                             lambda network: network.detect(np.zeros((32, 32, 3), np.uint8)))

    def scan(photo: np.ndarray) -> list[Face]:
        network.setInputSize(photo.shape[1::-1])
        _, rows = network.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
        return [] if rows is None else [
            Face(_edges((*row[:2], *(row[:2] + row[2:4]))), float(row[14]), row[4:14].reshape(5, 2).astype(np.float64))
            for row in rows]

    fine, coarse = _on_small_copy(scan, YUNET_PX), _on_small_copy(scan, YUNET_PX // 2)

    def find(photo: np.ndarray, index: int) -> list[Face]:
        """On the coarse copy where it shows a face that is too large on the fine one, else on the fine one."""
        faces = coarse(photo, index)
        too_large = YUNET_LARGEST_PX * max(1.0, max(photo.shape[:2]) / YUNET_PX)
        if any(face.box[3] - face.box[1] > too_large for face in faces):
            return faces
        return fine(photo, index)

    return Detector("yunet", find, has_keypoints=True)


def _cascade(min_score: float) -> Detector:
    """OpenCV's local-binary-pattern cascade, which ships with scikit-image: frontal faces, no key points, no score."""
    from skimage.data import lbp_frontal_face_cascade_filename  # 0.5 s
    from skimage.feature import Cascade

    cascade = Cascade(lbp_frontal_face_cascade_filename())

    def scan(photo: np.ndarray) -> list[Face]:
        shortest = min(photo.shape[:2])
        # 24 px is the size the cascade was trained at
        for smallest in dict.fromkeys(max(24, shortest // part) for part in CASCADE_PARTS):
            if smallest > shortest:
                break
            # Measured on scikit-image's photographs at several sizes: 10 neighbours give every face up to a tilt of 10
            # degrees and nothing else; 4, the default, give false faces, and 13 lose faces at a tilt of 5 degrees. In a
            # photo that lies on its side 10 neighbours give no face, and one wrong box.
            found = cascade.detect_multi_scale(
                img=photo, scale_factor=1.1, step_ratio=1, min_size=(smallest, smallest), max_size=(shortest, shortest),
                min_neighbor_number=10)
            if found:
                return distinct([Face(_edges((box["c"], box["r"]) * 2 + FACE_IN_SQUARE * box["width"]))
                                  for box in found])
        return []

    return Detector("cascade", _on_small_copy(scan, LONGEST_SIDE_PX), has_keypoints=False)


def distinct(faces: list[Face]) -> list[Face]:
    """The largest of the boxes around each face: those whose centre lies in a larger one are left out."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda each: -each.area):
        x, y = face.centre
        if not any(left <= x < right and top <= y < bottom for left, top, right, bottom in (each.box for each in kept)):
            kept.append(face)
    return kept


def _cascade_refusal() -> Refusal | None:
    if importlib.util.find_spec("skimage") is None:
        return Refusal("scikit-image is not installed", REQUIRED)
    return None


def _none(min_score: float) -> Detector:
    return Detector("none", lambda photo, index: [], has_keypoints=False)


def _on_small_copy(scan: Callable[[np.ndarray], list[Face]],
                   longest_side: int) -> Callable[[np.ndarray, int], list[Face]]:
    """scan, on a copy of the photo that is no longer than longest_side, with the faces in the photo's own pixels."""
    def find(photo: np.ndarray, index: int) -> list[Face]:
        height, width = photo.shape[:2]
        scale = min(1.0, longest_side / max(height, width))
        if scale == 1:
            faces = scan(photo)
        else:
            small = cv2.resize(photo, (max(round(width * scale), 1), max(round(height * scale), 1)),
                               interpolation=cv2.INTER_AREA)
            faces = [face.scaled(1 / scale) for face in scan(small)]
        # A box may reach out of the photo. A box whose centre lies outside, or that has no area, is no face in it.
        return [face for face in faces if 0 <= face.centre[0] < width and 0 <= face.centre[1] < height
                and face.box[0] < face.box[2] and face.box[1] < face.box[3]]

    return find


def _edges(row: Iterable[float]) -> tuple[int, int, int, int]:
    left, top, right, bottom = (int(edge) for edge in row)
    return left, top, right, bottom


# name -> what loads it and what says why it cannot run here, in the order in which "auto" tries them
BY_NAME = {
    "retinaface": (_retinaface, lambda: file_refusal(RETINAFACE)),
    "insightface": (_insightface, _insightface_refusal),
    "yunet": (_yunet, lambda: file_refusal(YUNET)),
    "cascade": (_cascade, _cascade_refusal),
    "none": (_none, lambda: None),
}
DETECTORS = ("auto", *BY_NAME)
KEYPOINT_DETECTORS = ("retinaface", "insightface", "yunet")
WHICH = ("largest", "from left", "all")
