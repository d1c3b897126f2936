"""A batch in the small: people with photos, and a ComfyUI folder with tiny models."""
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import skimage.data

from casting.batch import Batch
from casting.jobs import Job, model_hashes, models_named, plan
from casting.people import read_people
from casting.records import Records
from casting.server import ServerSettings
from casting.workflow import read_workflow
from small_world.tiny_models import CLIP_VISION, write_tiny_models
from small_world.tiny_workflow import on_tiny_models
from support import pack
from support.comfyui_server import link_node_pack, node_id
from support.environment import PACK

WORKFLOW = PACK / "workflows" / "api" / "identity_text_to_video.json"
SIDE, LENGTH, STEPS = 64, 5, 2
# a local cluster's settings: no worker ends for want of memory, nothing is sent, none gives way to other processes
RAY_SETTINGS = dict.fromkeys(("RAY_memory_monitor_refresh_ms", "RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"), "0")


def write_people(folder: Path, *bad: str) -> None:
    """Anna with two photos, Ben with one, and people whose photo is no picture."""
    (folder / "anna").mkdir(parents=True)
    face = skimage.data.astronaut()
    for path, pixels in ((folder / "anna" / "1.png", face), (folder / "anna" / "2.png", face[:, ::-1]),
                         (folder / "ben.png", np.roll(face, 1, axis=2))):
        PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    for name in bad:
        (folder / f"{name}.png").write_text("no picture")


def write_bundled_workflow(file: Path) -> None:
    """The first bundled workflow, as it is but for the tiny models and the size."""
    file.write_text(json.dumps(on_tiny_models(WORKFLOW, "photo.png", SIDE, SIDE, LENGTH, STEPS)))


def write_workflow(file: Path, **sampler) -> None:
    """The first bundled workflow on tiny models, with a report by CLIP vision, since no face network is here, and with
    the frames as pictures too: the same frames need not make the same video (PyAV's H.264, measured).
    """
    graph = on_tiny_models(WORKFLOW, "photo.png", SIDE, SIDE, LENGTH, STEPS)
    graph[node_id(graph, "StandInSampler")]["inputs"] |= sampler
    graph[node_id(graph, "FacePreprocess")]["inputs"] |= {"detector": "none", "size": SIDE}
    graph["vision"] = {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": CLIP_VISION}}
    graph["report"] = {"class_type": "IdentityReport", "inputs": {
        "images": [node_id(graph, "VAEDecode"), 0], "reference_image": [node_id(graph, "LoadImage"), 0],
        "clip_vision": ["vision", 0], "embedder": "clip vision", "region": "whole frame", "min_score": 0.5}}
    graph["frames"] = {"class_type": "SaveImage", "inputs": {
        "images": [node_id(graph, "VAEDecode"), 0], "filename_prefix": "frames"}}
    file.write_text(json.dumps(graph))


def write_base(base: Path) -> None:
    """What a ComfyUI needs of models and packs."""
    write_tiny_models(base / "models")
    link_node_pack(base, "ComfyUI-StandIn", PACK)
    link_node_pack(base, "tiny_encoders", PACK / "small_world" / "tiny_encoders")


def comfyui_arguments(base: Path) -> tuple[str, ...]:
    return "--cpu", "--base-directory", str(base), "--disable-api-nodes"


def settings(base: Path, seconds: float = 300) -> ServerSettings:
    return ServerSettings(pack.COMFYUI, comfyui_arguments(base), seconds)


class Cast:
    """A folder with people, a workflow and results, and what was said."""

    def __init__(self, folder: Path, base: Path, *bad: str, seeds: int = 2, **sampler):
        write_people(folder / "people", *bad)
        write_workflow(folder / "workflow.json", **sampler)
        self.folder, self.base, self.seeds = folder, base, seeds
        self.records = Records(folder / "out")
        self.records.folder.mkdir()
        self.said: list[str] = []

    def jobs(self, words=("a woman smiles",)):
        graph = read_workflow(self.folder / "workflow.json")
        hashes = model_hashes(models_named(graph), [*(self.base / "models").glob("*/")],
                              self.records.folder / "models.jsonl")
        return plan(graph, read_people(self.folder / "people"), list(words), list(range(self.seeds)),
                    self.base / "input", hashes)

    def batch(self, say=None, **more) -> Batch:
        return Batch(self.jobs(**more), self.records, say or self.said.append)

    def found(self) -> dict[str, dict]:
        """Id -> record."""
        return {record["id"]: record for record in self.records.of(self.jobs())}

    def frames(self) -> dict[str, np.ndarray]:
        """Id -> [F, H, W, 3] uint8, of what was rendered."""
        return {key: np.stack([np.asarray(PIL.Image.open(self.records.folder / name)) for name in record["files"]
                               if name.endswith(".png")])
                for key, record in self.found().items() if "error" not in record}


def endless_job(folder: Path, base: Path) -> Job:
    """A render of many minutes on any machine."""
    cast = Cast(folder, base, steps=1000)
    file = folder / "workflow.json"
    graph = json.loads(file.read_text())
    graph[node_id(graph, "EmptyHunyuanLatentVideo")]["inputs"] |= {"width": 256, "height": 256, "length": 81}
    file.write_text(json.dumps(graph))
    return cast.jobs()[0]


class WaitingBatch(Batch):
    """Jobs that wait for all workers: else one may do them all.

    workers: how many they wait for.
    ready: the names of all workers that ever were.
    """

    def __init__(self, cast: Cast, workers: int = 2):
        def say(words):
            cast.said.append(words)
            sys.stderr.write(f"{time.strftime('%X')} {words}\n")

        super().__init__(cast.jobs(), cast.records, say)
        self.workers = workers
        self.ready: list[str] = []

    def take(self):
        return super().take() if len(self.ready) >= self.workers else None

    def say(self, words):
        if found := re.fullmatch(r"a ComfyUI is ready \((.*)\)", words):
            self.ready.append(found[1])
        super().say(words)


def servers(base: Path) -> list[psutil.Process]:
    """The ComfyUIs that run with this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(base) in words and str(pack.COMFYUI / "main.py") in words:
            found.append(process)
    return found
