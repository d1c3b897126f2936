"""The benchmark of a card, with every branch at toy sizes on a CPU; its figures are not looked at."""
import gzip
import itertools
import json
import re
import subprocess
import sys

import pytest

from support.pack import PACK

sys.path.append(str(PACK / "benchmarks"))
import card

import timing
from machine import machine
from tolerances import WHOLE_RUN

CARD = PACK / "benchmarks" / "card.py"


def test_every_stage_leaves_its_figures(tmp_path):
    program = subprocess.run([sys.executable, CARD, "--dry-run", "--results", tmp_path], capture_output=True, text=True)
    assert program.returncode == 0, program.stdout + program.stderr
    found = card.stages(True, tmp_path)
    assert card.expected(found) in program.stdout
    record = json.loads((tmp_path / "card_dry_run.json").read_text())
    assert re.fullmatch("([0-9a-f]{40}(-dirty)?)?", record["measured_on"].pop("commit"))
    here = machine()
    assert record["measured_on"] == {part: here[part] for part in ("machine", "torch", "comfyui", "beside")}
    assert "triton" in here["beside"] and "comfy-kitchen" in here["beside"]
    assert set(record["agreement"]) == set(card.AGREEMENTS)
    for distances in record["agreement"].values():
        assert distances["plain"] > 0.005 and distances["concatenate"] == 0
        assert max(distances[name] for name in ("auto", "merge", "merge, offloaded", "merge, streaming")) < WHOLE_RUN
        assert 0 < distances["merge, fp8"] < 0.05 * distances["plain"]
    record = record["stages"]
    assert set(record) == set(filter(card.installed, found))
    for stage, result in record.items():
        assert "failed" not in result, (stage, result)
        block = [result["pieces"], *result["attention"]] if stage == "block" else []
        for part in block or [result["model"]]:
            for row in part["timed"].values():
                assert 0 < row.get("low", row["ratio"]) <= row["ratio"] <= row.get("high", row["ratio"])
                assert ("low" in row) == (stage == "block")  # whose rounds are enough
        if not block:  # as many as its time was computed for
            assert {"plain", "plain again", "auto", "merge", "concatenate"} <= set(result["model"]["timed"])
            assert len(result["model"]["timed"]) == found[stage].variants
    (attention,) = record["block"]["attention"]
    hosts = [name.rpartition(": ") for name in attention["timed"]]
    assert {ways for _, _, ways in hosts} >= {"plain", "plain again", "merge", "concatenate"}
    assert len(hosts) + ("Triton kernel" in attention["refused"]) == card.WAYS
    assert attention["auto"].keys() == {host for host, _, _ in hosts}
    assert all(choice.startswith("merge, ") for choice, *_ in attention["auto"].values())
    pieces = record["block"]["pieces"]
    assert {"block", "block that reads an identity", "q, k, v", "RMSNorm and RoPE of q and k", "attention",
            "identity's state", "merge of two states", "feed-forward"} <= set(pieces["timed"])
    assert pieces["timed"]["block"]["ratio"] == 1
    assert pieces["refused"]["identity by the Triton kernel"] == "it runs on CUDA, not on cpu"
    assert set(record["480p, every cache"]["model"]["timed"]) >= {
        "merge, offloaded", "merge, streaming", "merge, fp8"}
    assert (tmp_path / "card_dry_run.png").stat().st_size > 10_000
    with gzip.open(tmp_path / "card_dry_run_timeline.json.gz") as trace:
        assert any("attention" in event.get("name", "") for event in json.load(trace)["traceEvents"])
    model = record["480p, every cache"]["model"]
    assert model["timeline"] == {"copies_ms": 0, "share_beside_computing": 1}  # a CPU copies nothing to itself
    (trial,) = model["once_a_process"].values()  # of PyTorch's attention; the kernels need a card
    assert trial["trial_ms"] > 0 and "compile_ms" in trial


@pytest.mark.parametrize("name", card.THROUGHPUT)
def test_a_card_is_done_in_an_evenings_minutes(name, tmp_path):
    """By arithmetic; and no stage comes near to being stopped."""
    seconds = [stage.seconds(name) for stage in card.stages(False, tmp_path).values()]
    minutes = (card.CHECK_SECONDS + sum(seconds)) / 60
    assert minutes < 25
    documentation = (PACK / "docs" / "performance.md").read_text(encoding="utf-8")
    (told,) = re.findall(rf"(\d+)(?: minutes)? on an {name}", documentation)
    assert round(minutes) == int(told)
    assert max(seconds) < card.STAGE_SECONDS / 2


@pytest.mark.parametrize("size, tokens", [("832x480x81", 32760), ("1280x720x81", 75600)])
@pytest.mark.parametrize("name", card.THROUGHPUT)
def test_the_time_of_a_block_is_that_of_the_documentation(name, size, tokens):
    table = (PACK / "docs" / "performance.md").read_text(encoding="utf-8")
    (milliseconds,) = re.findall(rf"^\| {name}, flash, {size} \| ([\d,]+) ms \|", table, re.MULTILINE)
    assert 1000 * card.block_seconds(tokens, name) == pytest.approx(int(milliseconds.replace(",", "")), rel=0.01)


ROW = {"ratio": 1.0, "low": 1.0, "high": 1.0}
HERE = {"commit": "c0ffee", "machine": "a card", "torch": "2.11.0", "comfyui": "0.30.0", "beside": "triton 3.6"}


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Calls the program with these arguments, and gives the stages that it timed."""
    asked = []

    def timed(stage, arguments):
        asked.append(stage)
        return {"model": {"timed": {"plain": ROW, "auto": ROW}}}

    def call(*arguments, here=HERE):
        asked.clear()
        monkeypatch.setattr(card, "measured_on", lambda: here)
        monkeypatch.setattr(sys, "argv", ["card.py", *arguments, "--results", str(tmp_path)])
        card.main()
        return list(asked)

    monkeypatch.setattr(card, "timed", timed)
    monkeypatch.setattr(card, "check", lambda arguments, dry: {})
    return call


@pytest.mark.parametrize("part", HERE)
def test_figures_of_something_else_are_not_gone_on_with(part, called, tmp_path):
    called("--name", "a_card")
    before = (tmp_path / "card_a_card.json").read_bytes()
    with pytest.raises(SystemExit, match=f"was measured on {part} '{HERE[part]}' and not 'other': take another --name"):
        called("--name", "a_card", here=HERE | {part: "other"})
    assert (tmp_path / "card_a_card.json").read_bytes() == before
    assert not called("--name", "a_card")


def test_a_dry_run_begins_anew(called, tmp_path):
    every = called("--dry-run")
    assert every and called("--dry-run") == every
    assert called("--dry-run", here=HERE | {"commit": "other"}) == every


def test_a_second_call_goes_on_where_the_first_one_stopped(called, tmp_path, monkeypatch):
    asked, stops_at = [], "720p"

    def timed(stage, arguments):
        if stage == stops_at:
            raise KeyboardInterrupt
        asked.append(stage)
        return {"failed": "no memory"} if stage == "block" else {"model": {"timed": {"plain": ROW, "auto": ROW}}}

    monkeypatch.setattr(card, "timed", timed)
    with pytest.raises(KeyboardInterrupt):
        called("--name", "a_card")
    assert asked == ["block", "480p, every cache"]
    asked, stops_at = [], None
    called("--name", "a_card")
    assert asked == [stage for stage in filter(card.installed, card.stages(False, tmp_path))
                     if stage != "480p, every cache"]


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
    assert timing.beside(copies, work) == pytest.approx(share)


@pytest.mark.parametrize("rounds, first, last", [(6, 1, 6), (7, 1, 7), (9, 2, 8), (15, 4, 12)])
def test_the_interval_holds_the_median(rounds, first, last):
    """In 95 % of the cases or more, and not the next narrower one: each value is below 0, the true median, or above it
    in half of them, and all are counted."""
    held = narrower = 0
    for signs in itertools.product((-1, 1), repeat=rounds):
        values = [sign * (1 + i) for i, sign in enumerate(signs)]
        ordered = sorted(values)
        low, high = timing.median_interval(values)
        assert (ordered.index(low), ordered.index(high)) == (first - 1, last - 1)
        held += low < 0 < high
        narrower += ordered[first] < 0 < ordered[last - 2]
    assert narrower < 0.95 * 2**rounds <= held


@pytest.mark.parametrize("rounds", [2, 5])
def test_few_rounds_have_no_interval(rounds):
    row = timing.in_turns(["plain"], lambda name: 1.0, rounds, {"plain": "plain"})["plain"]
    assert row.keys() == {"ms", "ratio", "noise"}


@pytest.mark.parametrize("variant, low, high", [("as long", 0.8, 1.25), ("twice as long", 1.6, 2.5)])
def test_the_ratio_is_that_of_the_work(variant, low, high):
    """By a clock that is made: noise is on both sides alike, and every third round is a slow one."""
    calls = iter(range(10**6))
    work = {"plain": 1.0, "as long": 1.0, "twice as long": 2.0}

    def seconds(name):
        i = next(calls)
        return work[name] * (3.0 if i // 3 % 3 == 0 else 1.0) * (1 + 0.01 * (i % 7))

    row = timing.in_turns(work, seconds, 30, dict.fromkeys(work, "plain"))[variant]
    assert low < row["low"] <= row["ratio"] <= row["high"] < high
    assert row["high"] - row["low"] < 0.2
