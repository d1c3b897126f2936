"""Embedders: what turns a face, or a whole picture, into a vector."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..checks import check_finite
from ..face import (
    ARCFACE,
    SFACE,
    YUNET,
    Detector,
    Face,
    ManagedNetwork,
    Refusal,
    aligned,
    choose,
    detector_refusal,
    download_if_missing,
    file_refusal,
    find_insightface,
    insightface_network,
    insightface_refusal,
    keypoint_detector,
    load_detector,
    opencv_network,
    square_around,
)

CROP_PX = 224
RECOGNITION_FILES = ("w600k_*.onnx", "glintr*.onnx")
HEAD_SCALE = 1.3  # side of a crop of the whole head over the longer side of the face box
WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A face, or a whole picture, as the embedder saw it.

    vector: [D].
    crop: [S, S, 3] uint8.
    """

    vector: np.ndarray
    crop: np.ndarray


@dataclass(frozen=True, slots=True)
class Embedder:
    """An embedder that is ready to run.

    see: takes a picture, [H, W, 3] uint8, and its index in the batch; returns None where there is no face.
    """

    name: str
    see: Callable[[np.ndarray, int], Seen | None]


# takes an aligned face, [112, 112, 3] uint8 in OpenCV's order of colours (blue, green, red); returns its vector, [D]
Recognizer = Callable[[np.ndarray], np.ndarray]


def clip_embedder(clip_vision, whole: bool, min_score: float) -> Embedder:
    """An embedder by a CLIP vision model.

    clip_vision: from ComfyUI's Load CLIP Vision.
    whole: look at the whole picture rather than at the largest face in it.
    min_score: 0 to 1; faces with a lower score are left out.
    """
    detector = None if whole else load_detector("auto", min_score)

    def see(picture: np.ndarray, index: int) -> Seen | None:
        height, width = picture.shape[:2]
        if detector is None:
            place = square_around(None, height, width, HEAD_SCALE, "all sides")
        else:
            face = _largest(detector.find(picture, index))
            if face is None:
                return None
            place = square_around(face.box, height, width, HEAD_SCALE, "all sides")
        crop = place.cut(picture, CROP_PX, WHITE)
        encoded = clip_vision.encode_image(torch.from_numpy(crop)[None].float() / 255)["image_embeds"]
        check_finite(encoded, "the output of clip_vision")
        return Seen(encoded[0].float().cpu().numpy(), crop)

    found = "the whole frame" if detector is None else f"faces found by {detector.name}"
    return Embedder(f"CLIP vision on {found}", see)


def face_embedder(name: str, min_score: float) -> Embedder:
    """An embedder by a face recognition network, which sees the largest face, aligned by its key points.

    name: one of FACE_EMBEDDERS; ``face_embedder_refusal(name)`` must be None.
    min_score: 0 to 1; faces with a lower score are left out.
    """
    load, _ = FACE_EMBEDDERS[name]
    words, detector, recognize = load(min_score)

    def see(picture: np.ndarray, index: int) -> Seen | None:
        face = _largest(detector.find(picture, index))
        if face is None:
            return None
        crop = aligned(picture, face.points)
        return Seen(recognize(cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)), crop)

    return Embedder(words, see)


def face_embedder_refusal(name: str) -> Refusal | None:
    """Why an embedder of FACE_EMBEDDERS cannot run here, or None if it can."""
    _, refuse = FACE_EMBEDDERS[name]
    return refuse()


def face_embedder_refusals() -> dict[str, str]:
    """Why each embedder of FACE_EMBEDDERS that cannot run here cannot, in words."""
    refusals = {name: face_embedder_refusal(name) for name in FACE_EMBEDDERS}
    return {name: str(refusal) for name, refusal in refusals.items() if refusal is not None}


def download_face_embedder(name: str) -> None:
    """Download what an embedder of FACE_EMBEDDERS needs; insightface is the user's to install.

    A detector is downloaded only where no detector with key points can run: then YuNet, the smallest one.

    Raises UserError if a source cannot be reached or sends another file.
    """
    model_files = {"arcface": ARCFACE, "sface": SFACE}
    if name in model_files:
        download_if_missing(model_files[name])
        if keypoint_detector() is None:
            download_if_missing(YUNET)


def _insightface(min_score: float) -> tuple[str, Detector, Recognizer]:
    """The recognition network of the first model pack found."""
    file = find_insightface(RECOGNITION_FILES)
    assert file is not None  # or _insightface_refusal would say so

    def try_out(network) -> None:
        network.prepare(ctx_id=-1)
        network.get_feat(np.zeros((112, 112, 3), np.uint8))

    detector, network = load_detector("insightface", min_score), insightface_network(file, try_out)
    return f"insightface {file.stem}", detector, lambda face: network.get_feat(face)[0]


def _insightface_refusal() -> Refusal | None:
    return detector_refusal("insightface") or insightface_refusal("a recognition network", RECOGNITION_FILES)


def _arcface(min_score: float) -> tuple[str, Detector, Recognizer]:
    """facexlib's ArcFace, an IR-SE50.

    It takes pixels in -1..1, blue, green, red, as it was trained (TreB1eN/InsightFace_Pytorch, data/data_pipe.py).
    """
    from facexlib.recognition.arcface_arch import Backbone  # imports half of scipy and numba: 2 s

    detector = _keypoint_detector(min_score)
    managed = ManagedNetwork(Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"), ARCFACE)

    def recognize(face: np.ndarray) -> np.ndarray:
        managed.load()
        pixels = torch.from_numpy(face).permute(2, 0, 1)[None].float() / 127.5 - 1
        return managed.network(pixels.to(managed.device))[0].cpu().numpy()

    return f"facexlib's ArcFace on faces found by {detector.name}", detector, recognize


def _sface(min_score: float) -> tuple[str, Detector, Recognizer]:
    """SFace, run by OpenCV on the CPU (Zhong et al.: SFace, sigmoid-constrained hypersphere loss, 2021)."""
    detector = _keypoint_detector(min_score)
    network = opencv_network(SFACE, cv2.FaceRecognizerSF.create,
                             lambda network: network.feature(np.zeros((112, 112, 3), np.uint8)))
    return f"SFace on faces found by {detector.name}", detector, lambda face: network.feature(face)[0]


def _keypoint_detector(min_score: float) -> Detector:
    name = keypoint_detector()
    assert name is not None  # or _keypoint_refusal would say so
    return load_detector(name, min_score)


def _keypoint_refusal() -> Refusal | None:
    if keypoint_detector() is None:
        return Refusal(f"it needs a detector with key points, and none can run here; the smallest is {YUNET.name}",
                       YUNET.source)
    return None


def _largest(faces: list[Face]) -> Face | None:
    return next(iter(choose(faces, "largest", 0)), None)


# name -> what loads it and what says why it cannot run here, in the order in which "auto" tries them
FACE_EMBEDDERS = {
    "insightface": (_insightface, _insightface_refusal),
    "arcface": (_arcface, lambda: file_refusal(ARCFACE) or _keypoint_refusal()),
    "sface": (_sface, lambda: file_refusal(SFACE) or _keypoint_refusal()),
}
