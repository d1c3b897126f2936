"""Draw the figures of docs/small_world.md from the benchmark's record.

    .standin/venv/bin/python small_world/plots.py
"""
from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path.append(str(PACK))

from matplotlib.figure import Figure

from small_world.ablations import VARIANTS
from small_world.settings import PAPER, PLAIN, RECORD

IMAGES = PACK / "docs" / "images"
WEIGHTS = PACK / "small_world" / "weights"
FIGURES = {"controls": ("strength", "own scale", "photos", "start and end", "schedule", "blocks"),
           "trainings": ("base model", "training", "trainings"), "sampling": ("cfg", "steps")}
TITLES = {"strength": "strength", "own scale": "guidance_scale, with guidance “own scale”", "photos": "photos",
          "start and end": "start to end", "schedule": "strength_schedule", "blocks": "blocks that read the photo",
          "base model": "loss of the base model, by minutes", "training": "steps of the adapter's training",
          "trainings": "without a part of the paper", "cfg": "cfg", "steps": "sampling steps"}
INK, LINE, OTHER = "#222222", "#2a6fb0", "#c06a2b"
PANEL, LETTERS = (4.6, 3.1), 10  # inches, and letters in a line


def draw(record: dict, name: str, file: Path) -> None:
    curves = FIGURES[name]
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure((columns * PANEL[0], rows * PANEL[1]), layout="tight")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel, curve in zip(panels.flat, curves):
        panel.set_title(TITLES[curve], fontsize=11, color=INK)
        panel.grid(axis="y", alpha=0.3)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        if curve == "base model":
            _losses(panel)
            continue
        _frame(panel, record)
        if curve == "trainings":
            _trainings(panel, record)
        else:
            _curve(panel, record, curve, LINE, "")
            if curve == "photos":
                _curve(panel, record, "photos, normalized", OTHER, "normalize_references")
                panel.legend(frameon=False, loc="upper left")
    figure.savefig(file)


def _losses(panel) -> None:
    steps = _log("wan")
    panel.plot([step["minutes"] for step in steps], [step["velocity"] for step in steps], color=LINE)


def _log(model: str) -> list[dict]:
    text = (WEIGHTS / f"small_world_{model}.log").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _frame(panel, record: dict) -> None:
    """With what the paper's settings and the base model keep."""
    panel.set_ylim(-0.1, 1.05)
    panel.set_ylabel("kept of the person")
    panel.axhspan(record[PAPER.measured_as]["low"], record[PAPER.measured_as]["high"], color=LINE, alpha=0.12, lw=0)
    panel.axhline(record[PLAIN.measured_as]["kept"], color=INK, lw=0.8, ls=":")


def _curve(panel, record: dict, curve: str, colour: str, label: str) -> None:
    """A line where it is turned by a number, else one point for each word."""
    points = [each for each in record.values() if isinstance(each, dict) and each.get("curve") == curve]
    papers = {"strength": 1, "photos": 1, "photos, normalized": 1, "training": _log("stand_in")[-1]["step"],
              **record["sampled"]}  # where the paper's settings, which are measured once, stand
    if curve in papers:
        points.append(record[PAPER.measured_as] | {"at": papers[curve]})
    if curve == "training":
        points.append(record["adapter not trained"] | {"at": 0})
    words = any(isinstance(each["at"], str) for each in points)
    if not words:
        points.sort(key=lambda each: each["at"])
    places = range(len(points)) if words else [each["at"] for each in points]
    kept = [each["kept"] for each in points]
    error = [[each["kept"] - each["low"] for each in points], [each["high"] - each["kept"] for each in points]]
    width = 0 if words else 1.5
    panel.errorbar(places, kept, error, color=colour, marker="o", ms=4, lw=width, elinewidth=1, label=label)
    if words:
        panel.set_xticks(list(places), [textwrap.fill(each["at"], LETTERS) for each in points], fontsize=8)
        panel.set_xlim(-0.5, len(points) - 0.5)


def _trainings(panel, record: dict) -> None:
    for place, variant in enumerate(VARIANTS):
        kept = [each["kept"] for each in record.values() if isinstance(each, dict) and each.get("curve") == variant]
        panel.plot([place] * len(kept), kept, "o", color=LINE, ms=5)
    panel.set_xticks(range(len(VARIANTS)), [textwrap.fill(variant, LETTERS) for variant in VARIANTS], fontsize=9)
    panel.set_xlim(-0.5, len(VARIANTS) - 0.5)


def main(record: Path, out: Path) -> None:
    found = json.loads(record.read_text(encoding="utf-8"))
    for name in FIGURES:
        draw(found, name, out / f"small_world_{name}.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args()
    main(options.record, options.out)
