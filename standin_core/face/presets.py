"""The settings of the published preprocessors, by name."""
from __future__ import annotations

from dataclasses import dataclass

from .parsing import ALL_BUT_BACKGROUND


@dataclass(frozen=True, slots=True)
class Preset:
    """How a photo is cropped and parsed.

    crop_scale: the least side of the crop over the longer side of the face box.
    border_rule: one of geometry.BORDER_RULES.
    keep: one of parsing.KEPT_LABELS.
    normalization: one of parsing.NORMALIZATIONS.
    """

    crop_scale: float
    border_rule: str
    keep: str
    normalization: str


# The first is WeChatCV/Stand-In, preprocessor/image_input_preprocessor.py; the second is
# WeChatCV/Stand-In_Preprocessor_ComfyUI with its defaults (with_neck off). The last two have the rules of the first;
# 2.5 is the scale that users take to see the shoulders.
PRESETS = {
    "Stand-In inference": Preset(0.0, "all sides", ALL_BUT_BACKGROUND, "0.5"),
    "Stand-In ComfyUI preprocessor": Preset(0.0, "any side", "face and hair", "imagenet"),
    "face only": Preset(0.0, "all sides", "face", "0.5"),
    "head and shoulders": Preset(2.5, "all sides", ALL_BUT_BACKGROUND, "0.5"),
}
