"""A comparison as pictures: its series as a plot, its best and worst frames beside the photo."""
from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from .chart import BLUE, INK, ORANGE, PAPER, Series, as_image, font, line_chart
from .compare import Comparison

TILE, CAPTION, SHOWN = 176, 26, 5


def plot(comparison: Comparison) -> torch.Tensor:
    """[1, 360, 960, 3] float in 0..1: similarity and copied pixels over the frames; gaps are frames without a face."""
    values = np.concatenate((comparison.similarity, comparison.copied))
    fifths = 5 + (max(0, np.ceil(-5 * np.nanmin(values))) if np.isfinite(values).any() else 0)
    return as_image(line_chart([Series("similarity to the photo", BLUE, comparison.similarity),
                                Series("copied pixels (1 is the photo itself)", ORANGE, comparison.copied)],
                               "frame", np.linspace(1 - fifths / 5, 1, int(fifths) + 1)))


def contact_sheet(comparison: Comparison) -> torch.Tensor:
    """[1, H, W, 3] float in 0..1: the photo, then the frames least and most like it."""
    seen = np.flatnonzero(~np.isnan(comparison.similarity))
    ranked = seen[np.argsort(comparison.similarity[seen], kind="stable")]
    worst, best = ranked[:SHOWN], ranked[::-1][:SHOWN]
    columns = 1 + max(len(worst), 1)
    sheet = PIL.Image.new("RGB", (columns * TILE, 2 * (TILE + CAPTION)), PAPER)
    for row, (name, frames) in enumerate((("least", worst), ("most", best))):
        tiles = [(comparison.photo, "the photo" if row == 0 else "")] if row == 0 else []
        tiles += [(comparison.crops[frame], f"{name} {comparison.similarity[frame]:.2f}, frame {frame + 1}")
                  for frame in frames]
        for column, (crop, words) in enumerate(tiles, start=0 if row == 0 else 1):
            picture = PIL.Image.fromarray(crop).resize((TILE - 6, TILE - 6), PIL.Image.Resampling.LANCZOS)
            corner = column * TILE + 3, row * (TILE + CAPTION) + 3
            sheet.paste(picture, corner)
            PIL.ImageDraw.Draw(sheet).text((corner[0], corner[1] + TILE), words, fill=INK, font=font(13), anchor="lm")
    return as_image(sheet)
