"""What Stand-In adds to the report of a run."""
from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..report import RunReport


@dataclass(frozen=True, slots=True)
class ToldIdentity:
    """What one identity of a run was told.

    reference_size: (h, w) of the reference latent; references: how many photos there are.
    tokens: of all photos.
    blocks: the first and the last that read it.
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
    """attention: the path taken; refusals: what was passed over and why.
    cache: where the identity K/V lived; cache_bytes: the most held at a time.
    builds, build_ms: of the identity K/V.
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
            f"identity K/V: {self.cache}, {self.cache_bytes / 2**20:.1f} MiB, {self._built()}, read {self.reads} times",
        ]

    def _built(self) -> str:
        if self.cache == "streaming":
            return "computed anew in every call"
        times = "once" if self.builds == 1 else f"{self.builds} times"
        return f"built {times} in {self.build_ms:.0f} ms"
