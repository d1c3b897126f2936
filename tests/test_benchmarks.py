"""The benchmark of a card, with every branch at toy sizes on a CPU; its figures are not looked at."""
import gzip
import json
import subprocess
import sys

import pytest

from pack import PACK

CARD = PACK / "benchmarks" / "card.py"


def test_every_stage_leaves_its_figures(tmp_path):
    program = subprocess.run([sys.executable, CARD, "--dry-run", "--results", tmp_path], capture_output=True, text=True)
    assert program.returncode == 0, program.stdout + program.stderr
    record = json.loads((tmp_path / "card_dry_run.json").read_text())
    assert {"attention", "480p, every cache", "720p", "480p, batch of 2", "480p, fp8 weights", "480p, torch.compile",
            "480p, DynamicVRAM"} <= set(record)
    for stage, result in record.items():
        assert "failed" not in result, (stage, result)
        for part in result["attention"] if stage == "attention" else [result["model"]]:
            assert {"plain", "plain again", "merge", "concatenate"} <= {
                name.rpartition(": ")[2] for name in part["timed"]}
            assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in part["timed"].values())
    assert set(record["480p, every cache"]["model"]["timed"]) >= {
        "merge, offloaded", "merge, streaming", "merge, fp8"}
    assert (tmp_path / "card_dry_run.png").stat().st_size > 10_000
    with gzip.open(tmp_path / "card_dry_run_timeline.json.gz") as trace:
        assert any("attention" in event.get("name", "") for event in json.load(trace)["traceEvents"])
    model = record["480p, every cache"]["model"]
    assert model["timeline"] == {"copies_ms": 0, "share_beside_computing": 1}  # a CPU copies nothing to itself
    (trial,) = model["once_a_process"].values()  # of PyTorch's attention; the kernels need a card
    assert trial["trial_ms"] > 0 and "compile_ms" in trial


def test_nothing_is_timed_behind_a_red_check(tmp_path):
    program = subprocess.run(
        [sys.executable, CARD, "--dry-run", "--results", tmp_path, "--check", "tests/no_such_test.py"],
        capture_output=True, text=True)
    assert program.returncode != 0
    assert "the check is red, so nothing was timed" in program.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("copies, work, share", [
    ([(0, 10)], [(0, 10)], 1.0), ([(0, 10)], [], 0.0), ([], [(0, 5)], 1.0), ([(0, 10)], [(5, 20)], 0.5),
    ([(0, 10)], [(6, 8), (0, 4), (2, 4)], 0.6), ([(0, 4), (10, 14)], [(2, 12)], 0.5),
    ([(0, 10)], [(0, 9), (1, 2), (8, 10)], 1.0)])
def test_copies_beside_computing(copies, work, share):
    sys.path.append(str(PACK / "benchmarks"))
    from timing import beside

    assert beside(copies, work) == pytest.approx(share)


@pytest.mark.parametrize("variant, low, high", [("as long", 0.8, 1.25), ("twice as long", 1.6, 2.5)])
def test_the_ratio_is_that_of_the_work(variant, low, high):
    """By a clock that is made: noise is on both sides alike, and every third round is a slow one."""
    sys.path.append(str(PACK / "benchmarks"))
    from timing import in_turns

    calls = iter(range(10**6))
    work = {"plain": 1.0, "as long": 1.0, "twice as long": 2.0}

    def seconds(name):
        i = next(calls)
        return work[name] * (3.0 if i // 3 % 3 == 0 else 1.0) * (1 + 0.01 * (i % 7))

    row = in_turns(work, seconds, 30, dict.fromkeys(work, "plain"))[variant]
    assert low < row["low"] <= row["ratio"] <= row["high"] < high
    assert row["high"] - row["low"] < 0.2
