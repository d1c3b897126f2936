"""What makes one video of a person better than another, on plain numbers: Best of N and a batch have one rule."""
from __future__ import annotations

from dataclasses import dataclass

MOST_COPIED = 0.8  # not measured on people


@dataclass(frozen=True, slots=True)
class Verdict:
    """How good a video is.

    likeness: mean similarity over all frames, in which a frame without a face counts 0.
    coverage: share of the frames that have a face.
    copying: mean of the copy-paste measure where there are other photos, else of the copied pixels; 0 without a face.
    copied: whether copying is above what was allowed.
    """

    likeness: float
    coverage: float
    copying: float
    copied: bool

    @property
    def sort_key(self) -> tuple[bool, bool, float]:
        """Sorts by likeness, the best first; then come videos without a face, and at the end the copies.

        Likeness alone would put a copy of the photo first.
        """
        return self.copied, not self.coverage, -self.likeness


def judge(coverage: float, similarity: float | None, copied_pixels: float | None, copy_paste: float | None = None,
          most_copied: float = MOST_COPIED) -> Verdict:
    """The verdict on a video.

    coverage: share of the frames that have a face.
    similarity, copied_pixels: means over the frames with a face, as Identity Report gives them; None or NaN where no
        frame has one.
    copy_paste: the same; None with one photo, too.
    most_copied: the copying above which a video is a copy.
    """
    if not coverage:
        return Verdict(0.0, 0.0, 0.0, False)
    assert similarity is not None and copied_pixels is not None
    copying = copied_pixels if copy_paste is None else copy_paste
    return Verdict(similarity * coverage, coverage, copying, copying > most_copied)
