"""The settings of the published preprocessors, by name."""
from __future__ import annotations

from dataclasses import dataclass

from .parsing import ALL_BUT_BACKGROUND, EVERYTHING


@dataclass(frozen=True, slots=True)
class Preset:
    """How a photo is cropped and parsed.

    crop_scale: the least side of the crop over the longer side of the face box.
    border_rule: one of geometry.BORDER_RULES.
    keep: one of parsing.KEPT_LABELS.
    normalization: one of parsing.NORMALIZATIONS.
    size: side of the crop in pixels; 0 leaves it to the user, who has it only where the face is not aligned.
    background: a colour by name or #rrggbb.
    aligned: bring the five points of the face to where recognition networks have them, instead of cropping a square;
        a photo without a face is then taken whole and as it is, unless it is one of several.
    aligned_px: side in pixels to which an aligned face is brought first, to be enlarged to size then; 0 is size.
    least_kept: the least share of the crop that the parser must leave; if it leaves less, the crop is kept as it is.
    """

    crop_scale: float
    border_rule: str
    keep: str
    normalization: str
    size: int = 0
    background: str = "white"
    aligned: bool = False
    aligned_px: int = 0
    least_kept: float = 0.0


# The first is WeChatCV/Stand-In, preprocessor/image_input_preprocessor.py; the second is
# WeChatCV/Stand-In_Preprocessor_ComfyUI with its defaults (with_neck off). The next two have the rules of the first;
# 2.5 is the scale that users take to see the shoulders.
PRESETS = {
    "Stand-In inference": Preset(0.0, "all sides", ALL_BUT_BACKGROUND, "0.5"),
    "Stand-In ComfyUI preprocessor": Preset(0.0, "any side", "face and hair", "imagenet"),
    "face only": Preset(0.0, "all sides", "face", "0.5"),
    "head and shoulders": Preset(2.5, "all sides", ALL_BUT_BACKGROUND, "0.5"),
    # ML-GSAI/Concat-ID, inference_wan.py; its parser (jonathandinu/face-parsing) has BiSeNet's labels under other
    # numbers. Nine of ten photos were masked in its training.
    "Concat-ID": Preset(0.0, "all sides", "face, hair and neck", "imagenet", size=448, background="black",
                        aligned=True, least_kept=0.4),
    # ID-Animator/ID-Animator, infer.py at 0170eed: insightface's norm_crop of 112, enlarged by Pillow for CLIP
    "ID-Animator": Preset(0.0, "all sides", EVERYTHING, "0.5", size=224, background="black", aligned=True,
                          aligned_px=112),
}
