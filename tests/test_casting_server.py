"""A batch on one real ComfyUI with tiny models, and what may break there."""
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

import casts
import faces
from casting.jobs import models_named
from casting.local import run_here
from casting.server import RenderLost, Worker
from standin_core.errors import UserError
from standin_core.face import SFACE, YUNET
from standin_core.files import read_lines
from standin_core.person import PersonSettings, make_person, save_person
from support import pack
from support.comfyui_server import node_id
from support.environment import PACK


@pytest.fixture(scope="module")
def done(base, tmp_path_factory):
    """A batch with a photo that is no picture, in which the server is killed after the first render."""
    cast = casts.Cast(tmp_path_factory.mktemp("cast"), base, "zoe")

    def say(words):
        cast.said.append(words)
        if words.startswith("3/6"):
            (server,) = casts.servers(base)
            server.kill()

    run_here(cast.batch(say=say), casts.settings(base))
    return cast


def test_all_but_the_bad_photo(done, base):
    """Her jobs fail before the first render. A server that is killed costs one try at most, of the job that it had;
    and nothing of it is left.
    """
    assert [re.match(r"\d/6 (zoe)?", words)[1] for words in done.said if "try" not in words] == ["zoe"] * 2 + [None] * 4
    found = done.found().values()
    assert sum("error" not in record for record in found) == 4 and len(found) == 6
    for record in found:
        if record["person"] == "zoe":
            assert "LoadImage: cannot identify image file" in record["error"] and record["tries"] == 0
        else:
            assert 0 < record["report"]["summary"]["similarity"]["mean"] < 1
            (video,) = [name for name in record["files"] if name.endswith(".mp4")]
            with av.open(str(done.records.folder / video)) as container:
                assert sum(1 for _ in container.decode(video=0)) == casts.LENGTH
    assert sum(record["tries"] for record in found if "error" not in record) <= 5
    assert {frames.shape for frames in done.frames().values()} == {(casts.LENGTH, casts.SIDE, casts.SIDE, 3)}
    ranking = json.loads((done.records.folder / "ranking.json").read_text())
    assert [list(map(len, embedders.values())) for embedders in ranking["people"].values()] == [[2], [2]]
    assert len(ranking["failed"]) == 2
    assert not casts.servers(base)


def test_seeds_and_people_make_other_videos(done):
    videos = list(done.frames().values())
    assert all(not np.array_equal(a, b) for i, a in enumerate(videos) for b in videos[:i])


def command(cast, *arguments, preexec_fn=None, **environment):
    (cast.folder / "prompts.txt").write_text("a woman smiles\n")
    return subprocess.run(
        [sys.executable, str(PACK / "scripts" / "batch.py"), str(cast.folder / "people"),
         str(cast.folder / "prompts.txt"), "--seeds", "2", "--workflow", str(cast.folder / "workflow.json"), "--out",
         str(cast.records.folder), *arguments, *casts.comfyui_arguments(cast.base)],
        env={**os.environ, "COMFYUI_PATH": str(pack.COMFYUI), **environment}, preexec_fn=preexec_fn,
        capture_output=True, text=True)


def test_the_command_says_what_is_missing(done):
    """It knows the renders of another process again, and starts nothing."""
    answer = command(done, "--dry-run")
    assert answer.returncode == 0 and "4 done, 2 to do; " in answer.stdout, answer.stdout + answer.stderr
    assert answer.stdout.splitlines()[-3:] == ["zoe: 2 renders to do", "  zoe, seed 0: a woman smiles",
                                               "  zoe, seed 1: a woman smiles"]
    with done.records.locked():
        answer = command(done, "--dry-run")
    assert answer.returncode == 1 and "stopped: another batch works in" in answer.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of a process there")
def test_a_full_disk_is_said(base, tmp_path):
    """For the process no file may grow."""
    import resource

    cast = casts.Cast(tmp_path / "cast", base)
    answer = command(cast, "--dry-run", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert answer.returncode == 1 and not answer.stderr, answer.stderr
    assert answer.stdout.endswith(
        "stopped: [Errno 27] File too large. Put that right, and give the same command again: it goes on.\n")


def test_models_of_extra_folders_are_part_of_the_id(base, tmp_path):
    """Those that are nowhere are said."""
    cast = casts.Cast(tmp_path / "cast", base)
    graph = json.loads((cast.folder / "workflow.json").read_text())
    graph[node_id(graph, "LoadStandIn")]["inputs"]["adapter"] = "mine.safetensors"
    graph[node_id(graph, "VAELoader")]["inputs"]["vae_name"] = "nowhere.safetensors"
    (cast.folder / "workflow.json").write_text(json.dumps(graph))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.safetensors").write_bytes(b"weights")
    (tmp_path / "paths.yaml").write_text("mine:\n  stand_in: elsewhere\n")
    answer = command(cast, "--dry-run", "--extra-model-paths-config", str(tmp_path / "paths.yaml"))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "not found here, so not in the id: nowhere.safetensors\n" in answer.stdout
    known = [Path(line["path"]) for line in read_lines(cast.records.folder / "models.jsonl")]
    assert tmp_path / "elsewhere" / "mine.safetensors" in known and len(known) == len(models_named(graph)) - 1


def test_ray_is_missed_before_any_work(base, tmp_path):
    """A folder in which it cannot be imported stands before the installed packages."""
    cast = casts.Cast(tmp_path / "cast", base)
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")")
    answer = command(cast, "--ray", "auto", PYTHONPATH=str(tmp_path))
    assert answer.returncode == 1 and not list(cast.records.folder.iterdir())
    assert answer.stdout == ("stopped: --ray needs Ray (No module named 'ray'): pip install 'ray>=2.60', or leave out "
                             "--ray.\n")
    assert not answer.stderr


@pytest.fixture
def face_networks(base):
    """Made ones, which find the face around a marker."""
    faces.put(base / "models", YUNET, SFACE)
    yield
    shutil.rmtree(base / "models" / "facexlib")


def test_the_bundled_workflow_is_measured(base, face_networks, tmp_path):
    """By the report that the batch adds; who has no face in the photo is said before the first render."""
    cast = casts.Cast(tmp_path / "cast", base, seeds=1)
    casts.write_bundled_workflow(cast.folder / "workflow.json")
    for name in ("1.png", "2.png"):
        PIL.Image.fromarray(faces.marked(512, 512, ("blue", 200, 200, 32))).save(cast.folder / "people/anna" / name)
    run_here(cast.batch(), casts.settings(base))
    anna, ben = cast.found().values()
    assert anna["report"]["embedder"].startswith("SFace") and anna["report"]["photos"] == 1  # the same photo twice
    assert len(anna["files"]) == 1 and anna["report"]["summary"]["similarity"]["coverage"] == 0  # a tiny model's noise
    assert "no face was found in photo 1 of 1" in ben["error"] and ben["tries"] == 0
    assert [words.split(",")[0] for words in cast.said] == ["1/2 ben", "2/2 anna"]


def test_a_kept_person_is_rendered_as_the_photo(base, tmp_path):
    """Frame by frame, from a file that no server had in its folder of people, and measured against the photo in it."""
    cast = casts.Cast(tmp_path / "cast", base, seeds=1)
    graph, bundled = (json.loads(file.read_text()) for file in (cast.folder / "workflow.json", casts.WORKFLOW))
    face, as_bundled = (each[node_id(each, "FacePreprocess")]["inputs"] for each in (graph, bundled))
    face |= {name: as_bundled[name] for name in ("detector", "size")}
    (cast.folder / "workflow.json").write_text(json.dumps(graph))
    people = cast.folder / "people"
    shutil.rmtree(people / "anna")
    PIL.Image.fromarray(faces.astronaut()).save(people / "ben.png")
    person, _ = make_person("Carl", faces.as_image(faces.astronaut()), PersonSettings())
    save_person(person, people / "carl.safetensors")
    run_here(cast.batch(), casts.settings(base))
    ben, carl = cast.found().values()
    assert carl["person"] == "carl" and carl["report"]["summary"] == ben["report"]["summary"]
    frames = cast.frames()
    assert np.array_equal(frames[ben["id"]], frames[carl["id"]])


def test_without_a_network_for_faces_nothing_is_rendered(base, tmp_path):
    """The sentence names a file and its source."""
    cast = casts.Cast(tmp_path / "cast", base)
    casts.write_bundled_workflow(cast.folder / "workflow.json")
    with pytest.raises(UserError, match=rf"nothing was rendered.*{SFACE.name} \(.*from https://github.com/opencv/"):
        run_here(cast.batch(), casts.settings(base))
    assert not cast.said and not cast.found()


def test_a_render_is_kept_where_its_report_fails(base, tmp_path):
    """With why, and without sampling it again."""
    cast = casts.Cast(tmp_path / "cast", base, seeds=1)
    casts.write_bundled_workflow(cast.folder / "workflow.json")
    batch = cast.batch()
    job = batch.take()
    with contextlib.closing(Worker(casts.settings(base))) as worker:
        render = worker.render(job.graph, job.contents())
        *_, last = worker.server.get("/history").values()
        assert not [*(worker.server.base / "output").iterdir()]  # it lies where it is kept, and nowhere else
    (cached,) = [data["nodes"] for kind, data in last["status"]["messages"] if kind == "execution_cached"]
    assert node_id(job.graph, "StandInSampler") in cached
    batch.rendered(job, render)
    (record,) = cast.found().values()
    assert "sface cannot run" in record["not_measured"] and "report" not in record and cast.records.is_done(job)
    with av.open(str(cast.records.folder / record["files"][0])) as container:
        assert sum(1 for _ in container.decode(video=0)) == casts.LENGTH
    assert "not measured" in cast.said[0]
    (listed,) = json.loads((cast.records.folder / "ranking.json").read_text())["not_measured"]
    assert listed["files"] == [f"{job.id}.mp4"] and listed["not_measured"].startswith("IdentityReport: ")


EXPANDING = """
import comfy.utils
from comfy_execution.graph_utils import GraphBuilder
from server import PromptServer

class Expanding:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images):
        PromptServer.instance.send_sync("their_own", ["no object"])
        graph = GraphBuilder()
        step = graph.node("Stepping", images=images)
        graph.node("SaveImage", images=step.out(0), filename_prefix="inner")
        return {"result": (step.out(0),), "expand": graph.finalize()}

class Stepping(Expanding):
    def run(self, images):
        comfy.utils.ProgressBar(1).update(1)
        return (images,)

NODE_CLASS_MAPPINGS = {"Expanding": Expanding, "Stepping": Stepping}
"""


def test_a_node_that_comfyui_replaces_by_others(base, tmp_path):
    """Their progress and what they save have ids that are not in the workflow; and their pack sends events of its own.
    What the workflow saves is rendered.
    """
    cast = casts.Cast(tmp_path / "cast", base, seeds=1)
    packs = tmp_path / "packs"
    packs.mkdir()
    (packs / "expanding.py").write_text(EXPANDING)
    (tmp_path / "paths.yaml").write_text(json.dumps({"tests": {"custom_nodes": str(packs)}}))
    file = cast.folder / "workflow.json"
    graph = json.loads(file.read_text())
    decoded = [node_id(graph, "VAEDecode"), 0]
    for node in graph.values():
        node["inputs"] = {name: ["expanding", 0] if value == decoded else value
                          for name, value in node["inputs"].items()}
    file.write_text(json.dumps(graph | {"expanding": {"class_type": "Expanding", "inputs": {"images": decoded}}}))
    settings = casts.settings(base)
    run_here(cast.batch(), dataclasses.replace(settings, arguments=(
        *settings.arguments, "--extra-model-paths-config", str(tmp_path / "paths.yaml"))))
    assert [len(record["files"]) for record in cast.found().values()] == [1 + casts.LENGTH] * 2, cast.said


def test_last_words_that_are_no_text(base, tmp_path):
    """A library writes bytes of its own, and the server ends. It was given the user's --port, where another ComfyUI may
    listen, and came up on a port of its own.
    """
    endless = casts.endless_job(tmp_path / "endless", base)
    settings = casts.settings(base)
    settings = dataclasses.replace(settings, arguments=(*settings.arguments, "--listen", "--port", "1"))
    with contextlib.closing(Worker(settings)) as worker:
        (server,) = casts.servers(base)

        def end():
            with (worker.server.base / "comfyui.log").open("ab") as log:
                log.write(b"\xff out of memory")
            server.kill()

        threading.Timer(3, end).start()
        with pytest.raises(RenderLost, match="out of memory"):
            worker.render(endless.graph, endless.contents())


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True], ids=["interrupted", "ended"])
def test_a_render_that_hangs(base, tmp_path, frozen):
    """It is given up, and the same worker renders the next; where the server does not answer, on a new one."""
    cast = casts.Cast(tmp_path / "cast", base)
    first, second, *_ = cast.jobs()
    endless = casts.endless_job(tmp_path / "endless", base)
    with contextlib.closing(Worker(casts.settings(base))) as worker:
        worker.render(first.graph, first.contents())  # loads what must be loaded
        (server,) = casts.servers(base)
        worker.settings = dataclasses.replace(worker.settings, seconds=20)
        if frozen:
            threading.Timer(10, server.send_signal, (signal.SIGSTOP,)).start()
        with pytest.raises(RenderLost, match=r"not done after 20 seconds.*" + ("started anew" if frozen else "")):
            worker.render(endless.graph, endless.contents())
        assert (casts.servers(base) == [server]) is not frozen
        worker.settings = dataclasses.replace(worker.settings, seconds=600)
        assert len(worker.render(second.graph, second.contents()).files) == 1 + casts.LENGTH
