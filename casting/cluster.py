"""A batch on every GPU of a Ray cluster: an actor for each, which has a ComfyUI of its own.

Ray places the actors. It neither repeats a call nor starts an actor again: a repeated call waits for its own actor, and
where that has lost its node and no other has room, it waits for ever. A lost job goes to whoever is free, and a lost
actor is replaced where there is a GPU for it.
"""
from __future__ import annotations

import time
from pathlib import Path

import ray

from standin_core.errors import UserError
from support.comfyui_server import PromptFailed

from .batch import Batch
from .jobs import Job
from .server import Render, RenderLost, ServerSettings, Worker

POLL_SECONDS = 2  # after which the driver looks for new nodes
CLOSE_SECONDS = 30
START_TRIES = 3  # of all workers in a row, while none works
HUNG_SECONDS = 120  # without an answer, beyond the time limit of a render and of one more without its report

PACK = Path(__file__).resolve().parent.parent


class RenderActor:
    """One of the cluster's workers."""

    def __init__(self, settings: ServerSettings):
        self.worker = Worker(settings)

    def name(self) -> str:
        """Who it is; the answer comes when its server is up."""
        return self.worker.name

    def render(self, graph: dict, files: dict[str, bytes]) -> Render | PromptFailed:
        """The render, or what failed."""
        try:
            return self.worker.render(graph, files)
        except PromptFailed as failure:
            return failure

    def refusal(self, graph: dict, files: dict[str, bytes]) -> str | None:
        return self.worker.refusal(graph, files)

    def close(self) -> None:
        self.worker.close()


def run_on_cluster(batch: Batch, settings: ServerSettings, address: str) -> None:
    """address: of the cluster, or "auto".

    Raises UserError where there is no cluster or no GPU, where no ComfyUI comes up on it, and as ``Batch.check`` does.
    """
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:  # nobody answers there, or that is no address
        raise UserError(f"there is no Ray cluster ({error}): start one with `ray start --head`, or leave out --ray."
                        ) from error
    try:
        _Driver(batch, settings).run()
    finally:
        ray.shutdown()


class _Driver:
    """What runs where, and what waits.

    actors: one for each GPU, whether it has a place already or not.
    waiting: what Ray was asked -> the actor that was asked, and its job; None for an actor that starts.
    asked: what Ray was asked of a job -> when.
    idle: actors that wait for a job.
    failed_starts: in a row.
    checked: whether a worker has measured the photos; the others have the same files.
    """

    def __init__(self, batch: Batch, settings: ServerSettings):
        self.batch = batch
        self.settings = settings
        self.actors: list = []
        self.idle: list = []
        self.waiting: dict = {}
        self.asked: dict = {}
        self.failed_starts = 0
        self.checked = False

    def run(self) -> None:
        if not _gpus():
            raise UserError("this Ray cluster has no GPU: start Ray on a machine that has one, or tell it how many "
                            "there are with `ray start --num-gpus`.")
        try:
            while self.batch.left:
                self._add_actors()
                self._hand_out()
                if not self.waiting:  # every node with a GPU is gone
                    time.sleep(POLL_SECONDS)
                    continue
                done, _ = ray.wait(list(self.waiting), timeout=POLL_SECONDS)
                for answer in done:
                    self.asked.pop(answer, None)
                    self._settle(answer, *self.waiting.pop(answer))
                self._drop_hung()
        finally:
            self._close()

    def _add_actors(self) -> None:
        while len(self.actors) < _gpus():
            # the modules of this pack, which lies at the same place on every machine
            environment = {"env_vars": {"PYTHONPATH": f"{PACK}:{PACK / 'scripts'}"}}
            kind = ray.remote(RenderActor).options(num_gpus=1, num_cpus=0, max_restarts=0, max_task_retries=0,
                                                   runtime_env=environment)
            actor = kind.remote(self.settings)
            self.actors.append(actor)
            self.waiting[actor.name.remote()] = actor, None

    def _hand_out(self) -> None:
        while self.idle and (job := self.batch.take()):
            try:
                contents = job.contents()
            except PromptFailed as failure:
                self.batch.failed(job, failure)
                continue
            actor = self.idle.pop()
            answer = actor.render.remote(job.graph, contents)
            self.waiting[answer], self.asked[answer] = (actor, job), time.monotonic()

    def _settle(self, answer, actor, job: Job | None) -> None:
        try:
            found = ray.get(answer)
            if not self.checked:
                self.batch.check(lambda *prompt: ray.get(actor.refusal.remote(*prompt)))
                self.checked = True
        except ray.exceptions.RayError as error:  # it has ended, or its ComfyUI did not come up
            self._lost(actor, job, type(error).__name__ if job else error)
            return
        self.idle.append(actor)
        if job is None:
            self.failed_starts = 0
            self.batch.say(f"a ComfyUI is ready ({found})")
        elif isinstance(found, Render):
            self.batch.rendered(job, found)
        else:
            self.batch.failed(job, found)

    def _drop_hung(self) -> None:
        """A worker keeps the time limit of its renders by itself, unless it hangs too."""
        latest = time.monotonic() - 2 * self.settings.seconds - HUNG_SECONDS
        for answer in [answer for answer, since in self.asked.items() if since < latest]:
            del self.asked[answer]
            self._lost(*self.waiting.pop(answer), "it does not answer")

    def _lost(self, actor, job: Job | None, error: ray.exceptions.RayError | str) -> None:
        self.actors.remove(actor)
        ray.kill(actor)
        if job is not None:
            self.batch.failed(job, RenderLost(f"its worker was lost ({error})"))
            return
        self.failed_starts += 1
        self.batch.say(f"a worker did not start: {error}")
        if self.failed_starts >= START_TRIES and not self.idle and not any(job for _, job in self.waiting.values()):
            raise UserError(f"no ComfyUI comes up on this cluster; the last one said: {error}")

    def _close(self) -> None:
        """End the servers of those who answer; Ray ends the others."""
        if self.idle:
            ray.wait([actor.close.remote() for actor in self.idle], num_returns=len(self.idle), timeout=CLOSE_SECONDS)


def _gpus() -> int:
    """How many the cluster has now."""
    return int(ray.cluster_resources().get("GPU", 0))
