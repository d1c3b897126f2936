"""What a user sets of an identity and of the runs that read it."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ..attention import ATTENTION_PATHS
from ..contracts import StandInError
from ..controls import Controls
from .adapter import Adapter
from .kv_cache import CACHE_MODES

MOST_REFERENCES = 16  # each costs as many tokens as the first; more is a video connected by mistake
# which pass of classifier-free guidance reads the identity: both is the paper
GUIDANCES = ("both passes", "positive pass", "own scale")


@dataclass(frozen=True, slots=True)
class IdentityBranch(Controls):
    """Everything that ApplyIdentityBranch fixes for one person; shared, unchanged, by every clone of the model.

    reference_latent: [R, 16, 1, h, w], model space, R photos of the person, where ComfyUI keeps what nodes hand on.
    first_block, last_block: of the model's main blocks, both included; last_block -1 is the last.
    normalize_references: divide the weight by R, so that more photos do not weigh more.
    kept_tokens: [n] indices of the identity tokens of a reference that are read, of all its h/2 * w/2; None for all.
    time_offset: RoPE frame of the identity tokens; the video starts at 0, the paper takes -1.
    guidance: one of GUIDANCES. guidance_scale: of "own scale".
    attention: one of ATTENTION_PATHS. cache: one of CACHE_MODES.

    Raises StandInError for values that cannot work together.
    """

    adapter: Adapter
    reference_latent: torch.Tensor
    first_block: int = 0
    last_block: int = -1
    normalize_references: bool = False
    kept_tokens: torch.Tensor | None = None
    time_offset: int = -1
    guidance: str = "both passes"
    guidance_scale: float = 1.0
    attention: str = "auto"
    cache: str = "auto"

    def __post_init__(self):
        Controls.__post_init__(self)
        if len(self.reference_latent) > MOST_REFERENCES:
            raise StandInError(f"{len(self.reference_latent)} reference images came, at most {MOST_REFERENCES} photos "
                               "of a person are read: pick some with ImageFromBatch.")
        for name, known in (("attention", ATTENTION_PATHS), ("cache", CACHE_MODES), ("guidance", GUIDANCES)):
            if getattr(self, name) not in known:
                raise StandInError(f"{name} is {getattr(self, name)}, needed is one of {', '.join(known)}.")
        if self.attention == "concatenate" and self.weighting is not None:
            raise StandInError(f"attention is set to concatenate, which knows one weight for all, and {self.weighting} "
                               "needs another: set attention to auto or merge, or take that setting back.")

    @property
    def controls(self) -> tuple[str, ...]:
        """What of strength's companions is used, in words."""
        used = {"a strength schedule": bool(self.schedule), "a region": self.region is not None,
                "normalize_references": self.normalize_references and len(self.reference_latent) > 1,
                f"guidance {self.guidance}": self.guidance != "both passes"}
        return tuple(words for words, is_used in used.items() if is_used)

    @property
    def weighting(self) -> str | None:
        """What makes a query weigh the identity otherwise than the paper does, in words, or None."""
        words = (*((f"strength {self.strength:g}",) if self.strength not in (0, 1) else ()), *self.controls)
        return " and ".join(words) or None

    def blocks(self, count: int) -> range:
        """Which of so many main blocks read the identity."""
        return range(self.first_block, (count if self.last_block == -1 else min(self.last_block + 1, count)))
