"""What was made of every video: a line of JSON each, the last one counts.

A line holds what it follows from (``video``, ``bytes``, ``caption``, ``captioned``), its ``clips``, and what was
``dropped``: [what, cause, detail].
"""
from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...files import append_line, drop_damaged_lines, read_lines
from .dropped import Drop

FILE = "manifest.jsonl"


@dataclass(frozen=True, slots=True)
class Clip:
    """A part of a video; not a copy of it.

    video: name of the source.
    start: number of the first frame, counted at the data's fps.
    caption: what it shows.
    references: files of the photos, below the folder of the data.
    """

    video: str
    start: int
    caption: str
    references: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.video}#{self.start}"


def drop_damaged(folder: Path) -> int:
    """Take out of the manifest what a kill or a full disk left unfinished; returns how many lines that were."""
    return drop_damaged_lines(folder / FILE, "video", "clips", "dropped")


def read_manifest(folder: Path) -> dict[str, dict]:
    """Name of a video -> its line."""
    return {line["video"]: line for line in read_lines(folder / FILE)}


def add_to_manifest(folder: Path, origin: dict, clips: list[Clip], dropped: list[tuple[str, Drop]]) -> None:
    """Note what was made of a video.

    origin: what the clips follow from, beside the settings.
    dropped: what of the video was left out, in words, and why.
    """
    append_line(folder / FILE, {**origin,
                                "dropped": [[what, drop.cause.value, drop.detail] for what, drop in dropped],
                                "clips": [dataclasses.asdict(clip) for clip in clips]})


def manifest_clips(folder: Path) -> list[Clip]:
    """All clips of all videos."""
    return [Clip(**{**clip, "references": tuple(clip["references"])})
            for line in read_manifest(folder).values() for clip in line["clips"]]


def summary(folder: Path) -> str:
    """How many videos, clips and photos there are, and how much was dropped for which cause."""
    lines, clips = read_manifest(folder).values(), manifest_clips(folder)
    photos = {file for clip in clips for file in clip.references}
    causes = Counter(cause for line in lines for _, cause, _ in line["dropped"])
    return "\n".join([f"{len(lines)} videos, {len(clips)} clips, {len(photos)} reference photos",
                      *(f"dropped {count}: {cause}" for cause, count in causes.most_common())])
