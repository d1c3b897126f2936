"""Random cases with fresh seeds: a few in every run of the tests, many with STAND_IN_NIGHTLY=1, which leaves a record.

STAND_IN_SEED repeats the cases of a run; pytest prints the seed in its header.
"""
import json
import os
import random
import time
import traceback
from pathlib import Path

NIGHTLY = os.environ.get("STAND_IN_NIGHTLY") == "1"
# kept where further processes of the same run find it
SEED = os.environ.setdefault("STAND_IN_SEED", str(random.SystemRandom().randrange(10**9)))
HANG_SECONDS = 5  # of the process's own time, on a machine that may be busy with other things
RECORD = Path(__file__).parent / "nightly.json"

_records: dict[str, dict] = {}


def run_cases(what, few, many, case):
    """Call ``case`` with a random.Random for each case, and note what it raises and whether it takes too long.

    what: the kind of case, for the record.
    few, many: how many in every run, and in a nightly one.

    Fails at the end with every case that failed and how to repeat it.
    """
    record = _records.setdefault(what, {"tried": 0, "errors": [], "hangs": []})
    first = None
    for number in range(many if NIGHTLY else few):
        began = time.process_time()
        try:
            case(random.Random(f"{SEED}:{what}:{number}"))
        except Exception as error:
            first = first or error
            record["errors"].append(f"case {number}: {''.join(traceback.format_exception_only(error)).strip()}")
        if time.process_time() - began > HANG_SECONDS:
            record["hangs"].append(f"case {number}: {time.process_time() - began:.0f} s")
        record["tried"] += 1
    found = record["errors"] + record["hangs"]
    if found:
        raise AssertionError("\n".join([f"STAND_IN_SEED={SEED} repeats these:", *found])) from first


def write_record():
    """Say in RECORD what a nightly run tried and found; what other runs of the tests tried stays there."""
    before = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    now = {what: {"date": time.strftime("%Y-%m-%d"), "seed": SEED, **record} for what, record in _records.items()}
    RECORD.write_text(json.dumps({**before, **now}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
