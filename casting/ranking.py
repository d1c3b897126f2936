"""Who is best: the renders of each person by likeness, as JSON and as a page."""
from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path

from standin_core.files import replacing
from standin_core.likeness import MOST_COPIED, Verdict, judge

VIDEOS = (".mp4", ".webm", ".mkv", ".mov")
STYLE = """body { font: 15px sans-serif; margin: 2em; background: #16181c; color: #ddd }
section { display: flex; flex-wrap: wrap; gap: 1em }
figure { width: 320px; margin: 0 } video, img { width: 100% } figcaption { margin-top: .3em }
b { color: #fff } li { white-space: pre-wrap }"""


def ranked(records: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Person -> embedder -> the renders that it measured, the best first, in the order of Best of N
    (``Verdict.sort_key``).

    Figures of different embedders cannot be compared, and automatic ones differ where machines have different files.
    """
    people: dict[str, dict[str, list[dict]]] = {}
    for record in sorted((record for record in records if "report" in record), key=_place):
        embedders = people.setdefault(record["person"], {})
        embedders.setdefault(record["report"]["embedder"], []).append({
            **{name: record[name] for name in ("id", "prompt", "seed", "files")},
            **dataclasses.asdict(verdict_on(record["report"])), **_means(record["report"])})
    return people


def verdict_on(report: dict) -> Verdict:
    """report: Identity Report's JSON."""
    return judge(report["summary"]["similarity"]["coverage"], **_means(report))


def _means(report: dict) -> dict[str, float | None]:
    """Over the frames with a face; None where there is no such frame or no such measure."""
    return {name: report["summary"].get(name, {}).get("mean") for name in ("similarity", "copied_pixels", "copy_paste")}


def _place(record: dict) -> tuple:
    return record["person"], record["report"]["embedder"], verdict_on(record["report"]).sort_key, record["id"]


def write_ranking(folder: Path, records: list[dict]) -> Path:
    """Write ranking.json and ranking.html beside the renders; returns the page."""
    people = ranked(records)
    unmeasured = _those_with("not_measured", records, "files")
    failed = _those_with("error", records)
    page = folder / "ranking.html"
    for file, text in ((folder / "ranking.json", json.dumps(
            {"people": people, "not_measured": unmeasured, "failed": failed}, indent=1, ensure_ascii=False)),
            (page, _page(people, unmeasured, failed))):
        with replacing(file) as part:
            part.write_text(text, encoding="utf-8")
    return page


def _those_with(key: str, records: list[dict], *more: str) -> list[dict]:
    return [{name: record[name] for name in ("id", "person", "prompt", "seed", *more, key)}
            for record in records if key in record]


def _page(people: dict[str, dict[str, list[dict]]], unmeasured: list[dict], failed: list[dict]) -> str:
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>Ranking</title>", f"<style>{STYLE}</style>",
             "<h1>Ranking by likeness</h1><p>Likeness is the mean similarity to the photo over all frames; a frame "
             "without a face counts 0. Copies of the photo come last, whatever their likeness: videos whose copy-paste "
             f"measure is above {MOST_COPIED}, or with one photo of the person, whose copied pixels are.</p>"]
    for person, embedders in people.items():
        parts.append(f"<h2>{html.escape(person)}</h2>")
        if len(embedders) > 1:
            parts.append("<p>Several networks measured these renders. Figures of different networks cannot be "
                         "compared, so each has a ranking of its own.</p>")
        for embedder, renders in embedders.items():
            parts += [f"<h3>compared by {html.escape(embedder)}</h3>", "<section>",
                      *(_figure(render, f"{place}. {_words(render)}") for place, render in enumerate(renders, 1)),
                      "</section>"]
    if unmeasured:
        parts += ["<h2>Not measured</h2><section>",
                  *(_figure(render, render["person"], render["not_measured"]) for render in unmeasured), "</section>"]
    if failed:
        lines = "".join(f"<li><b>{html.escape(each['person'])}, seed {each['seed']}: {html.escape(each['prompt'])}</b>"
                        f"\n{html.escape(each['error'])}</li>" for each in failed)
        parts.append(f"<h2>Failed</h2><ul>{lines}</ul>")
    return "\n".join([*parts, "</html>"])


def _words(render: dict) -> str:
    """What was measured of a render."""
    words = "no face found"
    if render["coverage"]:
        copying = {"copy-paste": render["copy_paste"], "copied pixels": render["copied_pixels"]}
        seen = f"a face in {100 * render['coverage']:.0f} % of the frames"
        words = ", ".join([f"likeness {render['likeness']:.3f}", seen,
                           *(f"{name} {value:.3f}" for name, value in copying.items() if value is not None)])
    return words + (" (a copy)" if render["copied"] else "")


def _figure(render: dict, title: str, *more: str) -> str:
    """What was rendered, over its title and further lines."""
    shown = "".join(f"<video src='{name}' controls loop muted preload=metadata></video>" if name.endswith(VIDEOS)
                    else f"<img src='{name}' alt=''>" for name in map(html.escape, render["files"]))
    lines = (f"<b>{html.escape(title)}</b>", f"seed {render['seed']}: {html.escape(render['prompt'])}",
             *map(html.escape, more))
    return f"<figure>{shown}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"
