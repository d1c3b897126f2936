"""Train the Concat-ID models of the small world: all weights of the base model, as the authors do.

    .standin/venv/bin/python small_world/train_concat_id.py
    .standin/venv/bin/python small_world/train_concat_id.py --variant "first stage"
    .standin/venv/bin/python small_world/train_concat_id.py --people 2

Each is a whole model, so they stay in --cache, where the benchmark looks for them. The run goes on where it was
stopped.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

from small_world.method_training import settings_of, train_method
from small_world.models import WAN, concat_id_file
from standin_core.concat_id.training import ADALN, VARIANTS, ConcatIDMethod, ConcatIDSettings

SEED, STEPS = 0, {1: 1200, 2: 800}
LEARNING_RATE, WEIGHT_DECAY, REFERENCE_DROPOUT = 3e-4, 0.01, 0.1


def main(steps: int | None, variant: str, people: int, cache: Path) -> None:
    file = concat_id_file(cache, variant, people)
    method = ConcatIDMethod(ConcatIDSettings(file.stem, variant=variant, references=people), metadata=WAN.metadata())
    settings = settings_of(steps or STEPS[people], SEED, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
                           reference_dropout=REFERENCE_DROPOUT)
    train_method(method, settings, file, cache, people)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, help=f"{STEPS}, by the number of people")
    parser.add_argument("--variant", choices=VARIANTS, default=ADALN)
    parser.add_argument("--people", type=int, choices=(1, 2), default=1)
    parser.add_argument("--cache", type=Path, default=PACK / ".standin" / "small_world")
    options = parser.parse_args()
    main(options.steps, options.variant, options.people, options.cache)
