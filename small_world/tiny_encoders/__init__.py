"""A custom node pack for demo and tests: lets ComfyUI load tiny text and vision encoders where its own code says how
large they are. The loaders, the tokenizer and the networks are ComfyUI's; only the sizes differ
(small_world/tiny_models.py writes the files).
"""
import json
import re
from pathlib import Path

import comfy.clip_vision
import comfy.sd1_clip
import comfy.text_encoders.wan

CAPTION = re.compile(r"|(a person|two people, each) [a-z ]+, [a-z]+ background")  # of the small world, or none
SIZES = json.loads((Path(__file__).parent / "sizes.json").read_text())


class TinyUMT5(comfy.text_encoders.wan.UMT5XXlModel):
    def __init__(self, model_options=None, **kwargs):
        super().__init__(model_options={**(model_options or {}), "model_name": "tiny",
                                        "tiny_model_config": SIZES["text"]}, **kwargs)


class TinyTokenizer(comfy.text_encoders.wan.UMT5XXlTokenizer):
    """Pads captions of the small world to 32 tokens, where the real one pads to 512: most of the time of its tiny model
    would go into those."""

    def tokenize_with_weights(self, text, *args, **kwargs):
        self.min_length = SIZES["caption_tokens"] if CAPTION.fullmatch(text) else 512
        return super().tokenize_with_weights(text, *args, **kwargs)


class TinySD15Text(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, model_options=None, **kwargs):
        super().__init__(model_options={**(model_options or {}), "clip_l_model_config": SIZES["sd15_text"]}, **kwargs)


class TinyClipVision(comfy.clip_vision.ClipVisionModel):
    def __init__(self, json_config):
        """A model of the sizes in a file is a tiny one; of sizes given by themselves, it has those."""
        from_file = not isinstance(json_config, dict)
        super().__init__(json.loads(Path(json_config).read_text()) | SIZES["vision"] if from_file else json_config)


comfy.text_encoders.wan.UMT5XXlModel = TinyUMT5
comfy.text_encoders.wan.UMT5XXlTokenizer = TinyTokenizer
comfy.sd1_clip.SD1ClipModel = TinySD15Text
comfy.clip_vision.ClipVisionModel = TinyClipVision

NODE_CLASS_MAPPINGS = {}
