"""A batch on one ComfyUI of this machine."""
from __future__ import annotations

import contextlib

from support.comfyui_server import PromptFailed

from .batch import Batch
from .server import ServerSettings, Worker


def run_here(batch: Batch, settings: ServerSettings) -> None:
    """Raises RuntimeError with ComfyUI's last words if it does not come up, and UserError as ``Batch.check`` does."""
    with contextlib.closing(Worker(settings)) as worker:
        batch.check(worker.refusal)
        while job := batch.take():
            try:
                batch.rendered(job, worker.render(job.graph, job.contents()))
            except PromptFailed as failure:
                batch.failed(job, failure)
