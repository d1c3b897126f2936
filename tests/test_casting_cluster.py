"""A batch on a local cluster of Ray with real ComfyUI servers on tiny models, and what may break there."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import casts
import pack
from casting.batch import Batch
from casting.local import run_here
from standin_core.contracts import UserError
from support.environment import PACK

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from casting.cluster import run_on_cluster  # noqa: E402  needs ray

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ray has no clusters there")
SEEDS = 6
KEPT_BACK = 4  # jobs for all who are there after the last fault
PATIENCE_SECONDS = 1800


@pytest.fixture(scope="module")
def on_one_server(base, tmp_path_factory):
    """Id -> frames of the same jobs on one server."""
    cast = casts.Cast(tmp_path_factory.mktemp("one"), base, seeds=SEEDS)
    run_here(cast.batch(), casts.settings(base))
    return cast.frames()


@pytest.fixture(autouse=True)
def patience():
    """A batch that waits for ever for a lost node fails."""
    def fail(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(PATIENCE_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes with a GPU each, as Ray is told."""
    for name in ("RAY_memory_monitor_refresh_ms", "RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):
        monkeypatch.setenv(name, "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, "include_dashboard": False})
    cluster.other = cluster.add_node(num_cpus=1, num_gpus=1)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_faults(base, cluster, on_one_server, tmp_path):
    """A server is killed, a worker is killed, a third node comes, and one goes with its worker, for which nobody else
    has room: every job is done, once, and the frames are those of one server, bit for bit.
    """
    cast = casts.Cast(tmp_path / "cast", base, seeds=SEEDS)
    busy, ready = [], []

    class WaitingBatch(Batch):
        """The first jobs wait for both workers, and the last ones for the two that come later and for the last fault:
        else those who are there may be done before.
        """

        def take(self):
            wait = len(ready) < 2 or (self.left <= KEPT_BACK and faults)
            return None if wait else super().take()

    def kill_server():
        casts.servers(base)[0].kill()

    def kill_worker():
        casts.servers(base)[0].parent().kill()

    def remove_node():
        cluster.remove_node(cluster.other, allow_graceful=False)

    def add_node():
        cluster.add_node(num_cpus=1, num_gpus=1)

    # jobs done, workers that were ever ready, and what happens then
    faults = [(2, 2, kill_server), (4, 2, kill_worker), (6, 2, add_node), (2 * SEEDS - KEPT_BACK, 4, remove_node)]

    def say(words):
        cast.said.append(words)
        sys.stderr.write(f"{time.strftime('%X')} {words}\n")
        if found := re.fullmatch(r"a ComfyUI is ready \((.*)\)", words):
            ready.append(found[1])
        done = len(list((tmp_path / "cast" / "out").glob("*.mp4")))
        if faults and faults[0][0] <= done and faults[0][1] <= len(ready):
            fault = faults.pop(0)[-1]
            busy.append(fault.__name__)
            fault()

    batch = WaitingBatch(cast.jobs(), cast.records, say)
    run_on_cluster(batch, casts.settings(base), cluster.address)
    assert busy == ["kill_server", "kill_worker", "add_node", "remove_node"]
    found = cast.found()
    assert len(found) == 2 * SEEDS and not [record for record in found.values() if "error" in record]
    assert sum(": likeness" in words for words in cast.said) == 2 * SEEDS  # none was rendered twice
    assert {record["worker"] for record in found.values()} & set(ready[2:])  # who came later worked too
    frames = cast.frames()
    assert frames.keys() == on_one_server.keys()
    assert all(np.array_equal(frames[key], on_one_server[key]) for key in frames)


@pytest.mark.slow
def test_the_driver_is_killed(base, cluster, tmp_path):
    """Its servers go with it, and the same command does what is missing."""
    cast = casts.Cast(tmp_path / "cast", base, seeds=2)
    (cast.folder / "prompts.txt").write_text("a woman smiles\n")
    command = [sys.executable, str(PACK / "scripts" / "batch.py"), str(cast.folder / "people"),
               str(cast.folder / "prompts.txt"), "--seeds", "2", "--workflow",
               str(cast.folder / "workflow.json"), "--out", str(cast.records.folder), "--ray", cluster.address,
               *casts.comfyui_arguments(base)]
    environment = {**os.environ, "COMFYUI_PATH": str(pack.COMFYUI)}
    driver = subprocess.Popen(command, env=environment)
    until(lambda: cast.found() or driver.poll() is not None)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = len(cast.found())
    assert 1 <= done < 4
    until(lambda: not casts.servers(base))
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{done} done, {4 - done} to do" in again.stdout
    assert again.stdout.count(": likeness") == 4 - done and len(cast.frames()) == 4
    assert len(json.loads((cast.records.folder / "ranking.json").read_text())["people"]["anna"]) == 2


def until(is_so):
    while not is_so():
        time.sleep(0.5)


def test_without_a_cluster(base, tmp_path):
    with pytest.raises(UserError, match="there is no Ray cluster"):
        run_on_cluster(casts.Cast(tmp_path / "cast", base).batch(), casts.settings(base), "auto")
