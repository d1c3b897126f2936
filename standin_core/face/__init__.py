"""From a photo to a face crop, and the detectors that face swap shares.

The authors' steps (WeChatCV/Stand-In, ``preprocessor/image_input_preprocessor.py``) with every choice made visible.
"""
from .detectors import DETECTORS, WHICH, Detector, Face, choose, installed_models, load_detector, refusal
from .geometry import BORDER_RULES, square_around
from .given import ready_detector
from .models import find_insightface, insightface_missing
from .parsing import KEPT_LABELS, NORMALIZATIONS
from .pixels import check_finite, checked_masks, to_uint8
from .preprocess import FROM_PRESET, NO_FACE, PARSERS, FaceSettings, crop_faces
from .presets import PRESETS

__all__ = ["BORDER_RULES", "DETECTORS", "FROM_PRESET", "KEPT_LABELS", "NORMALIZATIONS", "NO_FACE", "PARSERS", "PRESETS",
           "WHICH", "Detector", "Face", "FaceSettings", "check_finite", "checked_masks", "choose", "crop_faces",
           "find_insightface", "insightface_missing", "installed_models", "load_detector", "ready_detector", "refusal",
           "square_around", "to_uint8"]
