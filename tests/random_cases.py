"""Random cases with fresh seeds: a few in every run of the tests, many with STAND_IN_NIGHTLY=1, which leaves a record.

STAND_IN_SEED repeats the cases of a run; pytest prints the seed in its header.
"""
import contextlib
import json
import os
import random
import time
import traceback
from pathlib import Path

import pytest

from standin_core.files import replacing

NIGHTLY = os.environ.get("STAND_IN_NIGHTLY") == "1"
# kept where further processes of the same run find it
SEED = os.environ.setdefault("STAND_IN_SEED", str(random.SystemRandom().randrange(10**9)))
HANG_SECONDS = 60  # of the process's own time; the slowest case, a video with a fault, took 6 on a busy machine
RECORD = Path(__file__).parent / "nightly.json"
WRITTEN_EVERY = 10  # seconds of a nightly run, so that one that is killed loses no more
FAILURES = (Exception, pytest.fail.Exception)  # pytest's own, where nothing was raised, is no Exception

_records: dict[str, dict] = {}
_written = time.monotonic()


@contextlib.contextmanager
def noted(what, name):
    """Within it a case is tried: it is counted, and what it raises is noted and goes on.

    A nightly run's record is written after it, if it was not in the last WRITTEN_EVERY seconds.

    what: the kind of case, for the record.
    name: of the case.

    Raises AssertionError for a case that takes longer than HANG_SECONDS.
    """
    record = _records.setdefault(what, {"tried": 0, "errors": [], "hangs": []})
    began = time.process_time()
    try:
        yield
    except FAILURES as error:
        record["tried"] += 1
        record["errors"].append(f"{name}: {''.join(traceback.format_exception_only(error)).strip()}")
        raise
    else:
        record["tried"] += 1
        seconds = time.process_time() - began
        if seconds > HANG_SECONDS:
            record["hangs"].append(f"{name}: {seconds:.0f} s")
            raise AssertionError(f"{name} took {seconds:.0f} s, and a case has {HANG_SECONDS}")
    finally:
        if NIGHTLY and time.monotonic() - _written > WRITTEN_EVERY:
            write_record()


def run_cases(what, few, many, case, goes_on=True):
    """Call ``case`` with a random.Random for each case.

    what: the kind of case, for the record.
    few, many: how many in every run, and in a nightly one.
    goes_on: whether a nightly run with the seed of the record goes on where that one was stopped.

    Fails at the end with every case that failed and how to repeat it.
    """
    first, wanted = None, many if NIGHTLY else few
    stopped = _recorded().get(what, {}) if NIGHTLY and goes_on else {}
    if stopped.get("seed") != SEED or stopped["tried"] >= wanted:
        stopped = {"tried": 0, "errors": [], "hangs": [], "seed": SEED}
    record = _records[what] = stopped
    for number in range(record["tried"], wanted):
        try:
            with noted(what, f"case {number}"):
                case(random.Random(f"{SEED}:{what}:{number}"))
        except FAILURES as error:
            first = first or error
    found = record["errors"] + record["hangs"]
    if found:
        raise AssertionError("\n".join([f"STAND_IN_SEED={SEED} repeats these:", *found])) from first


def note(what, **facts):
    """Add to the record of a kind of case what was found after all of them."""
    _records[what].update(facts)


def count(what, **facts):
    """Add numbers to those in the record of a kind of case."""
    note(what, **{name: _records[what].get(name, 0) + number for name, number in facts.items()})


def write_record():
    """Say in RECORD what a nightly run tried and found; what other runs of the tests tried stays there."""

    global _written
    now = {what: {**record, "date": time.strftime("%Y-%m-%d")} for what, record in _records.items()}
    with replacing(RECORD) as part:
        part.write_text(json.dumps({**_recorded(), **now}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    _written = time.monotonic()


def _recorded():
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
