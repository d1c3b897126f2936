"""A batch on a local cluster of Ray with real ComfyUI servers on tiny models, and what may break there."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

import casts
from casting.local import run_here
from standin_core.errors import UserError
from support import pack
from support.environment import PACK

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from casting.cluster import run_on_cluster  # noqa: E402  needs ray

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ray has no clusters there")
SEEDS = 6
NODES = 3
KEPT_BACK = 6  # renders for all who are there after the last fault
HANG_SECONDS = 30
PATIENCE_SECONDS = 1800
LOSS_SECONDS = 300  # from the loss of a node to the end of eight jobs


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
    """Three nodes with a GPU each, as Ray is told."""
    for name, value in casts.RAY_SETTINGS.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, "include_dashboard": False})
    for _ in range(NODES - 1):
        cluster.other = cluster.add_node(num_cpus=1, num_gpus=1)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_faults(base, cluster, on_one_server, tmp_path):
    """A photo is none, a server is killed, a worker is killed, and a fourth node comes: every other job is done, once,
    and the frames are those of one server, bit for bit.
    """
    cast = casts.Cast(tmp_path / "cast", base, "abel", seeds=SEEDS)  # whose jobs are the first

    def kill_server():
        casts.servers(base)[0].kill()

    def kill_worker():
        casts.servers(base)[0].parent().kill()

    def add_node():
        cluster.add_node(num_cpus=1, num_gpus=1)

    faults = {1: kill_server, 3: kill_worker, 5: add_node}  # by renders

    class FaultyBatch(casts.WaitingBatch):
        """The last jobs wait for the two workers that come later, too: else those who are there may do them before."""

        renders = 0

        def take(self):
            wait = 2 * SEEDS - self.renders <= KEPT_BACK and len(self.ready) < NODES + 2
            return None if wait else super().take()

        def rendered(self, job, render):
            super().rendered(job, render)
            self.renders += 1
            if fault := faults.pop(self.renders, None):
                fault()

    batch = FaultyBatch(cast, NODES)
    run_on_cluster(batch, casts.settings(base), cluster.address)
    assert not faults
    found = cast.found().values()
    failed, done = ([record for record in found if ("error" in record) is wanted] for wanted in (True, False))
    assert len(failed) == SEEDS and len(done) == 2 * SEEDS
    for record in failed:
        assert record["person"] == "abel" and record["tries"] == 0
        assert "LoadImage: cannot identify image file" in record["error"]
    assert sum(": likeness" in words for words in cast.said) == 2 * SEEDS  # none was rendered twice
    workers = {record["worker"] for record in done}
    assert len(workers) >= NODES and workers & set(batch.ready[NODES:])  # who came later worked too
    frames = cast.frames()
    assert frames.keys() == on_one_server.keys()
    assert all(np.array_equal(frames[key], on_one_server[key]) for key in frames)


def test_a_node_goes(base, cluster, on_one_server, tmp_path):
    """Its worker renders, and no other node has room for a worker: one that is left does the lost job. If Ray
    repeated the call by itself, the batch would wait for ever. The frames are those of one server.
    """
    cast = casts.Cast(tmp_path / "cast", base, seeds=4)
    node = dict(cluster.other.live_processes())["raylet"].pid

    class FaultyBatch(casts.WaitingBatch):
        def rendered(self, job, render):
            """At the first render of a worker that stays, the one that goes has a job."""
            super().rendered(job, render)
            worker = psutil.Process(int(render.worker.split(":")[1]))
            if cluster.other in cluster.worker_nodes and worker.ppid() != node:
                cluster.remove_node(cluster.other, allow_graceful=False)
                signal.alarm(LOSS_SECONDS)

    run_on_cluster(FaultyBatch(cast, NODES), casts.settings(base), cluster.address)
    assert sum("its worker was lost" in words for words in cast.said) == 1
    frames = cast.frames()
    assert sum(": likeness" in words for words in cast.said) == len(frames) == 8
    assert all(np.array_equal(frames[key], on_one_server[key]) for key in frames)


@pytest.mark.slow
def test_a_job_hangs(base, cluster, on_one_server, tmp_path):
    """It is interrupted, tried three times and kept as failed. The worker on which it hung goes on: the other jobs wait
    for its first try, and then every worker has one.
    """

    class CastWithAHang(casts.Cast):
        def jobs(self):
            return [endless, *super().jobs()]

    class BatchAfterAHang(casts.WaitingBatch):
        hangs = False

        def take(self):
            job = None if self.hangs else super().take()
            self.hangs |= job is endless
            return job

        def failed(self, job, failure):
            super().failed(job, failure)
            self.hangs = False

    endless = casts.endless_job(tmp_path / "endless", base)
    cast = CastWithAHang(tmp_path / "cast", base)
    batch = BatchAfterAHang(cast, NODES)
    run_on_cluster(batch, casts.settings(base, HANG_SECONDS), cluster.address)
    failed = cast.found()[endless.id]
    assert f"not done after {HANG_SECONDS} seconds" in failed["error"] and failed["tries"] == 3
    done = [record for record in cast.found().values() if "error" not in record]
    assert len(batch.ready) == NODES and {record["worker"] for record in done} == set(batch.ready)
    frames = cast.frames()
    assert len(frames) == 4 and all(np.array_equal(frames[key], on_one_server[key]) for key in frames)


@pytest.mark.slow
def test_a_worker_hangs(base, cluster, tmp_path, monkeypatch):
    """It is stopped with its server while they render, and answers nothing: another worker does its job."""
    monkeypatch.setattr("casting.cluster.HUNG_SECONDS", 5)
    cast = casts.Cast(tmp_path / "cast", base, seeds=4)
    stopped = []

    class BatchWithAHang(casts.WaitingBatch):
        def rendered(self, job, render):
            super().rendered(job, render)
            if not stopped:
                (server, *_) = [each for each in casts.servers(base)
                                if each.ppid() != int(render.worker.split(":")[1])]
                stopped[:] = [server.parent(), server]
                for process in stopped:
                    process.suspend()

    try:
        run_on_cluster(BatchWithAHang(cast, NODES), casts.settings(base, HANG_SECONDS), cluster.address)
    finally:
        for process in filter(psutil.Process.is_running, stopped):
            process.kill()
    assert sum("its worker was lost (it does not answer)" in words for words in cast.said) == 1
    assert sum(": likeness" in words for words in cast.said) == len(cast.frames()) == 8


@pytest.mark.slow
def test_the_driver_is_killed(base, cluster, tmp_path):
    """While it runs, the same command is refused. Then its servers go with it, and the command does what is missing."""
    cast = casts.Cast(tmp_path / "cast", base, seeds=3)
    (cast.folder / "prompts.txt").write_text("a woman smiles\n")
    command = [sys.executable, str(PACK / "scripts" / "batch.py"), str(cast.folder / "people"),
               str(cast.folder / "prompts.txt"), "--seeds", str(cast.seeds), "--workflow",
               str(cast.folder / "workflow.json"), "--out", str(cast.records.folder), "--ray", cluster.address,
               *casts.comfyui_arguments(base)]
    environment = {**os.environ, "COMFYUI_PATH": str(pack.COMFYUI)}
    driver = subprocess.Popen(command, env=environment)
    until(lambda: (cast.records.folder / ".lock").exists() or driver.poll() is not None)
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 1 and "stopped: another batch works in" in second.stdout, second.stdout + second.stderr
    until(lambda: cast.found() or driver.poll() is not None)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = len(cast.found())
    assert 1 <= done < 6
    until(lambda: not casts.servers(base))
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{done} done, {6 - done} to do" in again.stdout
    assert again.stdout.count(": likeness") == 6 - done and len(cast.frames()) == 6
    (renders,) = json.loads((cast.records.folder / "ranking.json").read_text())["people"]["anna"].values()
    assert len(renders) == 3


def until(is_so):
    while not is_so():
        time.sleep(0.5)


def test_without_a_cluster(base, tmp_path):
    with pytest.raises(UserError, match="there is no Ray cluster"):
        run_on_cluster(casts.Cast(tmp_path / "cast", base).batch(), casts.settings(base), "auto")
