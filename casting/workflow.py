"""A workflow as ComfyUI exports it for its queue (API format), and what a batch changes in it."""
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TypeGuard

from standin_core.errors import UserError

REPORT = "casting_report"  # ids of the nodes that are added
RECORD = "casting_record"
SEEDS = ("seed", "noise_seed")
SAVES = ("SaveVideo", "SaveImage")
IDENTITIES = ("ApplyIdentityBranch", "ApplyConcatID", "ApplyIDAnimator")
PHOTOS = 1  # the number of Load Person's output that takes the place of Load Image's first
CROPS = {0: 2, 1: 3, 5: 4}  # numbers of Face Preprocess's outputs -> of Load Person's


def read_workflow(file: Path) -> dict:
    """Node id -> node.

    Raises UserError for anything but a workflow in API format with a photo, a prompt, a seed and something to save.
    """
    try:
        graph = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a workflow ({error}): take one of workflows/api, or export yours "
                        "with File, Export (API).") from error
    if not isinstance(graph, dict) or not all(isinstance(node, dict) and "class_type" in node
                                              and isinstance(node.get("inputs"), dict) for node in graph.values()):
        raise UserError(f"{file} is not in ComfyUI's API format: export it with File, Export (API).")
    missing = _missing(graph)
    if missing:
        raise UserError(f"{file} has no {' and no '.join(missing)}: a batch needs them to know what to change.")
    links = {(key, name): value for key, node in graph.items() for name, value in node["inputs"].items()
             if isinstance(value, list)}
    links |= {(key, name): graph[key]["inputs"].get(name) for key in of_class(graph, "IdentityReport")
              for name in ("images", "reference_image")}
    unlinked = [f"{name} of node {key}" for (key, name), value in links.items() if not _is_link(value, graph)]
    if unlinked:
        raise UserError(f"{file} has inputs that are linked to no node (the first is {unlinked[0]!a:.100}): export it "
                        "again with File, Export (API).")
    idle = _missing(_needed(graph, *of_class(graph, *SAVES)))
    if idle:
        raise UserError(f"{file} has a {' and a '.join(idle)} that is no part of what it saves: link what is saved to "
                        "it, and export the workflow again.")
    if not all(isinstance(graph[key]["inputs"].get("file"), str) for key in of_class(graph, "LoadVideo")):
        raise UserError(f"{file} has a Load Video without the name of a file: choose the video in that node, and "
                        "export it again with File, Export (API).")
    if not of_class(graph, "IdentityReport") and len(of_class(graph, "LoadImage")) > 1:
        raise UserError(f"{file} loads several pictures and has no Identity Report, so nobody knows whose likeness "
                        "counts: add one to the workflow and export it again.")
    return graph


def of_class(graph: dict, *classes: str) -> list[str]:
    """Ids of the nodes of these classes, in the order of their numbers."""
    return sorted((key for key, node in graph.items() if node["class_type"] in classes),
                  key=lambda key: [int(part) if part.isdigit() else 0 for part in key.split(":")])


def of_kept_person(graph: dict, file: str) -> dict:
    """The workflow with Load Person in place of its one Load Image and of what crops the face in it.

    file: that Load Person loads.
    """
    graph = copy.deepcopy(graph)
    (loader,) = of_class(graph, "LoadImage")
    moved = {(loader, 0): PHOTOS}
    for crop in of_class(graph, "FacePreprocess"):
        moved |= {(crop, before): after for before, after in CROPS.items()}
    for node in graph.values():
        node["inputs"] = {name: [loader, moved[tuple(value)]] if isinstance(value, list) and tuple(value) in moved
                          else value for name, value in node["inputs"].items()}
    for key in of_class(graph, *IDENTITIES):
        if graph[key]["inputs"].pop("reference_image", None):
            graph[key]["inputs"]["person"] = [loader, 0]
    graph[loader] = {"class_type": "LoadPerson", "inputs": {"person": file}}
    return _needed(graph, *of_class(graph, *SAVES, "IdentityReport"))


def filled(graph: dict, photos: list[str], videos: dict[str, str], words: str, seed: int) -> dict:
    """The workflow with these photos, videos, words and seed, and with the report's figures as an output of RECORD.

    photos: names of pictures; as many as the workflow loads are put there in order. Where it has no Identity Report
        on what it saves, one is added, to which the rest are other photos of the same person. None for a kept person.
    videos: for each video that the workflow loads, the name that takes its place.
    """
    graph = copy.deepcopy(graph)
    loaders = of_class(graph, "LoadImage")
    for key, photo in zip(loaders, photos):
        graph[key]["inputs"]["image"] = photo
    for key in of_class(graph, "LoadVideo"):
        graph[key]["inputs"]["file"] = videos[graph[key]["inputs"]["file"]]
    graph[_positive(graph)]["inputs"]["text"] = words
    for key, name in _seeded(graph):
        graph[key]["inputs"][name] = seed
    reports = [key for key in of_class(graph, "IdentityReport") if graph[key]["inputs"]["images"] == _saved(graph)]
    if not reports:
        shown = [[key, 0] for key in loaders] or [[key, PHOTOS] for key in of_class(graph, "LoadPerson")]
        _add_report(graph, shown[0], photos[len(loaders):])
        reports = [REPORT]
    graph[RECORD] = {"class_type": "PreviewAny", "inputs": {"source": [reports[0], 3]}}
    return graph


def unmeasured(graph: dict) -> dict:
    """The part of a filled workflow that makes what is saved, without its report and what is drawn by that."""
    report = _report(graph)
    return _needed(graph, *(key for key in of_class(graph, *SAVES) if report not in _needed(graph, key)))


def photos_measured(graph: dict) -> dict:
    """The part of a filled workflow that reports on the photos, as if they were the video: it fails where every report
    on them would, and renders nothing.
    """
    report = _report(graph)
    inputs = graph[report]["inputs"]
    inputs = {**inputs, "images": inputs["reference_image"]}
    return _needed({**graph, report: {**graph[report], "inputs": inputs}}, RECORD)


def pictures_needed(graph: dict) -> int:
    return len(of_class(graph, "LoadImage"))


def videos_named(graph: dict) -> list[str]:
    """The videos that the workflow loads, by their names in ComfyUI's input folder."""
    return [graph[key]["inputs"]["file"] for key in of_class(graph, "LoadVideo")]


def _report(graph: dict) -> str:
    """The Identity Report of a filled workflow whose figures are kept."""
    return graph[RECORD]["inputs"]["source"][0]


def _missing(graph: dict) -> list[str]:
    """What a batch changes and the workflow does not have."""
    found = {"Load Image": of_class(graph, "LoadImage"), "sampler with a positive prompt": _positive(graph),
             "seed": _seeded(graph), "Save Video or Save Image of frames": _saved(graph)}
    return [words for words, nodes in found.items() if not nodes]


def _needed(graph: dict, *keys: str) -> dict:
    """The part of a workflow that these nodes need, with them."""
    found, waiting = set(), list(keys)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += [value[0] for value in graph[key]["inputs"].values() if isinstance(value, list)]
    return {key: node for key, node in graph.items() if key in found}


def _is_link(value: object, graph: dict) -> TypeGuard[list]:
    return (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in graph
            and isinstance(value[1], int))


def _saved(graph: dict) -> list | None:
    """The link to the frames that are saved."""
    link: object = [next(iter(of_class(graph, *SAVES)), None), 0]
    seen = set()
    while _is_link(link, graph) and link[0] not in seen:
        seen.add(link[0])
        inputs = graph[link[0]]["inputs"]
        if isinstance(inputs.get("images"), list):
            return inputs["images"]
        link = inputs.get("video")  # which is made of frames
    return None


def _add_report(graph: dict, picture: list, others: list[str]) -> None:
    """An Identity Report on the frames that are saved.

    picture: the link to what the model is given.
    others: names of further photos of the same person.
    """
    pictures = [picture]
    for index, other in enumerate(others):
        key = f"casting_photo_{index}"
        graph[key] = {"class_type": "LoadImage", "inputs": {"image": other}}
        pictures.append([key, 0])
    if others:
        graph["casting_photos"] = {"class_type": "BatchImagesNode", "inputs": {
            f"images.image{index}": picture for index, picture in enumerate(pictures)}}
        pictures = [["casting_photos", 0]]
    graph[REPORT] = {"class_type": "IdentityReport", "inputs": {
        "images": _saved(graph), "reference_image": pictures[0], "embedder": "auto", "region": "face",
        "min_score": 0.5}}


def _positive(graph: dict) -> str | None:
    """The node whose words the sampler's positive prompt is."""
    for node in graph.values():
        link, seen = node["inputs"].get("positive"), set()
        while _is_link(link, graph) and link[0] not in seen:
            seen.add(link[0])
            inputs = graph[link[0]]["inputs"]
            if isinstance(inputs.get("text"), str):
                return link[0]
            link = inputs.get("positive", inputs.get("conditioning"))
    return None


def _seeded(graph: dict) -> list[tuple[str, str]]:
    """(node id, name) of each input that is a seed."""
    return [(key, name) for key, node in graph.items() for name in SEEDS
            if isinstance(node["inputs"].get(name), int)]
