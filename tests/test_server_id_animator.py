"""ID-Animator end to end: a real ComfyUI server, ComfyUI's own loaders and sampler, and the bundled still picture."""
import copy
import json

import numpy as np
import PIL.Image
import pytest
import safetensors.torch

from casting.ranking import ranked
from casting.workflow import RECORD, filled, read_workflow
from small_world.tiny_models import DIFFUSION_MODEL, ID_ANIMATOR, LORA, id_animator_weights, write_tiny_sd15
from small_world.tiny_workflow import on_tiny_models
from support.comfyui_server import PromptFailed, node_id
from support.environment import PACK

WORKFLOW = PACK / "workflows" / "api" / "face_in_pictures.json"
WIDTH, HEIGHT, STEPS = 104, 60, 2  # of which the template's 512x512 makes 64x64


@pytest.fixture(scope="module", autouse=True)
def models(server):
    write_tiny_sd15(server.base / "models")


@pytest.fixture
def prompt(photo):
    return on_tiny_models(WORKFLOW, photo, WIDTH, HEIGHT, steps=STEPS)


def change(prompt, class_type, **inputs):
    changed = copy.deepcopy(prompt)
    changed[node_id(prompt, class_type)]["inputs"] |= inputs
    return changed


def pictures(server, prompt):
    result = server.run(prompt)
    saved = result.outputs[node_id(prompt, "SaveImage")]["images"]
    return np.stack([np.asarray(PIL.Image.open(server.path_of(item))) for item in saved])


def test_pictures_of_a_face(server, prompt):
    """Four pictures; without the identity others; with both strengths 0 those of the base model, bit for bit."""
    found = pictures(server, prompt)
    assert found.shape == (4, 64, 64, 3) and np.ptp(found) > 50
    plain = pictures(server, change(prompt, "KSampler", model=[node_id(prompt, "CheckpointLoaderSimple"), 0]))
    assert not np.array_equal(found, plain)
    nothing = change(prompt, "ApplyIDAnimator", strength=0.0, lora_strength=0.0)
    assert np.array_equal(pictures(server, nothing), plain)
    assert not np.array_equal(pictures(server, change(prompt, "ApplyIDAnimator", strength=0.0)), plain)


def test_identity_report_measures_the_pictures(server, prompt):
    """The template's own; of whole pictures, since random weights draw no face."""
    prompt = change(prompt, "IdentityReport", region="whole frame")
    prompt["figures"] = {"class_type": "PreviewAny", "inputs": {"source": [node_id(prompt, "IdentityReport"), 3]}}
    figures = json.loads(server.run(prompt).outputs["figures"]["text"][0])
    assert figures["frames"] and all(len(series) == 4 for series in figures["frames"].values())


def test_a_batch_and_best_of_n_take_the_pictures(server, prompt, photo, tmp_path):
    """What scripts/batch.py queues for each seed and ranks; Best of N measures the same pictures one by one."""
    measured = {"embedder": "clip vision", "region": "whole frame", "min_score": 0.5}
    report, decoded = node_id(prompt, "IdentityReport"), [node_id(prompt, "VAEDecode"), 0]
    prompt[report]["inputs"] |= measured
    prompt["best"] = {"class_type": "BestOfN", "inputs": {**prompt[report]["inputs"], "frames_per_video": 1,
                                                          "most_copied": 1.0}}
    prompt["figures"] = {"class_type": "PreviewAny", "inputs": {"source": ["best", 4]}}
    for name, source in (("all", decoded), ("picked", ["best", 0])):
        prompt[name] = {"class_type": "SaveImage", "inputs": {"images": source, "filename_prefix": name}}
    file, records = tmp_path / "workflow.json", []
    file.write_text(json.dumps(prompt))
    for seed in range(2):
        outputs = server.run(filled(read_workflow(file), [photo], {}, "a woman smiles", seed)).outputs
        found = json.loads(outputs[RECORD]["text"][0])
        records.append({"id": str(seed), "person": "anna", "prompt": "a woman smiles", "seed": seed, "files": [],
                        "report": found})
        videos = json.loads(outputs["figures"]["text"][0])["videos"]
        likeness = [each["likeness"] for each in videos]
        assert len(videos) == 4 and likeness == sorted(likeness, reverse=True) and likeness[0] > likeness[-1]
        assert np.mean(likeness) == pytest.approx(found["summary"]["similarity"]["mean"], abs=1e-3)
        (picked,), pictures = ([np.asarray(PIL.Image.open(server.path_of(item))) for item in outputs[name]["images"]]
                               for name in ("picked", "all"))
        assert np.array_equal(picked, pictures[videos[0]["index"]])
    ((first, second),) = ranked(records)["anna"].values()
    assert first["likeness"] > second["likeness"] and {first["seed"], second["seed"]} == {0, 1}


def test_a_person_that_was_saved(server, prompt):
    """Saved with the CLIP vision model by one prompt and loaded by another, without it: the pictures of the photo."""
    load, vision, face, apply = (node_id(prompt, name) for name in (
        "LoadImage", "CLIPVisionLoader", "FacePreprocess", "ApplyIDAnimator"))
    expected = pictures(server, prompt)
    server.run({load: prompt[load], vision: prompt[vision], "save": {"class_type": "SavePerson", "inputs": {
        "photos": [load, 0], "name": "in_pictures", "clip_vision": [vision, 0], "preset": "Stand-In inference",
        "which_face": "largest", "face_index": 0, "replace": False, "download_missing": False, "detector": "auto",
        "min_score": 0.5}}})
    kept = copy.deepcopy(prompt)
    kept["person"] = {"class_type": "LoadPerson", "inputs": {"person": "in_pictures.safetensors"}}
    for name in ("clip_vision", "reference_image"):
        del kept[apply]["inputs"][name]
    kept[apply]["inputs"]["person"] = ["person", 0]
    del kept[face]
    assert np.array_equal(pictures(server, kept), expected)


def test_an_adapter_that_is_written_anew_is_read_anew(server, prompt):
    before = pictures(server, prompt)
    file = server.base / "models" / "id_animator" / ID_ANIMATOR
    safetensors.torch.save_file({key: value.flip(0) for key, value in id_animator_weights().items()}, file)
    try:
        assert not np.array_equal(pictures(server, prompt), before)
    finally:
        write_tiny_sd15(server.base / "models")


ERRORS = {
    "an ordinary LoRA": (
        lambda prompt: change(prompt, "LoadIDAnimator", adapter=LORA),
        "LoadIDAnimator: .*must be an ID-Animator adapter, .* but it is an ordinary LoRA"),
    "a Wan": (
        lambda prompt: {**change(prompt, "ApplyIDAnimator", model=["wan", 0]), "wan": {
            "class_type": "UNETLoader", "inputs": {"unet_name": DIFFUSION_MODEL, "weight_dtype": "default"}}},
        "ApplyIDAnimator: .*the model must be an SD1.5 model, but is WanModel"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_reach_the_user(server, prompt, name):
    broken, words = ERRORS[name]
    with pytest.raises(PromptFailed, match=words):
        server.run(broken(prompt))
