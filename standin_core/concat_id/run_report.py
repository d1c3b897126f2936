"""What Concat-ID adds to the report of a run."""
from __future__ import annotations

import math
from dataclasses import dataclass

from ..report import RunReport


@dataclass(frozen=True, slots=True)
class ConcatIDReference:
    """What a run reports of its reference.

    variant: "first stage" or "AdaLN".
    reference_size: (h, w) of the reference latent.
    references: how many there are.
    tokens: of all references.
    guidance: which passes read it.
    """

    file: str
    sha256: str
    variant: str
    reference_size: tuple[int, int]
    references: int
    tokens: int
    start_percent: float
    end_percent: float
    guidance: str

    @property
    def when(self) -> str:
        return f"{self.start_percent:g} to {self.end_percent:g}"

    def lines(self, video_grid: tuple[int, int, int]) -> list[str]:
        frames, video = video_grid[0], math.prod(video_grid)
        height, width = self.reference_size
        what, where = "reference", f"frame {frames}"
        if self.references > 1:
            what, where = f"{self.references} references", f"frames {frames} to {frames + self.references - 1}"
        return [
            f"Concat-ID of {self.file} ({self.variant})",
            f"{what} {height}x{width} latent, {self.tokens} tokens behind {video} video tokens "
            f"(+{100 * self.tokens / video:.1f} %), at {where}",
            f"read from {self.when} in {self.guidance}",
        ]


@dataclass(slots=True)
class ConcatIDReport(RunReport):
    """own_bytes: the most held on a device of the modulation that the AdaLN variant has for the reference."""

    own_bytes: int = 0

    def lines(self) -> list[str]:
        return [f"modulation of the reference: {self.own_bytes / 2**20:.1f} MiB" if self.own_bytes
                else "modulation of the reference: the video's"]
