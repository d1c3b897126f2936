"""The list of what is to do, whoever does it: tries, records, ranking and what is said meanwhile."""
from __future__ import annotations

import collections
import time
from collections.abc import Callable

from standin_core.errors import UserError
from support.comfyui_server import PromptFailed

from .jobs import Job
from .ranking import verdict_on, write_ranking
from .records import Records
from .server import Render, RenderLost

TRIES = 3  # of a job whose renders are lost, before it is kept as failed


class Batch:
    """Jobs that are taken one by one, and each given back as rendered or as failed."""

    def __init__(self, jobs: list[Job], records: Records, say: Callable[[str], None]):
        self._records = records
        self._say = say
        self._todo = collections.deque(job for job in jobs if not records.is_done(job))
        self._tries: collections.Counter[str] = collections.Counter()
        self._kept = [record for record in records.of(jobs) if "error" not in record]
        self._all = self.left = len(self._todo)
        self._tried = 0
        self._started = time.monotonic()

    def take(self) -> Job | None:
        """The next job, or None where all are taken or done."""
        return self._todo.popleft() if self._todo else None

    def check(self, refusal: Callable[[dict, dict[str, bytes]], str | None]) -> None:
        """Measure each person's photos, and fail the jobs of those whose reports would fail, before any is rendered.

        refusal: takes a prompt and its files; returns ComfyUI's words of why it cannot run, or None.

        Raises UserError where no photo can be measured.
        """
        def words_on(job: Job) -> str | None:
            try:
                return refusal(*job.of_photos())
            except PromptFailed as failure:
                return str(failure)

        of_person = {job.person: job for job in self._todo}
        refusals = {person: words for person, job in of_person.items() if (words := words_on(job))}
        if refusals and refusals.keys() == of_person.keys():
            why = " ".join(dict.fromkeys(refusals.values()))
            raise UserError(f"no photo can be measured, so nothing was rendered. {why}")
        refused = [job for job in self._todo if job.person in refusals]
        self._todo = collections.deque(job for job in self._todo if job.person not in refusals)
        for job in refused:
            self._fail(job, refusals[job.person])

    def rendered(self, job: Job, render: Render) -> None:
        self._tries[job.id] += 1
        self._keep(self._records.keep(job, render, self._tries[job.id]))
        self._say(f"{self._all - self.left}/{self._all} {job.title}: {_found(render)}, {render.seconds:.0f} s"
                  f"{self._time_left}")

    def failed(self, job: Job, failure: PromptFailed) -> None:
        """Put the job back, or keep it as failed after the last try, and where another would end the same way."""
        self._tries[job.id] += 1
        tries = self._tries[job.id]
        if isinstance(failure, RenderLost) and tries < TRIES:
            self._todo.append(job)
            self._say(f"try {tries} of {TRIES} failed, {job.title}: {failure}")
        else:
            self._fail(job, str(failure))

    def say(self, words: str) -> None:
        self._say(words)

    def _fail(self, job: Job, words: str) -> None:
        self._keep(self._records.keep_failure(job, words, self._tries[job.id]))
        self._say(f"{self._all - self.left}/{self._all} {job.title}: failed, {words}{self._time_left}")

    def _keep(self, record: dict) -> None:
        self._kept.append(record)
        self.left -= 1
        self._tried += record["tries"] > 0
        write_ranking(self._records.folder, self._kept)

    @property
    def _time_left(self) -> str:
        """By the jobs that were tried: those that the check of the photos failed took no time."""
        if not (self.left and self._tried):
            return ""
        per_job = (time.monotonic() - self._started) / self._tried
        return f"; {in_words(per_job * self.left)} left"


def _found(render: Render) -> str:
    """What the report of a render says, in short."""
    if render.report is None:
        return f"not measured, {render.not_measured}"
    verdict, copied = verdict_on(render.report), render.report["summary"]["copied_pixels"]["mean"]
    return f"likeness {verdict.likeness:.3f}, copied pixels {copied:.3f}" if verdict.coverage else "no face found"


def in_words(seconds: float) -> str:
    """90 -> "2 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
