"""Concat-ID end to end: a real ComfyUI server, the bundled workflow, a tiny model of the AdaLN variant."""
import copy
import json

import numpy as np
import PIL.Image
import pytest

from small_world.tiny_models import CONCAT_ID, DIFFUSION_MODEL
from small_world.tiny_workflow import on_tiny_models, with_record
from support.comfyui_server import PromptFailed, node_id
from support.environment import PACK

WORKFLOW = PACK / "workflows" / "api" / "concat_id_text_to_video.json"
WIDTH, HEIGHT, LENGTH, STEPS = 96, 64, 9, 3


@pytest.fixture
def prompt(photo):
    prompt = with_record(on_tiny_models(WORKFLOW, photo, WIDTH, HEIGHT, LENGTH, STEPS))
    prompt["frames"] = {"class_type": "SaveImage", "inputs": {"images": [node_id(prompt, "VAEDecode"), 0],
                                                              "filename_prefix": "frames"}}
    return prompt


def change(prompt, class_type, **inputs):
    changed = copy.deepcopy(prompt)
    changed[node_id(prompt, class_type)]["inputs"] |= inputs
    return changed


def frames(server, result):
    return np.stack([np.asarray(PIL.Image.open(server.path_of(item))) for item in result.outputs["frames"]["images"]])


def test_the_workflow(server, prompt):
    """The reference reaches the video, the report says how, Identity Report measures it; run again, it is the same."""
    result = server.run(prompt)
    (report,) = json.loads(result.outputs["record"]["text"][0])
    (told,) = report["identities"]
    assert (told["file"], told["variant"], told["tokens"]) == (CONCAT_ID, "AdaLN", 24)
    assert (report["identity_calls"], report["steps"], report["video_grid"]) == (STEPS, STEPS, [3, 4, 6])
    (verdict,) = result.outputs[node_id(prompt, "FacePreprocess")]["text"]
    assert "aligned by" in verdict
    assert result.outputs[node_id(prompt, "IdentityReport")]["text"]
    video = frames(server, result)
    assert video.shape == (LENGTH, HEIGHT, WIDTH, 3)
    plain = change(prompt, "StandInSampler", model=[node_id(prompt, "LoadConcatID"), 0])
    assert not np.array_equal(frames(server, server.run(plain)), video)
    assert np.array_equal(frames(server, server.run(change(prompt, "SaveImage", filename_prefix="again"))), video)


def test_a_plain_wan_beside_the_file_is_refused(server, prompt):
    prompt = copy.deepcopy(prompt)
    prompt["plain"] = {"class_type": "UNETLoader", "inputs": {"unet_name": DIFFUSION_MODEL, "weight_dtype": "default"}}
    with pytest.raises(PromptFailed, match="the model does not have the weights of tiny_concat_id"):
        server.run(change(prompt, "ApplyConcatID", model=["plain", 0]))


def test_a_vace_model_is_refused(server, prompt):
    with pytest.raises(PromptFailed, match=r"must be Concat-ID's model, .*, but is a VACE model"):
        server.run(change(prompt, "LoadConcatID", file="tiny_wan_vace.safetensors"))
