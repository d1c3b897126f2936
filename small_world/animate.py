"""Make docs/images/small_world.webp: the demo's people by the models that ship, their photos above their videos.

    .standin/venv/bin/python small_world/animate.py
"""
from __future__ import annotations

import sys
import textwrap
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from small_world.animation import animated_webp, enlarged, there_and_back
from small_world.cases import DEMONSTRATED, cases
from small_world.models import ADAPTER_FILE
from small_world.settings import SETTINGS
from small_world.world import World
from standin_core.stand_in.adapter import load_adapter

IMAGE = PACK / "docs" / "images" / "small_world.webp"
HEIGHT, GAP, LABELS = 128, 6, 132  # px: of a picture, between two, and of the words at the left
LETTERS, LINE = 18, 11  # px, and letters in a line
WHITE, INK = (255, 255, 255), (60, 60, 60)


def sheet(rows: list[list[np.ndarray]], labels: list[str]) -> PIL.Image.Image:
    """rows: of pictures [H, W, 3] uint8, one label for each row."""
    pictures = [[enlarged(picture, HEIGHT) for picture in row] for row in rows]
    width = max(picture.width for row in pictures for picture in row)
    whole = PIL.Image.new("RGB", (LABELS + len(rows[0]) * (width + GAP), len(rows) * (HEIGHT + GAP) - GAP), WHITE)
    draw, font = PIL.ImageDraw.Draw(whole), PIL.ImageFont.load_default(LETTERS)
    for i, (row, label) in enumerate(zip(pictures, labels)):
        top = i * (HEIGHT + GAP)
        draw.multiline_text((0, top + HEIGHT // 2), label, INK, font, anchor="lm")
        for j, picture in enumerate(row):
            whole.paste(picture, (LABELS + j * (width + GAP) + (width - picture.width) // 2, top))
    return whole


@torch.inference_mode()
def main() -> None:
    world, adapter, some = World(), load_adapter(ADAPTER_FILE), cases(DEMONSTRATED)
    videos = [[there_and_back(world.generate(
        case.clip, case.seed, world.with_identity(case, adapter, **setting.controls))) for case in some]
        for setting in SETTINGS]
    photos = [case.photo for case in some]
    labels = ["photo", *(textwrap.fill(setting.name, LINE) for setting in SETTINGS)]
    frames = [sheet([photos, *([video[i] for video in row] for row in videos)], labels)
              for i in range(len(videos[0][0]))]
    IMAGE.write_bytes(animated_webp(frames))
    sys.stdout.write(f"{IMAGE}: {IMAGE.stat().st_size / 1e3:.0f} kB\n")


if __name__ == "__main__":
    main()
