"""Several videos of one person, the best first."""
from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..likeness import Verdict, judge
from ..words import counted
from .compare import CompareSettings, Comparison, compare_each


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """One of the videos.

    index: its place among those that came.
    seed: that it was sampled with; None where nobody said.
    """

    index: int
    seed: int | None
    verdict: Verdict
    comparison: Comparison

    def words(self) -> str:
        name = f"video {self.index + 1}" + ("" if self.seed is None else f", seed {self.seed}")
        copied = " (a copy)" if self.verdict.copied else ""
        return f"{name}: likeness {self.verdict.likeness:.3f}, copying {self.verdict.copying:.2f}{copied}"


def rank(videos: list[torch.Tensor], photos: torch.Tensor, settings: CompareSettings, most_copied: float,
         seeds: list[int] | None = None, clip_vision=None, progress=lambda: None) -> list[Tried]:
    """The videos, the best first, in the order of ``Verdict.sort_key``.

    videos, photos, clip_vision, progress: as in ``compare_each``.
    most_copied: the copying above which a video goes to the end.
    seeds: one for each video.

    Raises UserError for no video, and for another number of seeds.
    """
    if not videos:
        raise UserError("no video came: connect a list of videos, or a batch and set frames_per_video.")
    if seeds is not None and len(seeds) != len(videos):
        raise UserError(f"each of the {len(videos)} videos must have a seed, but {counted(len(seeds), 'seed')} came: "
                        "connect the list of seeds that they were sampled with.")
    tried = []
    for index, found in enumerate(compare_each(videos, photos, settings, clip_vision, progress)):
        means = {name: summary.mean for name, summary in found.summaries.items()}
        verdict = judge(found.summaries["similarity"].coverage, means["similarity"], means["copied_pixels"],
                        means.get("copy_paste"), most_copied)
        tried.append(Tried(index, None if seeds is None else seeds[index], verdict, found))
    return sorted(tried, key=lambda each: each.verdict.sort_key)


def as_text(ranking: list[Tried]) -> str:
    """One video a line, the best first."""
    return "\n".join([f"compared by {ranking[0].comparison.embedder}",
                      *(f"{place}. {each.words()}" for place, each in enumerate(ranking, start=1))])


def as_json(ranking: list[Tried]) -> str:
    """The videos, the best first."""
    videos = [{"index": each.index, "seed": each.seed, "likeness": round(each.verdict.likeness, 6),
               "coverage": round(each.verdict.coverage, 6), "copying": round(each.verdict.copying, 6),
               "copied": each.verdict.copied} for each in ranking]
    return json.dumps({"embedder": ranking[0].comparison.embedder, "videos": videos}, indent=1)


def split_videos(batches: list[torch.Tensor], frames_per_video: int) -> list[torch.Tensor]:
    """The videos of all batches.

    batches: of [N, H, W, 3].
    frames_per_video: how many frames of a batch are a video; 0 for all.

    Raises UserError where a batch is not a whole number of videos.
    """
    if not frames_per_video:
        return batches
    for batch in batches:
        if len(batch) % frames_per_video:
            raise UserError(f"{len(batch)} frames came, which are no whole number of videos of {frames_per_video} "
                            "frames: set frames_per_video to the length of one, or to 0 for a list of videos.")
    return [video for batch in batches for video in batch.split(frames_per_video)]
