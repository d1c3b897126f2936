"""A comparison as pictures: a plot of its series, and the frames least and most like the photo."""
from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from .chart import BLUE, ORANGE, Series, as_image, line_chart
from .compare import Comparison

TILE, CAPTION, SHOWN = 176, 26, 5
INK, PAPER = (40, 40, 40), (255, 255, 255)


def plot(comparison: Comparison) -> torch.Tensor:
    """Similarity and copied pixels over the frames, [1, 360, 960, 3] float in 0..1; a frame without a face is a gap."""
    values = np.concatenate((comparison.similarity, comparison.copied, [0.0]))
    return as_image(line_chart([Series("similarity to the photo", BLUE, comparison.similarity),
                                Series("copied pixels (1 is the photo itself)", ORANGE, comparison.copied)],
                               "frame", lowest=float(np.floor(5 * np.nanmin(values)) / 5), highest=1.0))


def contact_sheet(comparison: Comparison) -> torch.Tensor:
    """The photo, then the frames least and most like it, [1, H, W, 3] float in 0..1."""
    seen = np.flatnonzero(~np.isnan(comparison.similarity))
    ranked = seen[np.argsort(comparison.similarity[seen], kind="stable")]
    worst, best = ranked[:SHOWN], ranked[::-1][:SHOWN]
    columns = 1 + max(len(worst), 1)
    sheet = PIL.Image.new("RGB", (columns * TILE, 2 * (TILE + CAPTION)), PAPER)
    font = PIL.ImageFont.load_default(13)
    for row, (name, frames) in enumerate((("least", worst), ("most", best))):
        tiles = [(comparison.photo, "the photo" if row == 0 else "")] if row == 0 else []
        tiles += [(comparison.crops[frame], f"{name} {comparison.similarity[frame]:.2f}, frame {frame + 1}")
                  for frame in frames]
        for column, (crop, words) in enumerate(tiles, start=0 if row == 0 else 1):
            picture = PIL.Image.fromarray(crop).resize((TILE - 6, TILE - 6), PIL.Image.Resampling.LANCZOS)
            corner = column * TILE + 3, row * (TILE + CAPTION) + 3
            sheet.paste(picture, corner)
            PIL.ImageDraw.Draw(sheet).text((corner[0], corner[1] + TILE), words, fill=INK, font=font, anchor="lm")
    return as_image(sheet)
