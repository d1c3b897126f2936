"""End to end: a real ComfyUI server with the pack in custom_nodes, the bundled workflow and a photo, over the web."""
import copy
import hashlib
import json

import av
import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import skimage.data

from small_world.tiny_models import ADAPTER, DIFFUSION_MODEL, adapter_weights
from small_world.tiny_workflow import on_tiny_models, with_record
from support.comfyui_server import PromptFailed, node_id
from support.environment import PACK

WORKFLOW = PACK / "workflows" / "api" / "identity_text_to_video.json"
WIDTH, HEIGHT, LENGTH, STEPS = 96, 64, 9, 3


@pytest.fixture
def prompt(photo):
    """The bundled workflow, with the frames saved as PNG too, so that they can be compared bit for bit."""
    prompt = with_record(on_tiny_models(WORKFLOW, photo, WIDTH, HEIGHT, LENGTH, STEPS))
    decoded = node_id(prompt, "VAEDecode")
    prompt["frames"] = {"class_type": "SaveImage", "inputs": {"images": [decoded, 0], "filename_prefix": "frames"}}
    return prompt


def change(prompt, class_type, **inputs):
    changed = copy.deepcopy(prompt)
    changed[node_id(prompt, class_type)]["inputs"] |= inputs
    return changed


def without_identity(prompt):
    """The same graph with the model straight in the sampler."""
    return change(prompt, "StandInSampler", model=[node_id(prompt, "UNETLoader"), 0])


def frames(server, result):
    paths = [server.path_of(item) for item in result.outputs["frames"]["images"]]
    return np.stack([np.asarray(PIL.Image.open(path)) for path in paths])


@pytest.fixture(scope="module")
def first(server, photo):
    """The workflow as it is, once."""
    prompt = with_record(on_tiny_models(WORKFLOW, photo, WIDTH, HEIGHT, LENGTH, STEPS))
    return prompt, server.run(prompt)


def test_video(server, first):
    prompt, result = first
    (item,) = result.outputs[node_id(prompt, "SaveVideo")]["images"]
    with av.open(str(server.path_of(item))) as container:
        (stream,) = container.streams.video
        assert stream.average_rate == 16
        video = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert item["filename"].endswith(".mp4")
    assert len(video) == LENGTH
    assert {frame.shape for frame in video} == {(HEIGHT, WIDTH, 3)}
    assert np.ptp(np.stack(video)) > 100


def test_progress_previews_and_words(first):
    prompt, result = first
    assert result.progress[0] == (1, 1)  # the one photo of Face Preprocess
    assert result.progress[-1] == (STEPS, STEPS)
    assert result.previews >= 1
    (report,) = result.outputs[node_id(prompt, "StandInSampler")]["text"]
    assert "1024 identity tokens beside 72 video tokens" in report
    (verdict,) = result.outputs[node_id(prompt, "FacePreprocess")]["text"]
    assert "by cascade" in verdict


def test_what_was_shown_comes_back(server, first):
    """As after a reload of the page: no node runs, and the page gets crop, verdict, report and video again."""
    prompt, _ = first
    shown, again = server.run(prompt), server.run(prompt)
    assert again.outputs == shown.outputs and not again.progress
    assert {prompt[key]["class_type"] for key in again.outputs} >= {"FacePreprocess", "StandInSampler", "SaveVideo"}
    assert len(again.outputs[node_id(prompt, "FacePreprocess")]["images"]) == 2


def test_report_record(first):
    _, result = first
    (report,) = json.loads(result.outputs["record"]["text"][0])
    (identity,) = report["identities"]
    assert identity["adapter_file"] == ADAPTER
    assert len(identity["adapter_sha256"]) == 64
    assert (report["builds"], report["identity_calls"], report["steps"]) == (1, STEPS, STEPS)
    # what ComfyUI chooses on a CPU by itself is its sub-quadratic attention
    assert report["attention"] == "concatenate"
    assert "ComfyUI runs an attention other than PyTorch's" in report["refusals"][0]


def test_identity_changes_the_video_and_strength_zero_does_not(server, prompt):
    plain = frames(server, server.run(without_identity(prompt)))
    assert len(plain) == LENGTH
    assert not np.array_equal(frames(server, server.run(prompt)), plain)
    assert np.array_equal(frames(server, server.run(change(prompt, "ApplyIdentityBranch", strength=0.0))), plain)


def test_another_photo_gives_another_video(server, prompt, tmp_path):
    path = tmp_path / "other.png"
    PIL.Image.fromarray(np.ascontiguousarray(skimage.data.astronaut()[:, ::-1, ::-1])).save(path)
    other = server.run(change(prompt, "LoadImage", image=server.upload(path)))
    assert not np.array_equal(frames(server, other), frames(server, server.run(prompt)))


def test_an_adapter_that_is_written_anew_is_read_anew(server, prompt):
    """As Train Stand-In does, in the same server: the same name and size, other weights."""
    file, found = server.base / "models" / "stand_in" / "written_anew.safetensors", []
    for seed in (1, 2):
        safetensors.torch.save_file(adapter_weights(seed=seed), file)
        result = server.run(change(prompt, "LoadStandIn", adapter=file.name))
        (report,) = json.loads(result.outputs["record"]["text"][0])
        assert report["identities"][0]["adapter_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        found.append(frames(server, result))
    assert not np.array_equal(*found)


def test_two_experts(server, prompt):
    """Wan 2.2's graph: a second loader, a second identity, one sampler."""
    prompt = copy.deepcopy(prompt)
    branch = node_id(prompt, "ApplyIdentityBranch")
    prompt["low"] = {"class_type": "UNETLoader", "inputs": {"unet_name": DIFFUSION_MODEL, "weight_dtype": "default"}}
    prompt["low_branch"] = copy.deepcopy(prompt[branch])
    prompt["low_branch"]["inputs"]["model"] = ["low", 0]
    prompt = change(prompt, "StandInSampler", low_noise_model=["low_branch", 0])
    result = server.run(prompt)
    reports = json.loads(result.outputs["record"]["text"][0])
    assert [report["builds"] for report in reports] == [1, 1]
    assert sum(report["steps"] for report in reports) == STEPS


def test_the_users_interrupt(server, prompt):
    """The next run is as if nothing had been."""
    expected = frames(server, server.run(change(prompt, "StandInSampler", seed=1)))
    with pytest.raises(PromptFailed, match="interrupted"):
        server.run(change(prompt, "StandInSampler", seed=2, steps=500), interrupt_at=3)
    again = change(change(prompt, "StandInSampler", seed=1), "SaveImage", filename_prefix="again")
    assert np.array_equal(frames(server, server.run(again)), expected)


ERRORS = {
    "an adapter of another model": (
        lambda prompt: change(prompt, "LoadStandIn", adapter="wide_stand_in.safetensors"),
        "ApplyIdentityBranch: .*wide_stand_in.safetensors is for a Wan of 4 blocks and width 128"),
    "no reference": (
        lambda prompt: {**prompt, node_id(prompt, "ApplyIdentityBranch"): {
            "class_type": "ApplyIdentityBranch",
            "inputs": {key: value for key, value in prompt[node_id(prompt, "ApplyIdentityBranch")]["inputs"].items()
                       if key != "reference_image"}}},
        "ApplyIdentityBranch: .*no reference came"),
    "a detector without its file": (
        lambda prompt: change(prompt, "FacePreprocess", detector="retinaface"),
        "FacePreprocess: .*retinaface cannot run: there is no detection_Resnet50_Final.pth"),
    "the crop scale of an old prompt": (
        lambda prompt: change(prompt, "FacePreprocess", crop_scale=0.0),
        r'"Value 0\.0 smaller than min of 1\.0",\s+"details": "crop_scale"'),
    "zero steps": (lambda prompt: change(prompt, "StandInSampler", steps=0), "smaller than min"),
    "a file that is not there": (
        lambda prompt: change(prompt, "LoadStandIn", adapter="nowhere.safetensors"), "Value not in list"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_reach_the_user(server, prompt, name):
    broken, words = ERRORS[name]
    with pytest.raises(PromptFailed, match=words):
        server.run(broken(prompt))


def test_no_module_stands_before_the_sentence(server, prompt):
    """The page shows the name of the exception first, with its module, which of a pack is a path."""
    with pytest.raises(PromptFailed) as failed:
        server.run(change(prompt, "FacePreprocess", detector="retinaface"))
    assert failed.value.kind == "UserError"


@pytest.mark.parametrize("path", sorted((PACK / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_the_template_is_served(server, path):
    templates = server.get("/workflow_templates")
    (name,) = [key for key, value in templates.items() if path.stem in value]
    graph = server.get(f"/api/workflow_templates/{name}/{path.name}")
    assert graph == json.loads(path.read_text(encoding="utf-8"))
