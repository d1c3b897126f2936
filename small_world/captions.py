"""The captions of the small world as ComfyUI's text encoder gives them, so that CLIP Text Encode says the same."""
from __future__ import annotations

import comfy.sd
import torch

from . import tiny_encoders  # lets ComfyUI load the tiny encoder  # noqa: F401
from .scenes import captions
from .tiny_models import text_encoder_weights


def caption_contexts() -> dict[str, torch.Tensor]:
    """Caption, or none -> [1, N, 4096], of the tiny umT5 whose weights follow from a seed."""
    clip = comfy.sd.load_text_encoder_state_dicts([text_encoder_weights()], clip_type=comfy.sd.CLIPType.WAN)
    return {caption: clip.encode_from_tokens_scheduled(clip.tokenize(caption))[0][0].float()
            for caption in ("", *captions())}
