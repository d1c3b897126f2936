"""A batch on every GPU of a Ray cluster: an actor for each, which has a ComfyUI of its own.

Ray places the actors and starts them again where they ended. It repeats no call: a repeated call waits for its own
actor, and where that has lost its node and no other has room, it waits for ever. The batch gives a lost job to whoever
is free, and asks the actor for a sign of life before it gets another one.
"""
from __future__ import annotations

import contextlib
from pathlib import Path

import ray

from standin_core.contracts import UserError
from support.comfyui_server import PromptFailed

from .batch import Batch
from .jobs import Job
from .server import Render, ServerSettings, Worker

POLL_SECONDS = 2  # after which the driver looks for new nodes
CLOSE_SECONDS = 30

PACK = Path(__file__).resolve().parent.parent


class RenderActor:
    """One of the cluster's workers."""

    def __init__(self, settings: ServerSettings):
        self.worker = Worker(settings)

    def name(self) -> str:
        """The sign of life: it comes when the server is up."""
        return self.worker.name

    def render(self, graph: dict, files: dict[str, bytes]) -> Render | str:
        """The render, or ComfyUI's words of what failed."""
        try:
            return self.worker.render(graph, files)
        except PromptFailed as failure:
            return str(failure)

    def close(self) -> None:
        self.worker.close()


def run_on_cluster(batch: Batch, settings: ServerSettings, address: str) -> None:
    """address: of the cluster, or "auto".

    Raises UserError where there is no cluster or no GPU, and where no server comes up on any.
    """
    try:
        ray.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise UserError(f"there is no Ray cluster ({error}): start one with `ray start --head`, or leave out --ray."
                        ) from error
    try:
        _Driver(batch, settings).run()
    finally:
        ray.shutdown()


class _Driver:
    """waiting: what Ray was asked -> the actor that was asked and its job; None where it was asked for a sign of life.
    idle: actors that wait for a job.
    """

    def __init__(self, batch: Batch, settings: ServerSettings):
        self.batch = batch
        self.settings = settings
        self.actors: list = []
        self.idle: list = []
        self.waiting: dict = {}

    def run(self) -> None:
        try:
            while self.batch.left:
                self._add_actors()
                done, _ = ray.wait(list(self.waiting), timeout=POLL_SECONDS)
                for answer in done:
                    self._settle(answer, *self.waiting.pop(answer))
                self._hand_out()
        finally:
            self._close()

    def _add_actors(self) -> None:
        """As many as the cluster has GPUs now; those that lost theirs keep waiting for one."""
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if not gpus and not self.actors:
            raise UserError("this Ray cluster has no GPU: start Ray on a machine that has one, or tell it how many "
                            "there are with `ray start --num-gpus`.")
        kind = ray.remote(num_gpus=1, num_cpus=0, max_restarts=-1, max_task_retries=0)(RenderActor)
        while len(self.actors) < gpus:
            # the modules of this pack, which lies at the same place on every machine
            actor = kind.options(runtime_env={"env_vars": {"PYTHONPATH": f"{PACK}:{PACK / 'scripts'}"}}).remote(
                self.settings)
            self.actors.append(actor)
            self._ask(actor)

    def _ask(self, actor) -> None:
        self.waiting[actor.name.remote()] = actor, None

    def _settle(self, answer, actor, job: Job | None) -> None:
        try:
            found = ray.get(answer)
        except ray.exceptions.RayError as error:
            self._lost(actor, job, error)
            return
        self.idle.append(actor)
        if job is None:
            self.batch.say(f"a ComfyUI is ready ({found})")
        elif isinstance(found, Render):
            self.batch.rendered(job, found)
        else:
            self.batch.failed(job, found)

    def _lost(self, actor, job: Job | None, error: ray.exceptions.RayError) -> None:
        if job is None:  # it cannot start
            self.actors.remove(actor)
            self.batch.say(f"a worker gave up: {error}")
            if not self.actors:
                raise UserError(f"no ComfyUI comes up on this cluster; the last one said: {error}")
            return
        self.batch.failed(job, f"its worker was lost ({type(error).__name__})")
        if isinstance(error, ray.exceptions.RayTaskError):  # its ComfyUI did not come up again
            ray.kill(actor, no_restart=False)
        self._ask(actor)

    def _hand_out(self) -> None:
        while self.idle and (job := self.batch.take()):
            actor = self.idle.pop()
            self.waiting[actor.render.remote(job.graph, job.contents())] = actor, job

    def _close(self) -> None:
        """End the servers of those who answer; Ray ends the others."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.wait([actor.close.remote() for actor in self.idle], num_returns=len(self.idle), timeout=CLOSE_SECONDS)
