"""How the small world is sampled: steps, cfg and shift are chosen on people who are neither trained on nor reported on.

    .standin/venv/bin/python benchmarks/small_world_settings.py

Each line turns one of them; small_world/world.py has what was chosen. It writes
benchmarks/results/small_world_settings.json.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import torch

from small_world.cases import cases, real
from small_world.measure import kept, score, validity
from small_world.models import ADAPTER_FILE
from small_world.people import split
from small_world.reader import read
from small_world.world import SAMPLED, World
from standin_core.stand_in.adapter import load_adapter

RESULT = Path(__file__).resolve().parent / "results" / "small_world_settings.json"
TRIED = ({}, {"cfg": 1.0}, {"cfg": 1.5}, {"cfg": 3.0}, {"cfg": 5.0}, {"shift": 1.0}, {"shift": 3.0}, {"steps": 8},
         {"steps": 20})


@torch.inference_mode()
def main(people: int) -> None:
    world, adapter, some, rows = World(), load_adapter(ADAPTER_FILE), cases(people, people=split().validation), []
    truth = [read(world.reader, world.through_vae(real(case))) for case in some]
    for turned in TRIED:
        readings = [read(world.reader, world.generate(
            case.clip, case.seed, world.with_identity(case, adapter), **turned)) for case in some]
        rows.append({**SAMPLED, **turned, **dataclasses.asdict(kept(some, readings, truth)),
                     "validity": validity(readings, truth), "actions": score(some, readings).actions})
        sys.stdout.write(f"{rows[-1]}\n")
        sys.stdout.flush()
    RESULT.write_text(json.dumps({"people": people, "tried": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=24)
    main(parser.parse_args().people)
