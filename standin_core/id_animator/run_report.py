"""What ID-Animator adds to the report of a run."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IDAnimatorIdentity:
    """What a run reports of its identity.

    photos: how many there are.
    tokens: of their mean.
    places: how many cross-attentions read it.
    """

    adapter_file: str
    adapter_sha256: str
    adapter_rank: int
    photos: int
    tokens: int
    places: int
    strength: float
    start_percent: float
    end_percent: float
    lora_strength: float

    @property
    def when(self) -> str:
        return f"strength {self.strength:g}, {self.start_percent:g} to {self.end_percent:g}"

    def lines(self, video_grid: tuple[int, int, int]) -> list[str]:
        photos = "a photo" if self.photos == 1 else f"the mean of {self.photos} photos"
        pictures = "one picture" if video_grid[0] == 1 else f"{video_grid[0]} frames or pictures"
        return [
            f"identity of {self.adapter_file} (rank {self.adapter_rank})",
            f"{self.tokens} face tokens of {photos}, read by {self.places} cross-attentions in {pictures}",
            f"strength {self.strength:g} from {self.start_percent:g} to {self.end_percent:g}, low-rank weights "
            f"{self.lora_strength:g} in every step",
        ]
