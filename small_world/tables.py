"""Fill the tables of docs/small_world.md from the benchmark's record.

    .standin/venv/bin/python small_world/tables.py

A table stands between ``<!-- name -->`` and ``<!-- end -->``.
"""
from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path.append(str(PACK))

import numpy as np

from small_world.ablations import VARIANTS
from small_world.settings import CLOSER, PAPER, PLAIN, RECORD
from standin_core.files import replacing

DOCUMENT = PACK / "docs" / "small_world.md"
PLACE = re.compile(r"(<!-- (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SHOWN = ("real, through the VAE", "the photo, still", PLAIN.measured_as, PAPER.measured_as, CLOSER.measured_as,
         "adapter not trained", "photo before clutter", "background tokens dropped", "fp8 cache")


def filled(text: str, record: dict) -> str:
    """The document with its tables anew."""
    tables = {"scale": scale, "methods": methods, "trainings": trainings, "two people": two_people, "traits": traits,
              "ranking": ranking, "swap": swap, "long": long_video, "cost": cost}
    return PLACE.sub(lambda found: found[1] + _table(tables[found["name"]](record)) + found[3], text)


def scale(record: dict) -> list[list[str]]:
    names = {"rendered": "as rendered", "through the VAE": "through the VAE",
             "still, through the VAE": "the first frame alone"}
    found = {words: record["calibration"][name] for name, words in names.items()}
    traits = [trait.replace("_", " ") for trait in record["calibration"]["rendered"]["traits"]]
    return [["real videos", "agreement", *traits, "action", "motion"],
            *([words, f"{row['agreement']:.3f}", *(f"{value:.2f}" for value in row["traits"].values()),
               f"{row['actions']:.2f}", f"{row['motion']:.3f}"] for words, row in found.items())]


def methods(record: dict) -> list[list[str]]:
    named = [name for name in (*SHOWN, *(name for name in record if name.startswith("Concat-ID"))) if name in record]
    head = ["", "agreement", "kept", "more than without", "validity", "action", "background", "motion",
            "pose of the photo"]
    return [head, *([name, f"{row['agreement']:.3f}", _range(row), _more(row), _share(row, "validity"),
                     _share(row, "actions"), _share(row, "backgrounds"), f"{row['motion']:.3f}",
                     f"{row['pose_of_photo']:.2f}"] for name in named for row in [record[name]])]


def trainings(record: dict) -> list[list[str]]:
    rows = [["three trainings each", "kept, each", "mean", "spread"]]
    for variant in VARIANTS:
        kept = [row["kept"] for row in record.values() if isinstance(row, dict) and row.get("curve") == variant]
        if len(kept) > 1:
            rows.append([variant, ", ".join(f"{value:.2f}" for value in kept), f"{np.mean(kept):.2f}",
                         f"± {np.std(kept, ddof=1):.2f}"])
    return rows


def two_people(record: dict) -> list[list[str]]:
    return [["two people in a frame", "kept of who stands there", "kept of the other"],
            *([name, _range(row["own"]), _range(row["the other's"])] for name, row in record["two people"].items())]


def traits(record: dict) -> list[list[str]]:
    named = [name for name in (PLAIN.measured_as, PAPER.measured_as, CLOSER.measured_as) if name in record]
    return [["read as they are", *(trait.replace("_", " ") for trait in record[named[0]]["traits"])],
            *([name, *(f"{value:.2f}" for value in record[name]["traits"].values())] for name in named)]


def ranking(record: dict) -> list[list[str]]:
    row = record["ranking"]
    return [[f"of {row['seeds']} seeds", "agreement", "is the best"],
            ["the first", f"{row['agreement of the first']:.3f}", f"{row['the first is the best']:.0%}"],
            ["any", f"{row['of all']:.3f}", f"{row['by chance']:.0%}"]]


def swap(record: dict) -> list[list[str]]:
    return [["", "with who comes in", "with who was there", "outside of the mask"],
            *([name, f"{row['with_who_came']:.2f}", f"{row['with_who_was_there']:.2f}", f"{row['outside_of_255']:.1f}"]
              for name, row in record["face swap"].items())]


def long_video(record: dict) -> list[list[str]]:
    parts = len(next(iter(record["long video"].values())))
    return [["agreement in each part of a long video", *(str(number + 1) for number in range(parts))],
            *([name, *(f"{value:.2f}" for value in course)] for name, course in record["long video"].items())]


def cost(record: dict) -> list[list[str]]:
    plain = record["seconds"][PLAIN.measured_as]
    return [["", "seconds a video", "of those without"],
            *([name, f"{seconds:.2f}", f"{seconds / plain:.2f}"] for name, seconds in record["seconds"].items())]


def _range(row: dict) -> str:
    return f"{row['kept']:.2f} ({row['low']:.2f} to {row['high']:.2f})" if "kept" in row else "1"


def _more(row: dict) -> str:
    more = row.get("more_than", {}).get(PLAIN.measured_as)
    return f"{more['kept']:+.2f} ({more['low']:+.2f} to {more['high']:+.2f})" if more else ""


def _share(row: dict, name: str) -> str:
    return f"{row[name]:.0%}" if name in row else ""


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *body))


def main(record: Path, document: Path) -> None:
    text = filled(document.read_text(encoding="utf-8"), json.loads(record.read_text(encoding="utf-8")))
    with replacing(document) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    options = parser.parse_args()
    main(options.record, options.document)
