"""A process in which whole trainings on tiny models are killed or run out of room: `python training_process.py BASE`.

BASE: a new folder for ComfyUI's models and the data.

Reads a JSON line for each training: "name" of data and adapter, and at most one of
    "kill": before which change of a file the training is killed, counted from 1;
    "kill_beyond": in the write that takes a file beyond so many bytes it is killed;
    "room": the most bytes that a file may have, beyond which the disk is full.
Answers with a JSON line: "ended", one of "done", "killed", "UserError" and "error", and what it said. Every training is
a fork of this process, so what they share is loaded once.
"""
import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "scripts")]
from support import environment

base = Path(sys.argv[1])
for name in ("models", "input", "output", "temp", "custom_nodes", "user"):
    (base / name).mkdir(parents=True)
environment.import_comfyui("--cpu", "--use-pytorch-cross-attention", "--base-directory", str(base))
torch.set_num_threads(1)  # threads do not survive a fork

from small_world import tiny_encoders, tiny_models  # noqa: F401  the first lets ComfyUI load the tiny encoders
from standin_core.errors import UserError
from standin_core.folders import register_folder
from standin_core.methods import TRAINED
from standin_core.stand_in.adapter import ADAPTERS
from standin_core.train.command import train_from_config
from standin_core.train.config import parse_config
from support import moving_photo


def config(name):
    return parse_config({
        "files": {"videos": str(base / "videos"), "data": str(base / "data" / name),
                  "diffusion_model": tiny_models.DIFFUSION_MODEL, "text_encoder": tiny_models.TEXT_ENCODER,
                  "vae": tiny_models.VAE, "clip_vision": tiny_models.CLIP_VISION},
        "adapter": {"name": name, "rank": 4},
        "data": {"fps": 16, "width": 64, "height": 48, "frames": 9, "references": 1,
                 "face": {"detector": "cascade", "size": 64}},
        "pairs": {"lowest": -1.0, "highest": 1.0, "embedder": "clip vision"},
        "train": {"steps": 6, "learning_rate": 1e-2, "warmup": 1, "ema": 0.9},
        "samples": {"every": 2, "count": 1, "steps": 1}}, TRAINED)


def write_inputs():
    tiny_models.write_tiny_models(base / "models")
    (base / "videos").mkdir()
    for name in ("one", "two"):
        moving_photo.write_video(base / "videos" / f"{name}.mp4", moving_photo.video(24, 160, 120))
        (base / "videos" / f"{name}.txt").write_text("名前 a person nods " * 20, encoding="utf-8")


def disturb(kill=None, kill_beyond=None, room=None):
    """See the docstring of the file."""
    changes = 0

    def count(event, arguments):
        nonlocal changes
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in ("os.rename", "os.mkdir", "os.remove")) or str(base) not in str(arguments[0]):
            return
        changes += 1
        if changes == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    if kill:
        sys.addaudithook(count)
    if kill_beyond or room:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill_beyond else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kill_beyond or room, resource.RLIM_INFINITY))


def disturbed_training(name, **disturbance):
    disturb(**disturbance)
    made = config(name)
    train_from_config(made, TRAINED[made.method].of(made.settings), lambda line: None)


def imported_by_a_training():
    """The names of all modules that a process has after one, in a line."""
    disturbed_training("first")
    return " ".join(sys.modules)


def answer(work):
    """How work ended in a fork, and what it said or returned."""
    read, write = os.pipe()
    process = os.fork()
    if not process:
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the answers go there
        said = {"ended": "done", "said": ""}
        try:
            said["said"] = work() or ""
        except UserError as error:
            said = {"ended": "UserError", "said": str(error)}
        except BaseException:
            said = {"ended": "error", "said": traceback.format_exc()}
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read()
    os.waitpid(process, 0)
    return json.loads(said or '{"ended": "killed", "said": ""}')


def main():
    assert answer(write_inputs)["ended"] == "done"
    register_folder(ADAPTERS)
    imported = answer(imported_by_a_training)
    assert imported["ended"] == "done", imported["said"]
    for name in imported["said"].split():
        with contextlib.suppress(ImportError):  # some have no name to import them by
            importlib.import_module(name)
    gc.freeze()  # a fork then copies less of the memory
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(functools.partial(disturbed_training, **json.loads(line)))) + "\n")
        sys.stdout.flush()


main()
