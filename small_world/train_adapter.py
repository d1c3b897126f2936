"""Train the Stand-In adapter of the small world, the base model frozen.

    .standin/venv/bin/python small_world/train_adapter.py
    .standin/venv/bin/python small_world/train_adapter.py --compared "shared positions" --seed 1

With --compared, it is one of the trainings that are compared: shorter, in --cache, where the benchmark looks for it.
The run lies in --cache and goes on where it was stopped; so do the adapters that the one that ships had on the way.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import safetensors.torch

from small_world.ablations import SEEDS, VARIANTS, compared_file
from small_world.method_training import settings_of, train_method
from small_world.models import ADAPTER_FILE, SNAPSHOTS, STORED, WEIGHTS, snapshot_file
from standin_core.stand_in.training import AdapterSettings, StandInMethod
from standin_core.stand_in.variant import PAPER
from standin_core.train.checkpoints import TrainingRun

STEPS, STEPS_COMPARED = 2000, 500
RANK = 32
LEARNING_RATE, LORAPLUS_RATIO = 5e-3, 2.0


def main(steps: int | None, seed: int, compared: str | None, cache: Path, out: Path) -> None:
    file = compared_file(cache, compared, seed) if compared else out / ADAPTER_FILE.name
    steps = steps or (STEPS_COMPARED if compared else STEPS)

    def on_step(run: TrainingRun, step: int) -> None:
        if step in SNAPSHOTS and not compared:
            run.finish(snapshot_file(cache, step))

    train_method(StandInMethod(AdapterSettings(file.stem, rank=RANK), variant=VARIANTS.get(compared, PAPER)),
                 settings_of(steps, seed, learning_rate=LEARNING_RATE, loraplus_ratio=LORAPLUS_RATIO), file, cache,
                 on_step=on_step)
    with safetensors.safe_open(file, "pt") as trained:
        said = trained.metadata()
    safetensors.torch.save_file({key: tensor.to(STORED) for key, tensor in safetensors.torch.load_file(file).items()},
                                file, metadata=said)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, help=f"{STEPS}, or {STEPS_COMPARED} of those that are compared")
    parser.add_argument("--compared", choices=VARIANTS)
    parser.add_argument("--seed", type=int, choices=SEEDS, default=0)
    parser.add_argument("--cache", type=Path, default=PACK / ".standin" / "small_world")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    main(options.steps, options.seed, options.compared, options.cache, options.out)
