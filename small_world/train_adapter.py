"""Train the Stand-In adapter of the small world with the pack's own trainer, the base model frozen.

    .standin/venv/bin/python small_world/train_adapter.py
    .standin/venv/bin/python small_world/train_adapter.py --ablation "shared positions" --seed 1

The run lies in --cache and goes on where it was stopped; so do the adapters that the paper's first seed had on the way.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import comfy.sd
import safetensors.torch
import torch

from small_world.ablations import ABLATIONS, variant_of
from small_world.data import training_examples
from small_world.models import SNAPSHOTS, STORED, WAN, WAN_FILE, WEIGHTS, adapter_file, load, snapshot_file
from standin_core.stand_in.training import AdapterSettings, StandInMethod
from standin_core.train import SampleSettings, TrainSettings
from standin_core.train.session import training_run

RANK = 32
BATCH = 32
REPORTED_EVERY = 100


def main(steps: int, seed: int, ablation: str | None, cache: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = adapter_file(ablation, seed, out)
    shards = training_examples(cache)
    model = comfy.sd.load_diffusion_model_state_dict(load(WAN_FILE), model_options={"dtype": torch.float32},
                                                     metadata=WAN.metadata())
    settings = TrainSettings(steps=steps, batch_size=BATCH, together=BATCH, learning_rate=5e-3, loraplus_ratio=2.0,
                             cosine=True, ema=0.995, shift=2.0, checkpointing=False, seed=seed)
    method = StandInMethod(AdapterSettings(file.stem, rank=RANK), variant=variant_of(ablation))
    run = training_run(model, method, shards, cache / f"{file.stem}_{seed}", settings, SampleSettings(every=500),
                       base_model=WAN_FILE.name)
    losses, started = [], time.monotonic()
    for step, loss in run.steps():
        losses.append(loss)
        if step in SNAPSHOTS and ablation is None and seed == 0:
            run.finish(snapshot_file(cache, step))
        if step % REPORTED_EVERY == 0:
            record = {"seed": seed, "minutes": round((time.monotonic() - started) / 60, 1), "step": step,
                      "loss": round(sum(losses) / len(losses), 4)}
            losses.clear()
            with file.with_suffix(".log").open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            sys.stdout.write(f"{record}\n")
            sys.stdout.flush()
    run.finish(file)
    with safetensors.safe_open(file, "pt") as trained:
        said = trained.metadata()
    safetensors.torch.save_file({key: tensor.to(STORED) for key, tensor in safetensors.torch.load_file(file).items()},
                                file, metadata=said)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--ablation", choices=ABLATIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=PACK / ".standin" / "small_world")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    main(options.steps, options.seed, options.ablation, options.cache, options.out)
