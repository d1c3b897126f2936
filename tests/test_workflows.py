"""The bundled workflows: what they name, and every one of them through the queue of a real server on tiny weights."""
import json
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from small_world.tiny_workflow import on_tiny_models, with_record
from support import moving_photo, pack
from support.comfyui_server import node_id
from support.environment import PACK
from support.workflow_graphs import BLUEPRINTS, CLIP_H, PACKS, SOURCES, WORKFLOWS

FILES = sorted((PACK / "workflows").glob("*.json"))
WIDTH, HEIGHT, LENGTH, STEPS = 96, 64, 9, 2
VIDEO_WIDTH, VIDEO_HEIGHT = 160, 128  # large enough for the face in it to be found
KEPT = LENGTH // 2  # by VACE, of a video that goes on


def load(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def all_nodes(graph):
    """With those inside subgraphs."""
    return [*graph["nodes"], *(node for each in graph.get("definitions", {}).get("subgraphs", ())
                               for node in each["nodes"])]


def test_every_workflow_is_there_in_all_forms():
    names = {workflow.name for workflow in WORKFLOWS}
    assert len(names) == len(WORKFLOWS) == 19
    assert names == {path.stem for path in FILES} == {path.stem for path in (PACK / "workflows" / "api").glob("*.json")}
    assert names == {path.stem for path in (PACK / "workflows").glob("*.jpg")}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_the_files_are_of_their_graph(workflow):
    """Classes, links and the values that the graph sets; the rest are the defaults of the page."""
    api = load(PACK / "workflows" / "api" / f"{workflow.name}.json")
    api = {own_id(key): node | {"inputs": {name: [own_id(value[0]), value[1]] if isinstance(value, list) else value
                                           for name, value in node["inputs"].items()}} for key, node in api.items()}
    for number, node in workflow.prompt.items():
        assert api[number]["class_type"] == node["class_type"]
        assert {name: api[number]["inputs"].get(name) for name in node["inputs"]} == node["inputs"]
    assert api.keys() == workflow.prompt.keys()


def own_id(key):
    """Without the id of the subgraph that the node is in."""
    return key.rpartition(":")[2]


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_a_blueprint_has_the_category_of_the_nodes(blueprint):
    """By which the page sorts blueprints, as it sorts nodes."""
    (subgraph,) = load(PACK / "subgraphs" / f"{blueprint.name}.json")["definitions"]["subgraphs"]
    assert subgraph["category"] == pack.node_classes()["LoadStandIn"].GET_SCHEMA().category


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_model_names_its_source(path):
    """So that ComfyUI can offer what is missing."""
    loaders = [node for node in all_nodes(load(path))
               if node["type"] in ("UNETLoader", "CLIPLoader", "VAELoader", "LoraLoaderModelOnly", "LoadStandIn",
                                   "LoadConcatID", "CheckpointLoaderSimple", "CLIPVisionLoader",
                                   "LoadIDAnimator", "ADE_LoadAnimateDiffModel")]
    # a checkpoint has a text encoder and a VAE in it
    assert len(loaders) >= (3 if path.stem == "face_in_pictures" else 4)
    for node in loaders:
        (model,) = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0]
        assert model == {"name": model["name"], "url": SOURCES[model["name"]].url,
                         "directory": SOURCES[model["name"]].folder}
        assert model["url"].startswith("https://huggingface.co/")
        if model["name"] != CLIP_H:  # the note says what it is called at its source
            assert model["url"].endswith(model["name"])


@pytest.mark.parametrize("name", SOURCES)
def test_the_readme_lists_the_file(name):
    """With its link, its folder and its size."""
    source = SOURCES[name]
    (row,) = [row for row in (PACK / "README.md").read_text(encoding="utf-8").splitlines() if f"]({source.url})" in row]
    _, folder, size, licence = row.strip("| ").split(" | ")
    assert f"`{source.folder}`" in folder and licence
    assert source.gigabytes is None or f"{source.gigabytes:g}" in size.split()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_comfyui_has_the_nodes(server, workflow):
    """Whichever version runs here: from the one on that the templates name."""
    version = server.get("/system_stats")["system"]["comfyui_version"]
    lacking = {node.kind for node in workflow.nodes} - server.get("/object_info").keys()
    assert bool(lacking) == (pack.in_order(version) < pack.in_order(workflow.since or version)), lacking


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_node_is_deprecated(server, path):
    known = server.get("/object_info")
    assert [node["class_type"] for node in load(path.parent / "api" / path.name).values()
            if known[node["class_type"]].get("deprecated")] == []


def test_nodes_of_other_packs_say_whose_they_are():
    """So that the page offers to install what is missing."""
    nodes = [node for path in FILES for node in load(path)["nodes"]]
    named = [node for node in nodes if node["properties"].get("cnr_id") in PACKS.values()]
    assert len(named) == 3
    assert named == [node for node in nodes if node["type"].startswith(tuple(PACKS))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_our_nodes_take_these_inputs(path):
    for node in load(path.parent / "api" / path.name).values():
        if node["class_type"] in pack.node_classes():
            known = {each.id for each in pack.node_classes()[node["class_type"]].GET_SCHEMA().inputs}
            assert set(node["inputs"]) <= known


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_note_and_groups_explain(path):
    graph = load(path)
    (note,) = [node for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    (words,) = note["widgets_values"]
    models = [model for node in all_nodes(graph) for model in node["properties"].get("models", ())]
    assert models and all(f"]({model['url']})" in words and model["directory"] in words for model in models)
    assert len(graph["groups"]) >= 5


def test_a_training_keeps_its_seed():
    """With another one after every run, it would not go on where it stopped."""
    graph = load(PACK / "workflows" / "train_an_adapter.json")
    trainings = [node for node in graph["nodes"] if node["type"] in ("PrepareTrainingData", "TrainStandIn")]
    assert len(trainings) == 2 and all("randomize" not in node["widgets_values"] for node in trainings)


@pytest.fixture(scope="module")
def video(server, tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "face.mp4"
    moving_photo.write_video(path, moving_photo.video(LENGTH, VIDEO_WIDTH, VIDEO_HEIGHT))
    return server.upload(path)


@pytest.mark.parametrize("path", [path for path in FILES if not path.stem.startswith("face_in_")],
                         ids=lambda path: path.stem)
def test_every_workflow_runs(server, photo, video, people, path):
    """The graph as it is, on tiny files: a video comes out, and the identity was read.

    Those on SD1.5 have another sampler: tests/test_server_id_animator.py runs the pictures, and the video needs
    ComfyUI-AnimateDiff-Evolved.
    """
    prompt = with_record(on_tiny_models(path.parent / "api" / path.name, photo, WIDTH, HEIGHT, LENGTH, STEPS, video))
    result = server.run(prompt)
    (item,) = result.outputs[node_id(prompt, "SaveVideo")]["images"]
    with av.open(str(server.path_of(item))) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    of_a_video = path.stem in ("face_swap", "refine_faces", "continue_a_video")
    lengths = {"long_video": 2 * LENGTH - 1, "continue_a_video": 2 * LENGTH - KEPT}
    assert frames.shape[0] == lengths.get(path.stem, LENGTH)
    assert frames.shape[1:] == (*((VIDEO_HEIGHT, VIDEO_WIDTH) if of_a_video else (HEIGHT, WIDTH)), 3)
    samplers = [key for key, node in prompt.items() if node["class_type"] == "StandInSampler"]
    assert all("identity read in" in result.outputs[key]["text"][0] for key in samplers)
    reports = json.loads(result.outputs["record"]["text"][0])
    assert len(reports) == (2 if path.stem == "identity_wan_2_2" else 1)
    assert all(report["identity_calls"] > 0 for report in reports)
    assert len(reports[0]["identities"]) == (2 if path.stem == "two_people" else 1)
    assert reports[0]["identities"][0]["references"] == (3 if path.stem == "several_photos" else 1)
    if path.stem == "low_memory":
        assert reports[0]["cache"] == "offloaded"


@pytest.mark.parametrize("name", ["identity_text_to_video", "choose_a_seed", "concat_id_text_to_video", "long_video",
                                  "identity_vace_control"])
def test_one_picture_first(server, photo, video, name):
    """The switch in *Empty video* or *Length*: a single frame, from the same graph."""
    prompt = on_tiny_models(PACK / "workflows" / "api" / f"{name}.json", photo, WIDTH, HEIGHT, LENGTH, STEPS, video)
    prompt[node_id(prompt, "PrimitiveBoolean")]["inputs"]["value"] = True
    prompt["seen"] = {"class_type": "SaveImage", "inputs": {
        "images": prompt[node_id(prompt, "CreateVideo")]["inputs"]["images"], "filename_prefix": "one"}}
    assert pictures(server, server.run(prompt), "seen").shape == (1, HEIGHT, WIDTH, 3)


def test_all_steps_take_the_seed_of_the_best_try(server, photo):
    """Tries and result have as many steps here, so the result is the best try, frame by frame, and none of the others.
    """
    prompt = on_tiny_models(PACK / "workflows" / "api" / "choose_a_seed.json", photo, WIDTH, HEIGHT, LENGTH, STEPS)
    best = node_id(prompt, "BestOfN")
    for name, images in (("tried", prompt[best]["inputs"]["images"]),
                         ("made", prompt[node_id(prompt, "CreateVideo")]["inputs"]["images"])):
        prompt[name] = {"class_type": "SaveImage", "inputs": {"images": images, "filename_prefix": name}}
    prompt["order"] = {"class_type": "PreviewAny", "inputs": {"source": [best, 4]}}
    result = server.run(prompt)
    tries = pictures(server, result, "tried").reshape(4, LENGTH, HEIGHT, WIDTH, 3)
    first, *_ = json.loads(result.outputs["order"]["text"][0])["videos"]
    assert [np.array_equal(pictures(server, result, "made"), each) for each in tries] == [
        seed == first["seed"] for seed in (1, 2, 3, 4)]


def pictures(server, result, key):
    return np.stack([np.asarray(PIL.Image.open(server.path_of(item))) for item in result.outputs[key]["images"]])


def test_a_continuation(server, photo, video):
    """VACE is told to keep the last frames of the video, and the result is the video and what comes after them."""
    prompt = on_tiny_models(PACK / "workflows" / "api" / "continue_a_video.json", photo, WIDTH, HEIGHT, LENGTH, STEPS,
                            video)
    inputs = prompt[node_id(prompt, "WanVaceToVideo")]["inputs"]
    prompt["masks"] = {"class_type": "MaskToImage", "inputs": {"mask": inputs["control_masks"]}}
    prompt["all"] = {"class_type": "GetVideoComponents", "inputs": {"video": [node_id(prompt, "LoadVideo"), 0]}}
    for name, images in (("source", ["all", 0]), ("control", inputs["control_video"]), ("mask", ["masks", 0]),
                         ("made", [node_id(prompt, "VAEDecode"), 0]),
                         ("whole", [node_id(prompt, "BatchImagesNode"), 0])):
        prompt[f"seen {name}"] = {"class_type": "SaveImage", "inputs": {"images": images, "filename_prefix": name}}
    result = server.run(prompt)
    source, control, mask, made, whole = (pictures(server, result, f"seen {name}") for name in (
        "source", "control", "mask", "made", "whole"))
    assert len(source) == len(made) == LENGTH
    assert np.array_equal(control, source[-KEPT:])
    assert mask.shape == (KEPT, VIDEO_HEIGHT, VIDEO_WIDTH, 3) and not mask.any()
    assert np.array_equal(whole[:LENGTH], source) and len(whole) == 2 * LENGTH - KEPT
    small = np.stack([np.asarray(PIL.Image.fromarray(frame).resize((WIDTH, HEIGHT))) for frame in whole[LENGTH:]])
    errors = [np.abs(small.astype(int) - made[start:start + len(small)]).mean() for start in range(KEPT + 1)]
    assert np.argmin(errors) == KEPT  # what was kept is not shown twice


def test_a_picture_as_the_first_frame(server, photo):
    """As the note says: Load Image and Create Video in place of the video."""
    prompt = on_tiny_models(PACK / "workflows" / "api" / "continue_a_video.json", photo, WIDTH, HEIGHT, LENGTH, STEPS)
    load = node_id(prompt, "LoadVideo")
    prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": photo}}
    prompt[load] = {"class_type": "CreateVideo", "inputs": {"images": ["picture", 0], "fps": 16.0}}
    prompt["seen"] = {"class_type": "SaveImage", "inputs": {
        "images": [node_id(prompt, "BatchImagesNode"), 0], "filename_prefix": "whole"}}
    whole = pictures(server, server.run(prompt), "seen")
    with PIL.Image.open(server.base / "input" / photo) as picture:
        assert np.array_equal(whole[0], np.asarray(picture.convert("RGB")))
    assert len(whole) == LENGTH
