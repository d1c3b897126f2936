"""A line chart, drawn with Pillow, which ComfyUI brings."""
from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

WIDTH, HEIGHT = 960, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 44, 40
INK, GRID, PAPER = (40, 40, 40), (222, 222, 222), (255, 255, 255)
BLUE, ORANGE = (31, 96, 180), (214, 110, 20)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """words: in the legend. values: [N], at 1 to N of the horizontal axis; NaN is a gap. dots: mark every value."""

    words: str
    colour: tuple[int, int, int]
    values: np.ndarray
    dots: bool = True


def line_chart(series: list[Series], horizontal: str, ticks: np.ndarray) -> PIL.Image.Image:
    """960x360, with the first of the series on top. horizontal: name of that axis; ticks: of the vertical axis, from
    its lowest to its highest value.
    """
    image = PIL.Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = PIL.ImageDraw.Draw(image)
    length, lowest, highest = len(series[0].values), ticks[0], ticks[-1]
    digits = max(1, int(np.ceil(-np.log10(ticks[1] - ticks[0]))))

    def at(index: float, value: float) -> tuple[float, float]:
        return (LEFT + (WIDTH - LEFT - RIGHT) * index / max(length - 1, 1),
                HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - lowest) / (highest - lowest))

    for value in ticks:
        y = at(0, value)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=GRID)
        draw.text((LEFT - 8, y), f"{value:.{digits}f}", fill=INK, font=font(14), anchor="rm")
    for index in sorted({0, length // 4, length // 2, 3 * length // 4, length - 1}):
        draw.text((at(index, 0)[0], HEIGHT - BOTTOM + 8), str(index + 1), fill=INK, font=font(14), anchor="ma")
    draw.text((WIDTH - RIGHT, HEIGHT - 4), horizontal, fill=INK, font=font(14), anchor="rs")
    for line in reversed(series):
        points = [None if np.isnan(value) else at(index, value) for index, value in enumerate(line.values)]
        for first, second in itertools.pairwise(points):
            if first is not None and second is not None:
                draw.line([first, second], fill=line.colour, width=3)
        for point in filter(None, points if line.dots else ()):
            draw.ellipse([point[0] - 2, point[1] - 2, point[0] + 2, point[1] + 2], fill=line.colour)
    x = LEFT
    for line in series:
        draw.rectangle([x, 16, x + 14, 30], fill=line.colour)
        draw.text((x + 22, 23), line.words, fill=INK, font=font(16), anchor="lm")
        x += 60 + draw.textlength(line.words, font=font(16))
    return image


def font(size: int):
    return PIL.ImageFont.load_default(size)


def as_image(image: PIL.Image.Image) -> torch.Tensor:
    """[1, H, W, 3] float in 0..1, ComfyUI's IMAGE"""
    return torch.from_numpy(np.asarray(image).copy())[None].float() / 255
