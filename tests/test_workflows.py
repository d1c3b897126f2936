"""The bundled workflows: the graph users open and the prompt the demo queues are one and the same."""
import json
from pathlib import Path

import pytest

import pack
from environment import PACK

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
NOTES = ("MarkdownNote", "Note")


def load(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def prompt_of(graph: dict) -> dict:
    """What the graph says, node by node: class, linked inputs, widget values by name."""
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        values, inputs = list(node.get("widgets_values") or []), {}
        for entry in node["inputs"]:
            if "widget" in entry and entry["name"] != "upload":
                value = values.pop(0)
                if entry["name"] == "seed":
                    values.pop(0)  # the frontend's "control after generate"
                inputs[entry["name"]] = value
            if entry.get("link") is not None:
                inputs[entry["name"]] = links[entry["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_graph_and_prompt_agree(path):
    prompt = load(path.parent / "api" / path.name)
    expected = {key: {"class_type": node["class_type"], "inputs": {
        # the player of LoadVideo is a widget to the export and none to the graph
        name: value for name, value in node["inputs"].items() if name != "video-preview"}}
        for key, node in prompt.items()}
    assert prompt_of(load(path)) == expected


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_model_names_its_source(path):
    """So that ComfyUI can offer what is missing."""
    graph = load(path)
    loaders = [node for node in graph["nodes"] if node["type"].endswith("Loader") or node["type"] == "LoadStandIn"]
    assert loaders
    for node in loaders:
        (model,) = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0]
        assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(model["name"])
        assert model["directory"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_our_nodes_take_these_inputs(path):
    for node in load(path.parent / "api" / path.name).values():
        if node["class_type"] in pack.node_classes():
            known = {each.id for each in pack.node_classes()[node["class_type"]].GET_SCHEMA().inputs}
            assert set(node["inputs"]) <= known


def test_every_prompt_has_its_graph():
    assert {path.name for path in (PACK / "workflows" / "api").glob("*.json")} == {path.name for path in WORKFLOWS}
