"""A custom node pack for demo and tests: lets ComfyUI load a tiny umT5 where its own code says how large Wan's is.

The loader, the tokenizer and the network are ComfyUI's; only the sizes differ (scripts/tiny_models.py writes the file).
"""
import json
from pathlib import Path

import comfy.text_encoders.wan

# all but the width, on which tokenizer and model agree
SIZES = json.loads((Path(__file__).parent / "sizes.json").read_text())


class TinyUMT5(comfy.text_encoders.wan.UMT5XXlModel):
    def __init__(self, model_options=None, **kwargs):
        super().__init__(model_options={**(model_options or {}), "model_name": "tiny", "tiny_model_config": SIZES},
                         **kwargs)


comfy.text_encoders.wan.UMT5XXlModel = TinyUMT5

NODE_CLASS_MAPPINGS = {}
