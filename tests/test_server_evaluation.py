"""Identity Report and Identity Attention Map in a real server, behind a bundled workflow."""
import json

import numpy as np
import PIL.Image
import pytest

from small_world.tiny_models import CLIP_VISION
from small_world.tiny_workflow import on_tiny_models
from support.comfyui_server import PromptFailed, node_id
from support.environment import PACK

WIDTH, HEIGHT, LENGTH, STEPS = 96, 64, 9, 2


@pytest.fixture(scope="module")
def prompt(photo):
    prompt = on_tiny_models(PACK / "workflows" / "api" / "two_people.json", photo, WIDTH, HEIGHT, LENGTH, STEPS)
    sampler, decoded, photo = (node_id(prompt, name) for name in ("StandInSampler", "VAEDecode", "LoadImage"))
    prompt[sampler]["inputs"]["attention_map"] = True
    prompt["map"] = {"class_type": "IdentityAttentionMap", "inputs": {
        "images": [decoded, 0], "attention_map": [sampler, 2], "person": 0, "first_block": 0, "last_block": -1,
        "opacity": 1.0, "trim_latent": 0}}
    prompt["heat"] = {"class_type": "SaveImage", "inputs": {"images": ["map", 0], "filename_prefix": "heat"}}
    prompt["vision"] = {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": CLIP_VISION}}
    for name, images, region in (("of_video", [decoded, 0], "whole frame"), ("of_photo", [photo, 0], "face")):
        prompt[name] = {"class_type": "IdentityReport", "inputs": {
            "images": images, "reference_image": [photo, 0], "clip_vision": ["vision", 0], "embedder": "auto",
            "region": region, "min_score": 0.5}}
        prompt[f"{name}_json"] = {"class_type": "PreviewAny", "inputs": {"source": [name, 3]}}
    return prompt


@pytest.fixture(scope="module")
def result(server, prompt):
    return server.run(prompt)


def test_the_report_of_a_video(server, result):
    shown = result.outputs["of_video"]
    assert len(shown["images"]) == 2 and "9 frames, compared by CLIP vision on the whole frame" in shown["text"][0]
    sizes = [PIL.Image.open(server.path_of(item)).size for item in shown["images"]]
    assert sizes[0] == (960, 360)
    record = json.loads(result.outputs["of_video_json"]["text"][0])
    assert len(record["frames"]["similarity"]) == LENGTH and record["summary"]["similarity"]["coverage"] == 1
    assert -1 <= record["summary"]["similarity"]["mean"] < 0.999


def test_the_report_of_the_photo_itself(result):
    """It is alike, and it is copied."""
    record = json.loads(result.outputs["of_photo_json"]["text"][0])
    assert record["summary"]["similarity"]["mean"] == pytest.approx(1, abs=1e-5)
    assert record["summary"]["copied_pixels"]["mean"] == pytest.approx(1, abs=1e-5)


def test_the_map_lies_where_the_person_is(server, result):
    """The first person is on the left half."""
    frames = np.stack([np.asarray(PIL.Image.open(server.path_of(item)).convert("L"), float)
                       for item in result.outputs["heat"]["images"]])
    assert frames.shape == (LENGTH, HEIGHT, WIDTH)
    assert frames[..., :WIDTH // 2 - 16].mean() > 20 * max(frames[..., WIDTH // 2 + 16:].mean(), 0.5)
    assert "of the attention of the video lies on the photo" in result.outputs["map"]["text"][0]


def test_without_a_recording(server, prompt):
    sampler = node_id(prompt, "StandInSampler")
    without = {**prompt, sampler: {**prompt[sampler], "inputs": {**prompt[sampler]["inputs"], "attention_map": False}}}
    with pytest.raises(PromptFailed, match="switch attention_map on in Stand-In Sampler"):
        server.run(without)
