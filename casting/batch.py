"""The list of what is to do, whoever does it: tries, records, ranking and what is said meanwhile."""
from __future__ import annotations

import collections
import time
from collections.abc import Callable

from .jobs import Job
from .ranking import verdict_on, write_ranking
from .records import Records
from .server import Render

TRIES = 3  # of a job, before it is kept as failed


class Batch:
    """Jobs that are taken one by one, and each given back as rendered or as failed."""

    def __init__(self, jobs: list[Job], records: Records, say: Callable[[str], None]):
        self._records = records
        self._say = say
        self._todo = collections.deque(job for job in jobs if not records.is_done(job))
        self._tries: collections.Counter[str] = collections.Counter()
        self._kept = [record for record in records.of(jobs) if "error" not in record]
        self._all = self.left = len(self._todo)
        self._started = time.monotonic()

    def take(self) -> Job | None:
        """The next job, or None where all are taken or done."""
        return self._todo.popleft() if self._todo else None

    def rendered(self, job: Job, render: Render) -> None:
        self._tries[job.id] += 1
        self._keep(self._records.keep(job, render, self._tries[job.id]))
        verdict, copied = verdict_on(render.report), render.report["summary"]["copied_pixels"]["mean"]
        found = f"likeness {verdict.likeness:.3f}, copied pixels {copied:.3f}" if verdict.coverage else "no face found"
        self._say(f"{self._all - self.left}/{self._all} {job.title}: {found}, {render.seconds:.0f} s{self._time_left}")

    def failed(self, job: Job, words: str) -> None:
        """Put the job back, or keep it as failed after the last try.

        words: ComfyUI's.
        """
        self._tries[job.id] += 1
        tries = self._tries[job.id]
        if tries < TRIES:
            self._todo.append(job)
            self._say(f"try {tries} of {TRIES} failed, {job.title}: {words}")
        else:
            self._keep(self._records.keep_failure(job, words, tries))
            self._say(f"{self._all - self.left}/{self._all} {job.title}: failed, {words}{self._time_left}")

    def say(self, words: str) -> None:
        self._say(words)

    def _keep(self, record: dict) -> None:
        self._kept.append(record)
        self.left -= 1
        write_ranking(self._records.folder, self._kept)

    @property
    def _time_left(self) -> str:
        per_job = (time.monotonic() - self._started) / (self._all - self.left)
        return f"; {in_words(per_job * self.left)} left" if self.left else ""


def in_words(seconds: float) -> str:
    """90 -> "2 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
