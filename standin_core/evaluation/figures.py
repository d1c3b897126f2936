"""A comparison as pictures: its series as a plot, its best and worst frames beside the photo."""
from __future__ import annotations

import itertools

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from .compare import Comparison

WIDTH, HEIGHT = 960, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 44, 40
INK, GRID, PAPER = (40, 40, 40), (222, 222, 222), (255, 255, 255)
BLUE, ORANGE = (31, 96, 180), (214, 110, 20)
TILE, CAPTION, SHOWN = 176, 26, 5


def plot(comparison: Comparison) -> torch.Tensor:
    """[1, 360, 960, 3] float in 0..1: similarity and copied pixels over the frames; gaps are frames without a face."""
    image = PIL.Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = PIL.ImageDraw.Draw(image)
    frames = len(comparison.similarity)
    values = np.concatenate((comparison.similarity, comparison.copied))
    lowest = min(0.0, np.floor(10 * np.nanmin(values)) / 10) if np.isfinite(values).any() else 0.0

    def at(frame: float, value: float) -> tuple[float, float]:
        return (LEFT + (WIDTH - LEFT - RIGHT) * frame / max(frames - 1, 1),
                HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - lowest) / (1 - lowest))

    for value in np.arange(lowest, 1.01, 0.2):
        y = at(0, value)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=GRID)
        draw.text((LEFT - 8, y), f"{value:.1f}", fill=INK, font=_font(14), anchor="rm")
    for frame in sorted({0, frames // 4, frames // 2, 3 * frames // 4, frames - 1}):
        draw.text((at(frame, 0)[0], HEIGHT - BOTTOM + 8), str(frame + 1), fill=INK, font=_font(14), anchor="ma")
    draw.text((WIDTH - RIGHT, HEIGHT - 4), "frame", fill=INK, font=_font(14), anchor="rs")
    for series, colour in ((comparison.copied, ORANGE), (comparison.similarity, BLUE)):
        points = [None if np.isnan(value) else at(frame, value) for frame, value in enumerate(series)]
        for first, second in itertools.pairwise(points):
            if first is not None and second is not None:
                draw.line([first, second], fill=colour, width=3)
        for point in filter(None, points):
            draw.ellipse([point[0] - 2, point[1] - 2, point[0] + 2, point[1] + 2], fill=colour)
    x = LEFT
    for words, colour in (("similarity to the photo", BLUE), ("copied pixels (1 is the photo itself)", ORANGE)):
        draw.rectangle([x, 16, x + 14, 30], fill=colour)
        draw.text((x + 22, 23), words, fill=INK, font=_font(16), anchor="lm")
        x += 60 + draw.textlength(words, font=_font(16))
    return _tensor(image)


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
            PIL.ImageDraw.Draw(sheet).text((corner[0], corner[1] + TILE), words, fill=INK, font=_font(13), anchor="lm")
    return _tensor(sheet)


def _font(size: int):
    return PIL.ImageFont.load_default(size)


def _tensor(image: PIL.Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy())[None].float() / 255
