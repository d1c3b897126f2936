"""Real photographs as ComfyUI's pictures, and face networks in the files that they come in.

facexlib's networks have random weights. Those that OpenCV runs are made: tests/data/make_networks.py wrote them.
"""
import functools
import shutil
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch

from standin_core.face import SFACE, YUNET, FaceSettings, crop_faces

MADE = {model_file: Path(__file__).parent / "data" / name
        for model_file, name in ((YUNET, "yunet.onnx"), (SFACE, "sface.onnx"))}
# The made YuNet finds a face around a marker, a square of one plain colour as large as its stride: stride, width and
# height of the box, and the key points from the middle of the marker, in strides.
MARKERS = {"red": (8, 5, 6), "green": (16, 10, 12), "blue": (32, 8, 9)}
MARKER_POINTS = np.array([[-1.25, -1], [1.25, -1], [0, 0], [-1, 1.5], [1, 1.5]])


def astronaut() -> np.ndarray:
    """[512, 512, 3] uint8"""
    return skimage.data.astronaut()


# places in the astronaut's photo, by eye: the face from hairline to chin, and eyes, nose, corners of the mouth
FACE_BOX = (182, 77, 271, 179)
KEYPOINTS = np.array([[203, 101], [247, 103], [225, 127], [205, 140], [242, 140]], np.float64)


def as_image(*photos: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(photos)).float() / 255


def as_uint8(image: torch.Tensor) -> np.ndarray:
    return (image * 255).round().to(torch.uint8).numpy()


def crop(*photos: np.ndarray, given=None, **settings):
    """The photos through the whole stage.

    given: what other nodes would connect.
    """
    return crop_faces(as_image(*photos), FaceSettings(**settings), **(given or {}))


def landmarks(*frames: list[tuple[np.ndarray, float]], size=(512, 512)) -> dict:
    """What ComfyUI's MediaPipe node gives: for each frame the key points of its faces, with their scores; (H, W)."""
    return {"frames": [[_face(points, score) for points, score in frame] for frame in frames], "image_size": size}


def _face(points: np.ndarray, score: float) -> dict:
    mesh = np.zeros((478, 2))
    # corner of each eye, tip of the nose, corners of the mouth: the numbering of MediaPipe's face mesh
    for vertices, point in zip(((33, 133), (362, 263), (1,), (61,), (291,)), points):
        mesh[list(vertices)] = point
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    width, height = right - left, bottom - top
    return {"landmarks_xy": mesh, "score": score,
            "bbox_xyxy": np.array([left - width / 2, top - height / 2, right + width / 2, bottom + height / 2])}


def turned(photo: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The astronaut tilted to the right about the nose, and the key points of that."""
    matrix = cv2.getRotationMatrix2D(tuple(KEYPOINTS[2]), -degrees, 1.0)
    points = KEYPOINTS @ matrix[:, :2].T + matrix[:, 2]
    return cv2.warpAffine(photo, matrix, photo.shape[1::-1], borderMode=cv2.BORDER_REPLICATE), points


@functools.cache
def bisenet_weights() -> dict[str, torch.Tensor]:
    from facexlib.parsing.bisenet import BiSeNet

    torch.manual_seed(0)
    return BiSeNet(num_class=19).state_dict()


@functools.cache
def arcface_weights() -> dict[str, torch.Tensor]:
    from facexlib.recognition.arcface_arch import Backbone

    torch.manual_seed(0)
    return Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se").state_dict()


@functools.cache
def retinaface_weights() -> dict[str, torch.Tensor]:
    """Random, but for a head that is sure of a face everywhere."""
    from facexlib.detection.retinaface import RetinaFace

    torch.manual_seed(0)
    network = RetinaFace(network_name="resnet50", device=torch.device("cpu"))
    for head in network.ClassHead:
        torch.nn.init.zeros_(head.conv1x1.weight)
        head.conv1x1.bias.data.copy_(torch.tensor([-5.0, 5.0]).repeat(head.num_anchors))
    return network.state_dict()


def put(models_dir: Path, *model_files) -> None:
    """The made networks, where the published ones would be."""
    (models_dir / "facexlib").mkdir(exist_ok=True)
    for model_file in model_files:
        shutil.copy(MADE[model_file], models_dir / "facexlib" / model_file.name)


def marked(width: int, height: int, *markers: tuple[str, int, int, int], brightness: int = 255) -> np.ndarray:
    """A black photo with markers: colour, left and top edge, side in pixels."""
    photo = np.zeros((height, width, 3), np.uint8)
    for colour, left, top, side in markers:
        photo[top:top + side, left:left + side, list(MARKERS).index(colour)] = brightness
    return photo
