"""What a batch would do and what that costs, in words."""
from __future__ import annotations

import collections

from standin_core.words import counted

from .batch import in_words
from .jobs import Job
from .records import Records

SHOWN = 5  # jobs, of all that are to do


def cost(jobs: list[Job], records: Records) -> str:
    """How many are done and to do, and how long that takes by the renders of the same workflow in this folder."""
    left = len(_left(jobs, records))
    if not left:
        return "all are done"
    state = f"{left} to do" if left == len(jobs) else f"{len(jobs) - left} done, {left} to do"
    took = records.seconds(jobs[0].workflow)
    if not took:
        return f"{state}; how long a render takes is known after the first"
    each = sum(took) / len(took)
    return (f"{state}; {in_words(each)} each by {counted(len(took), 'render')} of before, {in_words(each * left)} of "
            "one GPU in all")


def first_jobs(jobs: list[Job], records: Records) -> str:
    """How many are to do for each person, and the first of them, a line each."""
    left = _left(jobs, records)
    people = collections.Counter(job.person for job in left)
    lines = [f"{person}: {counted(count, 'render')} to do" for person, count in people.items()]
    lines += [f"  {job.title}" for job in left[:SHOWN]]
    if len(left) > SHOWN:
        lines.append(f"  and {len(left) - SHOWN} more")
    return "\n".join(lines)


def _left(jobs: list[Job], records: Records) -> list[Job]:
    return [job for job in jobs if not records.is_done(job)]
