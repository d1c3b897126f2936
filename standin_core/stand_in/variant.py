"""What an adapter was trained with, and so has to be used with: the paper's method, or what the paper compares it with.

Stand-In (arXiv 2508.07901), table 3: *conditional* or *shared* positions (see ``positions``), and *restricted*
attention, in which the photo's tokens read themselves alone, or *ordinary* attention, in which they read the video too
and have to be computed anew in every step, with the video.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..contracts import UserError
from .positions import POSITIONS

RESTRICTED, ORDINARY = ATTENTIONS = ("restricted", "ordinary")
PREFIX = "stand_in_"  # of the names in an adapter's file, where other trainers write their own


@dataclass(frozen=True, slots=True)
class Variant:
    """positions: one of POSITIONS; attention: one of ATTENTIONS. Raises UserError for another name."""

    positions: str = "conditional"
    attention: str = RESTRICTED

    def __post_init__(self):
        for name, known in (("positions", POSITIONS), ("attention", ATTENTIONS)):
            if getattr(self, name) not in known:
                raise UserError(f"the adapter's file says {name} {getattr(self, name)}, and this pack knows "
                                f"{', '.join(known)}: update this pack, or take another adapter.")

    @property
    def metadata(self) -> dict[str, str]:
        """What the adapter's file says of it: nothing where it is the paper's."""
        return {} if self == PAPER else {PREFIX + name: value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def of(cls, metadata: dict[str, str]) -> Variant:
        """From what the adapter's file says."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: metadata[PREFIX + name] for name in names if PREFIX + name in metadata})


PAPER = Variant()
