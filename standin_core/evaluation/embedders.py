"""What turns a picture of a face, or of anything, into a vector."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..face import Face, choose, detector_refusal, find_insightface, insightface_refusal, load_detector, square_around

CROP_PX = 224
RECOGNITION_FILES = ("w600k_*.onnx", "glintr*.onnx")
FACE_SCALE = 1.3  # of the box, for an embedder that takes crops: the whole head
WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A face, or a whole picture, as the embedder saw it. vector: [D]; crop: [S, S, 3] uint8."""

    vector: np.ndarray
    crop: np.ndarray


@dataclass(frozen=True, slots=True)
class Embedder:
    """see: a picture [H, W, 3] uint8 and its index -> Seen, or None where there is no face."""

    name: str
    see: Callable[[np.ndarray, int], Seen | None]


def clip_embedder(clip_vision, whole: bool, min_score: float) -> Embedder:
    """clip_vision: a model of ComfyUI's Load CLIP Vision. whole: the whole picture and not the largest face in it."""
    detector = None if whole else load_detector("auto", min_score)

    def see(picture: np.ndarray, index: int) -> Seen | None:
        if detector is None:
            place = square_around(None, *picture.shape[:2], FACE_SCALE, "all sides")
        else:
            face = _largest(detector.find(picture, index))
            if face is None:
                return None
            place = square_around(face.box, *picture.shape[:2], FACE_SCALE, "all sides")
        crop = place.cut(picture, CROP_PX, WHITE)
        encoded = clip_vision.encode_image(torch.from_numpy(crop)[None].float() / 255)
        return Seen(encoded["image_embeds"][0].float().cpu().numpy(), crop)

    found = "the whole frame" if detector is None else f"faces found by {detector.name}"
    return Embedder(f"CLIP vision on {found}", see)


def insightface_embedder(min_score: float) -> Embedder:
    """The recognition network of the first model pack found, on the CPU; aligned by key points as it was trained."""
    from insightface.model_zoo import get_model
    from insightface.utils.face_align import norm_crop

    file = find_insightface(RECOGNITION_FILES)
    detector = load_detector("insightface", min_score)
    network = get_model(str(file), providers=["CPUExecutionProvider"])
    network.prepare(ctx_id=-1)

    def see(picture: np.ndarray, index: int) -> Seen | None:
        face = _largest(detector.find(picture, index))
        if face is None:
            return None
        aligned = norm_crop(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), face.points.astype(np.float32))
        return Seen(network.get_feat(aligned)[0], cv2.cvtColor(aligned, cv2.COLOR_BGR2RGB))

    return Embedder(f"insightface {file.stem}", see)


def comparing_missing() -> str | None:
    """Why insightface cannot find and compare faces here, or None."""
    return detector_refusal("insightface") or insightface_refusal("a recognition network", RECOGNITION_FILES)


def _largest(faces: list[Face]) -> Face | None:
    return next(iter(choose(faces, "largest", 0)), None)
