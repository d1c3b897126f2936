"""What a batch makes with one worker and with two: renders a minute, lost calls, what was made twice, boot and memory.

    .standin/venv/bin/python benchmarks/batches.py

Each worker is an actor of a local Ray cluster with a ComfyUI on a CPU, and its renders are of tiny models, so that the
way of a job, not the work of a model, is what is timed. Nothing is rendered before all workers are up.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seeds", type=int, default=8, help="for each of two people")
    parser.add_argument("--record", type=Path, default=PACK / "benchmarks" / "results" / "batches_cpu.json")
    return parser.parse_args()


def measured(folder: Path, base: Path, workers: int, seeds: int) -> dict:
    """A batch on a cluster with so many GPUs, as Ray is told.

    Returns boot_s, from the start of the batch to the last worker; renders_a_minute, from then on; lost_calls;
    made_twice; and server_mb and actor_mb, the memory of its own (USS) that each has after the last render, their
    median over the workers.
    """
    import casts
    import ray.cluster_utils

    from casting.cluster import run_on_cluster

    cast = casts.Cast(folder, base, seeds=seeds)
    ready_at: list[float] = []
    rendered_at: list[float] = []
    memory: dict[str, list[float]] = {"server_mb": [], "actor_mb": []}

    class TimedBatch(casts.WaitingBatch):
        def say(self, words):
            super().say(words)
            if len(self.ready) > len(ready_at):
                ready_at.append(time.monotonic())

        def rendered(self, job, render):
            super().rendered(job, render)
            rendered_at.append(time.monotonic())
            if not self.left:
                for server in casts.servers(base):
                    memory["server_mb"].append(server.memory_full_info().uss / 1e6)
                    memory["actor_mb"].append(server.parent().memory_full_info().uss / 1e6)

    batch = TimedBatch(cast, workers)
    cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args={
        "num_cpus": workers, "num_gpus": workers, "include_dashboard": False})
    try:
        started = time.monotonic()
        run_on_cluster(batch, casts.settings(base), cluster.address)
    finally:
        cluster.shutdown()
    return {"workers": workers, "renders": 2 * seeds, "boot_s": round(ready_at[-1] - started, 1),
            "renders_a_minute": round(60 * 2 * seeds / (rendered_at[-1] - ready_at[-1]), 1),
            "lost_calls": sum(words.startswith("try ") for words in cast.said),
            "made_twice": len(rendered_at) - len(cast.frames()),
            **{name: round(statistics.median(values)) for name, values in memory.items()}}


def main() -> None:
    options = parsed()
    import_comfyui("--cpu")
    sys.path.append(str(PACK / "tests"))  # which has the batch in the small
    import casts
    import machine

    os.environ |= casts.RAY_SETTINGS

    record = {**machine.machine(), "load_before": round(os.getloadavg()[0], 1), "batches": []}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        casts.write_base(base)
        for workers in options.workers:
            record["batches"].append(measured(Path(folder) / str(workers), base, workers, options.seeds))
            options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(json.dumps(record["batches"][-1]) + "\n")


if __name__ == "__main__":
    main()
