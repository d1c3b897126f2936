"""The detector of a node: a box, a mask or landmarks that another node found, or the detector that it names."""
from __future__ import annotations

import math

import numpy as np
import torch

from ..checks import check_number, checked_masks
from ..errors import UserError
from ..words import shown
from .detectors import Detector, Face, load_detector
from .download import download_if_missing
from .models import RETINAFACE, YUNET

# MediaPipe's face mesh: the two corners of each eye, the tip of the nose, the corners of the mouth
MESH_POINTS = ((33, 133), (362, 263), (1,), (61,), (291,))
LAST_MESH_POINT = max(max(corners) for corners in MESH_POINTS)
FARTHEST_PX = 10**6  # beyond it OpenCV cannot draw a box, and no picture reaches
LARGEST = 1e12  # number of a box; far larger whole numbers have no floating point number
# which file download_missing fetches for a detector; the others need none, or one that the user installs
FETCHED = {"auto": RETINAFACE, "retinaface": RETINAFACE, "yunet": YUNET}


def ready_detector(settings, pictures: tuple[int, int, int], face_box, face_mask: torch.Tensor | None,
                   face_landmarks: dict | None) -> Detector:
    """The detector that answers with what is connected, or the one that the settings name.

    settings: FaceSettings or SwapSettings; the fields read are detector, min_score and download_missing.
    pictures: number, height and width of the pictures.
    face_box, face_mask, face_landmarks: see ``given_detector``.
    """
    given = given_detector(pictures, face_box, face_mask, face_landmarks)
    if given is not None:
        return given
    if settings.download_missing and settings.detector in FETCHED:
        download_if_missing(FETCHED[settings.detector])
    return load_detector(settings.detector, settings.min_score)


def given_detector(pictures: tuple[int, int, int], boxes, mask: torch.Tensor | None,
                   landmarks: dict | None) -> Detector | None:
    """A detector that answers with what is connected, or None if nothing is. All three are in pixels of the photos.

    pictures: number, height and width of the photos.
    boxes: ComfyUI's BOUNDING_BOX, one for all photos or a list for each photo.
    mask: [B or 1, H, W]; the face is where the mask is above one half.
    landmarks: ComfyUI's FACE_LANDMARKS.

    Raises UserError if more than one is connected, for what is no box, mask or landmarks, and for what was made from
    other pictures.
    """
    given = {name: value for name, value in (("face_box", boxes), ("face_mask", mask), ("face_landmarks", landmarks))
             if value is not None}
    if len(given) > 1:
        raise UserError(f"only one of {' and '.join(given)} can be read, but all are connected: disconnect the others.")
    if boxes is not None:
        return _from_boxes(boxes)
    if mask is not None:
        return _from_mask(checked_masks(mask, "face_mask", pictures).cpu().numpy() > 0.5)
    if landmarks is None:
        return None
    if not isinstance(landmarks, dict) or not {"frames", "image_size"} <= landmarks.keys():
        raise _no_landmarks(f"is of type {type(landmarks).__name__}")
    size = landmarks["image_size"]
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise _no_landmarks(f"has the picture's size {shown(size)}")
    if tuple(size) != pictures[1:]:
        raise UserError(f"face_landmarks were found in a picture of {shown(size[1])}x{shown(size[0])}, but this one is "
                        f"{pictures[2]}x{pictures[1]}: connect the same picture to both nodes.")
    return _from_landmarks(landmarks)


def _from_boxes(boxes) -> Detector:
    """boxes: one box, a list of boxes that holds for every photo, or such a list for each photo."""
    if isinstance(boxes, dict):
        boxes = [boxes]
    for_each = boxes if boxes and isinstance(boxes, list) and isinstance(boxes[0], list) else [boxes]
    for found in for_each:
        _check_boxes(found)

    def find(photo: np.ndarray, index: int) -> list[Face]:
        faces = [_boxed(box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"], photo,
                        box.get("score", 1.0)) for box in _of_photo(for_each, index, "face_box")]
        return [face for face in faces if face is not None]

    return Detector("the connected box", find, has_keypoints=False)


def _check_boxes(boxes) -> None:
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise UserError("face_box must hold boxes with x, y, width and height in pixels, one list of them for each "
                        "picture, but holds something else: connect a node that outputs BOUNDING_BOX.")
    for box in boxes:
        for side, least in (("x", -LARGEST), ("y", -LARGEST), ("width", 0), ("height", 0)):
            check_number(box.get(side), f"{side} of face_box", least, LARGEST)
        check_number(box.get("score", 1.0), "score of face_box", -LARGEST, LARGEST)


def _from_mask(masks: np.ndarray) -> Detector:
    """masks: [B or 1, H, W] bool"""
    def find(photo: np.ndarray, index: int) -> list[Face]:
        inside = _of_photo(masks, index, "face_mask")
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if not rows.size:
            return []
        return [Face((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))]

    return Detector("the connected mask", find, has_keypoints=False)


def _from_landmarks(landmarks: dict) -> Detector:
    frames = landmarks["frames"]
    if not isinstance(frames, list) or not all(isinstance(frame, list) for frame in frames):
        raise _no_landmarks("has no list of faces for each picture")
    frames = [[_checked_landmarks(found) for found in frame] for frame in frames]

    def find(photo: np.ndarray, index: int) -> list[Face]:
        faces = []
        for mesh, (left, top, right, bottom), score in _of_photo(frames, index, "face_landmarks"):
            face = _boxed(left, top, right, bottom, photo, score)
            if face is not None:
                points = np.stack([mesh[list(corners)].mean(axis=0) for corners in MESH_POINTS])
                faces.append(Face(face.box, face.score, points))
        return faces

    return Detector("the connected landmarks", find, has_keypoints=True)


def _checked_landmarks(found: dict) -> tuple[np.ndarray, np.ndarray, float]:
    """Mesh [V, 2], box [4] and score of a face."""
    try:
        mesh, box = (np.asarray(found[name], np.float64) for name in ("landmarks_xy", "bbox_xyxy"))
        score = float(found["score"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _no_landmarks("holds a face without points, box or score") from error
    if mesh.ndim != 2 or mesh.shape[0] <= LAST_MESH_POINT or mesh.shape[1] != 2 or box.shape != (4,):
        raise _no_landmarks(f"holds a face with points of shape {list(mesh.shape)} and a box of {list(box.shape)}")
    if not (np.isfinite(mesh).all() and np.isfinite(box).all() and math.isfinite(score)):
        raise _no_landmarks("holds values that are not finite (NaN or infinite)")
    return mesh.clip(-FARTHEST_PX, FARTHEST_PX), box, score


def _no_landmarks(came: str) -> UserError:
    return UserError("face_landmarks must be the output of Detect Face Landmarks (MediaPipe), but "
                     f"{came}: connect that output.")


def _of_photo(for_each, index: int, name: str):
    """The entry of one photo; a single entry serves all photos."""
    if len(for_each) == 1:
        return for_each[0]
    if index >= len(for_each):
        raise UserError(f"{name} has {len(for_each)} entries and there are more photos: connect one for each, or "
                        "one for all.")
    return for_each[index]


def _boxed(left: float, top: float, right: float, bottom: float, photo: np.ndarray, score: float) -> Face | None:
    """The box, truncated to whole pixels as a detector's is, or None if no pixel of it lies in the photo."""
    height, width = photo.shape[:2]
    left, top, right, bottom = (min(max(edge, -FARTHEST_PX), FARTHEST_PX) for edge in (left, top, right, bottom))
    box = int(left), int(top), int(right), int(bottom)
    inside = max(box[0], 0) < min(box[2], width) and max(box[1], 0) < min(box[3], height)
    return Face(box, score) if inside else None
