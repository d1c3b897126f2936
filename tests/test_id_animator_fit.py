"""Which U-Nets the authors' adapter fits: models of full size in ComfyUI's own classes, without weights."""
import json

import pytest
import torch
from comfy.model_detection import model_config_from_unet_config
from comfy.model_patcher import ModelPatcher

from golden_cases import GOLDEN
from standin_core.errors import UserError
from standin_core.id_animator.adapter import parse_adapter
from standin_core.id_animator.apply import apply_face_tokens

SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "num_heads": 8, "num_head_channels": -1, "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768, "legacy": False,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False}
SD2 = SD15 | {"context_dim": 1024, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}
SDXL = SD2 | {
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048,
    "num_classes": "sequential", "adm_in_channels": 2816}


def model(config):
    """What ComfyUI makes of a U-Net so described, with all its weights on no device."""
    base = model_config_from_unet_config(config).get_model({}, device=torch.device("meta"))
    return ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def adapter():
    """With the names and shapes of the authors' file."""
    shapes = json.loads((GOLDEN / "id_animator_small" / "full_size_keys.json").read_text())
    return parse_adapter({key: torch.zeros(shape) for key, shape in shapes.items()}, "animator.ckpt")


def test_sd15(adapter):
    patched = apply_face_tokens(model(SD15), adapter, torch.zeros(2, 16, 768))
    assert len(patched.patches) == 64
    for key, [(_, patch, *_)] in patched.patches.items():
        up, down, *_ = patch.weights
        assert (len(up), down.shape[1]) == tuple(patched.model.state_dict()[key].shape)


def test_weights_that_are_named_otherwise(adapter):
    """As a node names them that wraps the layers of a model."""
    wrapped = model(SD15)
    attention = wrapped.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2
    attention.to_q = torch.nn.Sequential(attention.to_q)
    with pytest.raises(UserError, match=r"the model took 63 of the 64 low-rank weights of animator\.ckpt: its weights "
                                        "are named otherwise than ComfyUI's, connect a model from Load Checkpoint"):
        apply_face_tokens(wrapped, adapter, torch.zeros(2, 16, 768))
    assert not wrapped.patches


REFUSED = {
    "SD2": (SD2, "16 cross-attentions of widths 320, 640, 1280 that read text of width 1024"),
    "SDXL": (SDXL, "70 cross-attentions of widths 640, 1280 that read text of width 2048"),
    "no attention in the middle": (
        SD15 | {"transformer_depth_middle": -1},
        "15 cross-attentions of widths 320, 640, 1280 that read text of width 768"),
    "no middle": (
        SD15 | {"transformer_depth_middle": -2},
        "15 cross-attentions of widths 320, 640, 1280 that read text of width 768"),
    "a block with two transformers": (
        SD15 | {"transformer_depth": [1, 2, 1, 1, 1, 1, 0, 0]},
        "17 cross-attentions of widths 320, 640, 1280 that read text of width 768"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models(adapter, name):
    config, has = REFUSED[name]
    with pytest.raises(UserError, match=r"animator\.ckpt is for 16 cross-attentions of widths 320, 640, 1280 that read "
                                        f"text of width 768, but the model has {has}: connect an SD1"):
        apply_face_tokens(model(config), adapter, torch.zeros(2, 16, 768))
