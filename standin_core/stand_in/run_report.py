"""What Stand-In adds to the report of a run."""
from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..report import RunReport


@dataclass(frozen=True, slots=True)
class StandInIdentity:
    """A ``report.ReportedIdentity``.

    reference_size: (h, w) of the reference latent.
    references: how many photos there are.
    tokens: how many tokens all photos have together.
    blocks: the first and the last block that read it.
    controls: what else changes how the video reads it, in words.
    """

    adapter_file: str
    adapter_sha256: str
    adapter_rank: int
    reference_size: tuple[int, int]
    references: int
    tokens: int
    strength: float
    start_percent: float
    end_percent: float
    time_offset: int
    blocks: tuple[int, int]
    controls: str

    @property
    def when(self) -> str:
        return f"strength {self.strength:g}, {self.start_percent:g} to {self.end_percent:g}"

    def lines(self, video_grid: tuple[int, int, int]) -> list[str]:
        photos = "" if self.references == 1 else f"{self.references} references of "
        controls = f", with {self.controls}" if self.controls else ""
        return [
            f"identity of {self.adapter_file} (rank {self.adapter_rank})",
            f"{photos or 'reference '}{self.reference_size[0]}x{self.reference_size[1]} latent, {self.tokens} identity "
            f"tokens beside {math.prod(video_grid)} video tokens, at frame {self.time_offset}",
            f"strength {self.strength:g} from {self.start_percent:g} to {self.end_percent:g} in blocks "
            f"{self.blocks[0]} to {self.blocks[1]}{controls}",
        ]


@dataclass(slots=True)
class StandInReport(RunReport):
    """The report of a run that read identities by Stand-In.

    attention: the path that was taken.
    refusals: what was passed over and why.
    cache: where the identity K/V lived.
    builds: how often the identity K/V were computed; 0 for streaming.
    build_ms: the time that took, in milliseconds.
    cache_bytes: the most that was held at a time.
    reads: how often a block read an identity.
    """

    attention: str = ""
    refusals: list[str] = field(default_factory=list)
    cache: str = ""
    builds: int = 0
    build_ms: float = 0.0
    cache_bytes: int = 0
    reads: int = 0

    def lines(self) -> list[str]:
        return [
            f"attention: {self.attention}",
            *(f"  passed over {refusal}" for refusal in self.refusals),
            f"identity K/V: {self.cache}, {self.cache_bytes / 2**20:.1f} MiB, {self._built()}, "
            f"read {_times(self.reads)}",
        ]

    def _built(self) -> str:
        if self.cache == "streaming":
            return "computed anew in every call"
        return f"built {_times(self.builds)} in {self.build_ms:.0f} ms"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
