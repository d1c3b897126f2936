"""The folder of results: pictures and videos first, the record of a render last, so that what has a record is whole."""
from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from standin_core.errors import UserError
from standin_core.files import replacing

from .answers import RECORDS
from .jobs import Job
from .server import Render


class Records:
    """A folder with ``<id>.mp4`` and ``<id>.json`` for each render."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within the context nobody else works in this folder.

        Raises UserError where somebody does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(self.folder / ".lock", timeout=0):
                yield
        except filelock.Timeout as error:
            raise UserError(f"another batch works in {self.folder}: wait for its end, or give another --out."
                            ) from error

    def of(self, jobs: list[Job]) -> list[dict]:
        """The records that there are, finished and failed."""
        found = (self._read(job.id) for job in jobs)
        return [record for record in found if record is not None]

    def seconds(self, workflow: str) -> list[float]:
        """How long each render in this folder took that was made by this workflow, whoever it shows.

        workflow: as ``Job.workflow``.
        """
        records = (_record(file) for file in self.folder.glob("*.json"))
        return [record["seconds"] for record in records
                if record is not None and record["workflow"] == workflow and "error" not in record]

    def is_done(self, job: Job) -> bool:
        """Whether the job was rendered; what failed is tried again by the next call."""
        record = self._read(job.id)
        return record is not None and "error" not in record

    def keep(self, job: Job, render: Render, tries: int) -> dict:
        """Write a render; returns its record."""
        measured = {"not_measured": render.not_measured} if render.report is None else {"report": render.report}
        names = []
        for index, (suffix, content) in enumerate(render.files):
            names.append(f"{job.id}{f'_{index + 1}' if index else ''}{suffix}")
            with replacing(self.folder / names[-1]) as part:
                part.write_bytes(content)
        return self._write(job, {"files": names, **measured, "seconds": round(render.seconds, 2),
                                 "worker": render.worker, "tries": tries})

    def keep_failure(self, job: Job, words: str, tries: int) -> dict:
        """Write why there is no render, in ComfyUI's words; returns the record."""
        return self._write(job, {"error": words, "tries": tries})

    def _read(self, job_id: str) -> dict | None:
        """The record, or None where there is none, or where a file of the render is no longer there."""
        record = _record(self.folder / f"{job_id}.json")
        if record is None or "error" in record:
            return record
        return record if all(os.path.isfile(self.folder / name) for name in record["files"]) else None

    def _write(self, job: Job, found: dict) -> dict:
        record = {"id": job.id, "workflow": job.workflow, "person": job.person, "prompt": job.words, "seed": job.seed,
                  **found, "graph": job.graph}
        with replacing(self.folder / f"{job.id}.json") as part:
            part.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        return record


def _record(file: Path) -> dict | None:
    """What is in the file, or None where it is no record, because it is not there, damaged or of another program."""
    try:
        text = file.read_bytes()
        RECORDS.validate_json(text, strict=True)
        return json.loads(text)
    except (OSError, ValueError):
        return None
