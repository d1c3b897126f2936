"""Is the person in the photo the person in the video? The small world's answers, for people nobody was trained on.

    .standin/venv/bin/python benchmarks/small_world.py --people 48

Every condition generates the same cases: the same people, photos, captions and seeds. What is measured is explained in
small_world/measure.py, what differs between the conditions in small_world/conditions.py. Readings of conditions are
kept, so a run that was stopped goes on. It writes benchmarks/results/small_world_<name>.json.
"""
from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import numpy as np
import torch

from machine import machine
from small_world.cases import Case, cases, real, still
from small_world.conditions import Condition, conditions, subject_tokens
from small_world.kept_readings import KeptReadings
from small_world.measure import by_trait, calibrate, kept, score, validity
from small_world.reader import Readings, read
from small_world.tasks import TRUTH, WITH, WITHOUT, drift, ranking, side_by_side, swapped
from small_world.world import SAMPLED, World

RESULTS = Path(__file__).resolve().parent / "results"
TURNS = 5


@torch.inference_mode()
def main(people: int, name: str, cache: Path) -> None:
    world, some, kept_readings = World(), cases(people), KeptReadings(cache, people)

    def readings_of(what: str, video: Callable[[Case], np.ndarray], weights: Path | None = None) -> list[Readings]:
        return kept_readings.readings(what, lambda: (read(world.reader, video(case)) for case in some), weights)

    truth = readings_of(TRUTH, lambda case: world.through_vae(real(case)))
    photo = readings_of("the photo, still", lambda case: world.through_vae(still(case.photo)))
    found = {**machine(), "people": people, "sampled": SAMPLED, "calibration": calibrate(world.reader),
             "tokens without background": float(np.mean([len(subject_tokens(case)) for case in some])),
             TRUTH: dataclasses.asdict(score(some, truth)),
             "the photo, still": measured(some, photo, truth)}
    compared = {}
    measurable = conditions(world, cache)
    for what, condition in measurable.items():
        begun = time.monotonic()
        readings = readings_of(what, functools.partial(generated, world, condition), condition.weights)
        found[what] = {"curve": condition.curve, "at": condition.at, **measured(some, readings, truth),
                       "traits": by_trait(some, readings), "more_than": {
                           other: dataclasses.asdict(kept(some, readings, truth, those))
                           for other, those in compared.items()}}
        if what in (WITHOUT, WITH):
            compared[what] = readings
        sys.stdout.write(f"{time.monotonic() - begun:.0f} s {what}: {found[what]['kept']}\n")
        sys.stdout.flush()
    found["two people"] = side_by_side(world, kept_readings, people // 2, cache)
    found["seconds"] = seconds(world, {name: condition for name, condition in measurable.items() if name in (
        WITHOUT, WITH) or name.startswith("Concat-ID")}, some[0])
    found["face swap"] = swapped(world, some)
    found["ranking"] = ranking(world, some[:people // 2])
    found["long video"] = drift(world, some[:people // 2])
    (RESULTS / f"small_world_{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def seconds(world: World, compared: dict[str, Condition], case: Case) -> dict[str, float]:
    """How long a video takes by each condition: the median of TURNS, in each of which all make one, after a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in compared}
    for turn in range(TURNS + 1):
        for name, condition in compared.items():
            begun = time.perf_counter()
            generated(world, condition, case)
            if turn:
                taken[name].append(time.perf_counter() - begun)
    return {name: round(float(np.median(times)), 3) for name, times in taken.items()}


def generated(world: World, condition: Condition, case: Case) -> np.ndarray:
    return world.generate(case.clip, case.seed, condition.model_of(case), **condition.sampled)


def measured(some: list[Case], readings: list[Readings], truth: list[Readings]) -> dict:
    return {**dataclasses.asdict(score(some, readings)), **dataclasses.asdict(kept(some, readings, truth)),
            "validity": validity(readings, truth)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=48)
    parser.add_argument("--name", default="cpu")
    parser.add_argument("--cache", type=Path, default=PACK / ".standin" / "small_world",
                        help="where the other trainings lie, and what was read so far")
    options = parser.parse_args()
    main(options.people, options.name, options.cache)
