"""What a run shows of itself: its losses, and what the method makes so far."""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..evaluation.chart import BLUE, ORANGE, Series, as_image, line_chart
from ..files import read_lines

LOSSES, LOSS_PICTURE, SAMPLES = "loss.jsonl", "loss.png", "samples"  # in a run's folder
SMOOTHED = 0.05  # of the steps so far, the width of the mean that is drawn over the losses


def run_pictures(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture of the losses, and the last one of samples or, without any, the losses again.

    folder: of the run.

    Returns two pictures [1, H, W, 3] in 0..1.
    """
    loss = loss_picture([line["loss"] for line in read_lines(folder / LOSSES)])
    samples = sorted((folder / SAMPLES).glob("step_*.png"))
    return as_image(loss), as_image(PIL.Image.open(samples[-1]) if samples else loss)


def loss_picture(losses: list[float | None]) -> PIL.Image.Image:
    """Draw every loss, and their mean over the steps around.

    losses: of all steps; None, which was no number, is a gap.
    """
    values = np.array([math.nan if loss is None else loss for loss in losses], float)
    width = max(1, round(SMOOTHED * len(values)))
    known, window = ~np.isnan(values), np.ones(width)
    counted = np.convolve(known, window, "same")
    mean = np.convolve(np.where(known, values, 0), window, "same") / np.where(counted, counted, np.nan)
    return line_chart([Series(f"mean of {width} steps", ORANGE, mean, dots=False),
                       Series("loss of each step", BLUE, values, dots=False)], "step")
