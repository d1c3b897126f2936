"""From a photo to a face crop; the detectors also serve face swap and evaluation.

The steps are those of Stand-In's authors (WeChatCV/Stand-In, ``preprocessor/image_input_preprocessor.py``), each with
its settings.
"""
from .detectors import (
    DETECTORS,
    WHICH,
    Detector,
    Face,
    choose,
    detector_refusal,
    keypoint_detector,
    load_detector,
    resolve_detector,
)
from .download import download_if_missing
from .geometry import BORDER_RULES, aligned, square_around
from .given import ready_detector
from .models import (
    ARCFACE,
    SFACE,
    YUNET,
    ManagedNetwork,
    file_refusal,
    find_insightface,
    insightface_network,
    insightface_refusal,
    installed_models,
    opencv_network,
)
from .parsing import KEPT_LABELS, NORMALIZATIONS
from .pixels import to_uint8
from .preprocess import FROM_PRESET, NO_FACE, PARSERS, FaceSettings, crop_faces
from .presets import PRESETS
from .refusal import Refusal

__all__ = [
    "ARCFACE",
    "BORDER_RULES",
    "DETECTORS",
    "FROM_PRESET",
    "KEPT_LABELS",
    "NORMALIZATIONS",
    "NO_FACE",
    "PARSERS",
    "PRESETS",
    "SFACE",
    "WHICH",
    "YUNET",
    "Detector",
    "Face",
    "FaceSettings",
    "ManagedNetwork",
    "Refusal",
    "aligned",
    "choose",
    "crop_faces",
    "detector_refusal",
    "download_if_missing",
    "file_refusal",
    "find_insightface",
    "insightface_network",
    "insightface_refusal",
    "installed_models",
    "keypoint_detector",
    "load_detector",
    "opencv_network",
    "ready_detector",
    "resolve_detector",
    "square_around",
    "to_uint8",
]
