"""Comparisons as pictures: a plot of the series, the frames least and most like the photo, and a ranking of videos."""
from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import torch

from ..face import to_uint8
from .chart import BLUE, ORANGE, Series, as_image, line_chart
from .compare import Comparison
from .ranking import Tried

TILE, CAPTION, SHOWN = 176, 26, 5
FRAME_WIDTH, FRAMES_ACROSS = 300, 4  # in the sheet of a ranking
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


def ranking_sheet(ranking: list[Tried], videos: list[torch.Tensor]) -> torch.Tensor:
    """The videos, the best first, each with frames from its beginning to its end, [1, H, W, 3] float in 0..1.

    videos: in the order in which they came, of [F, H, W, 3].
    """
    across = min(FRAMES_ACROSS, max(len(video) for video in videos))  # of one video
    columns = FRAMES_ACROSS // across
    rows = -(-len(ranking) // columns)
    sheet = PIL.Image.new("RGB", (columns * across * FRAME_WIDTH, rows * (TILE + CAPTION)), PAPER)
    font = PIL.ImageFont.load_default(13)
    for place, tried in enumerate(ranking):
        row, column = divmod(place, columns)
        left, top = column * across * FRAME_WIDTH, row * (TILE + CAPTION)
        video = videos[tried.index]
        shown = np.unique(np.linspace(0, len(video) - 1, across).round().astype(int))
        for number, frame in enumerate(to_uint8(video[shown, ..., :3])):
            picture = PIL.ImageOps.pad(PIL.Image.fromarray(frame), (FRAME_WIDTH - 6, TILE - 6),
                                       PIL.Image.Resampling.LANCZOS, PAPER, (0, 0.5))
            sheet.paste(picture, (left + number * FRAME_WIDTH + 3, top + 3))
        PIL.ImageDraw.Draw(sheet).text((left + 3, top + TILE + CAPTION // 2), f"{place + 1}. {tried.words()}", fill=INK,
                                       font=font, anchor="lm")
    return as_image(sheet)
