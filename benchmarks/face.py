"""What the face stage costs: one photo, and the preparation of a face swap with its memory.

    python benchmarks/face.py                    # inside the environment that scripts/test.py prepares

Photo: scikit-image's astronaut, as it is and at 12 megapixels, with the built-in detector and no parser. Video:
832x480, a photographed face that moves, prepared in one pass at two lengths; the memory is the process's peak during
the pass, less what it held before and what the pass returns.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from support.environment import PACK, import_comfyui

import_comfyui("--cpu")

import cv2
import skimage.data
import torch

from support import moving_photo
from machine import machine
from support.peak_memory import resident_peak
from standin_core.face import FaceSettings, crop_faces
from standin_core.face_swap import SwapSettings, prepare_swap

WIDTH, HEIGHT = 832, 480
LENGTHS = (81, 321)
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="cpu", help="of the file in benchmarks/results")
    options = parser.parse_args()
    photo = skimage.data.astronaut()
    with torch.inference_mode():
        result = {
            **machine(), "command": " ".join(["benchmarks/face.py", *sys.argv[1:]]),
            "photo_seconds": {f"{side}x{side}": photo_seconds(cv2.resize(photo, (side, side)))
                              for side in (512, 3464)},
            "swap": [swap(length) for length in LENGTHS],
        }
    path = PACK / "benchmarks" / "results" / f"face_{options.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(path.read_text())


def photo_seconds(photo) -> float:
    image = torch.from_numpy(photo)[None].float() / 255
    settings = FaceSettings(detector="cascade", parser="none")
    times = []
    for _ in range(REPEATS + 1):  # the first reads the cascade from disk
        started = time.perf_counter()
        crop_faces(image, settings)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def swap(length: int) -> dict:
    frames = torch.from_numpy(moving_photo.video(length, WIDTH, HEIGHT)).float().div_(255)
    reference = crop_faces(torch.from_numpy(moving_photo.cut_out())[None].float() / 255,
                           FaceSettings(detector="cascade"))
    prepare_swap(frames[:1], reference, SwapSettings(detector="cascade"))  # the caches of libraries
    started = time.perf_counter()
    prepared, peak = resident_peak(lambda: prepare_swap(frames, reference, SwapSettings(detector="cascade")))
    seconds = time.perf_counter() - started
    returned = sum(tensor.numel() * tensor.element_size() for tensor in (prepared.frames, prepared.mask))
    return {"frames": length, "seconds": seconds, "ms_per_frame": 1000 * seconds / length,
            "returned_mib": returned / 2**20, "beside_mib": (peak - returned) / 2**20,
            "report": prepared.report.splitlines()[0]}


if __name__ == "__main__":
    main()
