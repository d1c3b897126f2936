"""A line chart as a picture."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

WIDTH, HEIGHT, PX_PER_INCH = 960, 360, 100
BLUE, ORANGE, GREY = "#1f60b4", "#d66e14", "#dedede"


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One line of a chart.

    words: its name in the legend.
    colour: a colour of matplotlib.
    values: [N], at 1 to N of the horizontal axis; NaN leaves a gap.
    dots: mark every value.
    """

    words: str
    colour: str
    values: np.ndarray
    dots: bool = True


def line_chart(series: list[Series], horizontal: str, lowest: float = 0.0,
               highest: float | None = None) -> PIL.Image.Image:
    """The chart, 960x360, with the first of the series on top of the others.

    horizontal: name of the horizontal axis.
    lowest, highest: ends of the vertical axis; None fits the values.
    """
    # 1 s; not pyplot, whose figures are global
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure((WIDTH / PX_PER_INCH, HEIGHT / PX_PER_INCH), dpi=PX_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    length = len(series[0].values)
    axes = figure.add_subplot(xlabel=horizontal, xlim=(1, max(length, 2)))
    for index, line in enumerate(series):
        axes.plot(np.arange(1, length + 1), line.values, color=line.colour, label=line.words, linewidth=2,
                  marker="o" if line.dots else None, markersize=4, zorder=2 + len(series) - index, clip_on=False)
    axes.set_ylim(lowest, highest)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    axes.grid(axis="y", color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=len(series), frameon=False)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def as_image(image: PIL.Image.Image) -> torch.Tensor:
    """ComfyUI's IMAGE, [1, H, W, 3] float in 0..1."""
    return torch.from_numpy(np.asarray(image).copy())[None].float() / 255
