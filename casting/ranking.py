"""Who is best: the renders of each person by likeness, as JSON and as a page."""
from __future__ import annotations

import html
import json
from pathlib import Path

from standin_core.files import replacing

VIDEOS = (".mp4", ".webm", ".mkv", ".mov")
STYLE = """body { font: 15px sans-serif; margin: 2em; background: #16181c; color: #ddd }
section { display: flex; flex-wrap: wrap; gap: 1em }
figure { width: 320px; margin: 0 } video, img { width: 100% } figcaption { margin-top: .3em }
b { color: #fff } li { white-space: pre-wrap }"""


def ranked(records: list[dict]) -> dict[str, list[dict]]:
    """Person -> their renders, the most similar first; a video without a face comes last.

    Likeness is the mean of Identity Report's similarity over the frames with a face. Beside it stands what tells a
    copy: the copy-paste measure where the person has several photos, and the share of copied pixels.
    """
    people: dict[str, list[dict]] = {}
    for record in records:
        if "error" not in record:
            summary = record["report"]["summary"]
            people.setdefault(record["person"], []).append({
                **{name: record[name] for name in ("id", "prompt", "seed", "files")},
                "likeness": summary["similarity"]["mean"], "coverage": summary["similarity"]["coverage"],
                "copy_paste": summary.get("copy_paste", {}).get("mean"),
                "copied_pixels": summary["copied_pixels"]["mean"], "measured_by": record["report"]["embedder"]})
    for renders in people.values():
        renders.sort(key=lambda render: (render["likeness"] is None, -(render["likeness"] or 0), render["id"]))
    return dict(sorted(people.items()))


def write_ranking(folder: Path, records: list[dict]) -> Path:
    """Write ranking.json and ranking.html beside the renders; returns the page."""
    people = ranked(records)
    failed = [{name: record[name] for name in ("id", "person", "prompt", "seed", "error")}
              for record in records if "error" in record]
    page = folder / "ranking.html"
    for file, text in ((folder / "ranking.json", json.dumps({"people": people, "failed": failed}, indent=1,
                                                            ensure_ascii=False)), (page, _page(people, failed))):
        with replacing(file) as part:
            part.write_text(text, encoding="utf-8")
    return page


def _page(people: dict[str, list[dict]], failed: list[dict]) -> str:
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>Ranking</title>", f"<style>{STYLE}</style>",
             "<h1>Ranking by likeness</h1><p>A high likeness with much copied is a copy of the photo, not a good "
             "video.</p>"]
    for person, renders in people.items():
        parts += [f"<h2>{html.escape(person)}</h2><p>compared by {html.escape(renders[0]['measured_by'])}</p>",
                  "<section>", *map(_figure, range(1, len(renders) + 1), renders), "</section>"]
    if failed:
        lines = "".join(f"<li><b>{html.escape(each['person'])}, seed {each['seed']}: {html.escape(each['prompt'])}</b>"
                        f"\n{html.escape(each['error'])}</li>" for each in failed)
        parts.append(f"<h2>Failed</h2><ul>{lines}</ul>")
    return "\n".join([*parts, "</html>"])


def _figure(place: int, render: dict) -> str:
    shown = "".join(f"<video src='{name}' controls loop muted preload=metadata></video>" if name.endswith(VIDEOS)
                    else f"<img src='{name}' alt=''>" for name in render["files"])
    figures = [("likeness", render["likeness"]), ("copy-paste", render["copy_paste"]),
               ("copied pixels", render["copied_pixels"])]
    words = ", ".join(f"{name} {value:.3f}" for name, value in figures if value is not None) or "no face found"
    return (f"<figure>{shown}<figcaption><b>{place}. {words}</b><br>seed {render['seed']}: "
            f"{html.escape(render['prompt'])}</figcaption></figure>")
