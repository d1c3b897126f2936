"""What an adapter was trained with, and so has to be used with: the paper's method, or what the paper compares it with.

Stand-In (arXiv 2508.07901), table 3: *conditional* or *shared* positions (see ``positions``), and *restricted*
attention, in which the photo's tokens read themselves alone, or *ordinary* attention, in which they read the video too
and have to be computed anew in every step, with the video.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from .positions import POSITIONS

RESTRICTED, ORDINARY = SELF_ATTENTIONS = ("restricted", "ordinary")
# field -> its key in an adapter's file, whose other keys are other trainers'
METADATA_KEYS = {"positions": "stand_in_positions", "self_attention": "stand_in_attention"}


@dataclass(frozen=True, slots=True)
class Variant:
    """What an adapter was trained with.

    positions: one of POSITIONS.
    self_attention: one of SELF_ATTENTIONS.

    Raises UserError for another name.
    """

    positions: str = "conditional"
    self_attention: str = RESTRICTED

    def __post_init__(self):
        for name, known in (("positions", POSITIONS), ("self_attention", SELF_ATTENTIONS)):
            if getattr(self, name) not in known:
                raise UserError(f"the adapter's file says {METADATA_KEYS[name]} {getattr(self, name)}, but this pack "
                                f"knows {', '.join(known)}: update this pack, or take another adapter.")

    @property
    def metadata(self) -> dict[str, str]:
        """What the adapter's file says of it: nothing where it is the paper's."""
        return {} if self == PAPER else {key: getattr(self, name) for name, key in METADATA_KEYS.items()}

    @classmethod
    def of(cls, metadata: dict[str, str]) -> Variant:
        """From what the adapter's file says."""
        return cls(**{name: metadata[key] for name, key in METADATA_KEYS.items() if key in metadata})


PAPER = Variant()
