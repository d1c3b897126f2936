"""A batch on one real ComfyUI with tiny models, and what may break there."""
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading

import av
import numpy as np
import pytest

import casts
import pack
from casting.local import run_here
from casting.server import Worker
from support.comfyui_server import PromptFailed
from support.environment import PACK


@pytest.fixture(scope="module")
def done(base, tmp_path_factory):
    """A batch with a photo that is no picture, in which the server is killed after the first render."""
    cast = casts.Cast(tmp_path_factory.mktemp("cast"), base, "zoe")

    def say(words):
        cast.said.append(words)
        if words.startswith("1/6"):
            (server,) = casts.servers(base)
            server.kill()

    run_here(cast.batch(say=say), casts.settings(base))
    return cast


def test_all_but_the_bad_photo(done, base):
    """A server that is killed costs one try at most, of the job that it had; and nothing of it is left."""
    found = done.found().values()
    assert sum("error" not in record for record in found) == 4 and len(found) == 6
    for record in found:
        if record["person"] == "zoe":
            assert "LoadImage: cannot identify image file" in record["error"] and record["tries"] == 3
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


def command(cast, *arguments):
    (cast.folder / "prompts.txt").write_text("a woman smiles\n")
    return subprocess.run(
        [sys.executable, str(PACK / "scripts" / "batch.py"), str(cast.folder / "people"),
         str(cast.folder / "prompts.txt"), "--seeds", "2", "--workflow", str(cast.folder / "workflow.json"), "--out",
         str(cast.records.folder), *arguments, *casts.comfyui_arguments(cast.base)],
        env={**os.environ, "COMFYUI_PATH": str(pack.COMFYUI)}, capture_output=True, text=True)


def test_the_command_says_what_is_missing(done):
    """It knows the renders of another process again, and starts nothing."""
    answer = command(done, "--dry-run")
    assert answer.returncode == 0 and "4 done, 2 to do; " in answer.stdout, answer.stdout + answer.stderr
    with done.records.locked():
        answer = command(done, "--dry-run")
    assert answer.returncode == 1 and "stopped: another batch works in" in answer.stdout


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True], ids=["interrupted", "ended"])
def test_a_render_that_hangs(base, tmp_path, frozen):
    """It is given up, and the same worker renders the next; where the server does not answer, on a new one."""
    cast = casts.Cast(tmp_path / "cast", base)
    first, second, *_ = cast.jobs()
    endless = casts.Cast(tmp_path / "endless", base, steps=1000).jobs()[0]
    with contextlib.closing(Worker(casts.settings(base))) as worker:
        worker.render(first.graph, first.contents())  # loads what must be loaded
        (server,) = casts.servers(base)
        worker.settings = dataclasses.replace(worker.settings, seconds=20)
        if frozen:
            threading.Timer(10, server.send_signal, (signal.SIGSTOP,)).start()
        with pytest.raises(PromptFailed, match=r"not done after 20 seconds.*" + ("started anew" if frozen else "")):
            worker.render(endless.graph, endless.contents())
        assert (casts.servers(base) == [server]) is not frozen
        worker.settings = dataclasses.replace(worker.settings, seconds=600)
        assert len(worker.render(second.graph, second.contents()).files) == 1 + casts.LENGTH
