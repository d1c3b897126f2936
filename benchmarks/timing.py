"""Timing in turns: each variant once in every round, so that what else a machine does falls on all of them alike."""
from __future__ import annotations

import functools
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable

import torch

CONFIDENCE = 0.95
CLOCKS = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active"


def seconds_of(call: Callable[[], object], device: torch.device, queued: bool = False) -> float:
    """By the events of a GPU, by the clock on a CPU.

    queued: on a GPU, behind another such call, during which the host launches the one that is timed. Otherwise what the
        host does until its last launch counts as well.
    """
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if queued:
        call()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def in_turns(names: Iterable[str], seconds: Callable[[str], float], rounds: int, against: dict[str, str],
             warm_up: float = 0.0, after_round: Callable[[], None] = lambda: None) -> dict[str, dict[str, float]]:
    """Each variant's time and its ratio to another one, over the rounds.

    seconds: takes those of one variant, by its name.
    against: for each variant the one that it is divided by, within a round.
    warm_up: seconds of work that is not counted, in which a card raises its clocks; one round at least.
    after_round: called after each round that counts.
    -> ms; ratio and noise, the median and half the interquartile range; low and high, of ``median_interval``, which are
    left out where there is none.
    """
    names = list(names)
    started = time.perf_counter()
    while True:
        for name in names:
            seconds(name)
        if time.perf_counter() - started >= warm_up:
            break
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        # each round begins with another variant, so that none is always the one after a pause
        first = i % len(names)
        for name in (*names[first:], *names[:first]):
            times[name].append(seconds(name))
        after_round()
    return {name: _summary(times[name], times[against[name]]) for name in names}


def _summary(times: list[float], others: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(times, others)]
    quarter, median, three_quarters = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"ms": 1000 * statistics.median(times), "ratio": median, "noise": (three_quarters - quarter) / 2,
            **dict(zip(("low", "high"), median_interval(ratios) or ()))}


def median_interval(values: list[float]) -> tuple[float, float] | None:
    """The narrowest interval from the k-th least to the k-th greatest value that holds the true median with CONFIDENCE.

    None for fewer than 6 values, whose whole range does not.
    """
    k = _place(len(values))
    ordered = sorted(values)
    return (ordered[k - 1], ordered[-k]) if k else None


@functools.cache
def _place(count: int) -> int:
    """The largest k for which 1 - 2 P(Bin(count, 1/2) < k) is CONFIDENCE at least, or 0.

    Each value is below the true median with 1/2, and that lies below the k-th least where fewer than k values do.

    Source: H. A. David and H. N. Nagaraja, Order Statistics (2003), section 7.1.
    """
    return max(k for k in range(count // 2 + 1)
               if 1 - 2 * sum(math.comb(count, below) for below in range(k)) / 2**count >= CONFIDENCE)


def beside(copies: list[tuple[float, float]], work: list[tuple[float, float]]) -> float:
    """Which share of the time of copies lies in the time of work.

    copies, work: (begin, end) of each, in any order and one unit; those of the work may overlap each other.
    """
    whole = sum(end - begin for begin, end in copies)
    merged: list[list[float]] = []
    for begin, end in sorted(work):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    shared = sum(max(0.0, min(end, there[1]) - max(begin, there[0])) for begin, end in copies for there in merged)
    return shared / whole if whole else 1.0


class Clocks:
    """What a card's driver tells at the end of each round, while the card is still warm from it; nothing on a CPU.

    noted: clocks, power, temperature and why the card holds back.
    """

    def __init__(self):
        self.noted: list[str] = []

    def note(self) -> None:
        if not torch.cuda.is_available() or torch.version.hip is not None:
            return
        asked = subprocess.run(["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"], capture_output=True,
                               text=True)
        self.noted.append(asked.stdout.strip() or asked.stderr.strip())
