"""What the published preprocessors do, by name."""
from __future__ import annotations

from dataclasses import dataclass

from .parsing import ALL_BUT_BACKGROUND


@dataclass(frozen=True, slots=True)
class Preset:
    """crop_scale: side of the crop to the face box; border_rule: one of geometry.BORDER_RULES; keep: one of
    parsing.KEPT_LABELS; normalization: one of parsing.NORMALIZATIONS.
    """

    crop_scale: float
    border_rule: str
    keep: str
    normalization: str


# WeChatCV/Stand-In, preprocessor/image_input_preprocessor.py, and WeChatCV/Stand-In_Preprocessor_ComfyUI with its
# defaults (with_neck off). The last two keep the first one's rules; 2.5 is what users take to see the shoulders.
PRESETS = {
    "Stand-In inference": Preset(1.5, "all sides", ALL_BUT_BACKGROUND, "0.5"),
    "Stand-In ComfyUI preprocessor": Preset(1.5, "any side", "face and hair", "imagenet"),
    "face only": Preset(1.5, "all sides", "face", "0.5"),
    "head and shoulders": Preset(2.5, "all sides", ALL_BUT_BACKGROUND, "0.5"),
}
