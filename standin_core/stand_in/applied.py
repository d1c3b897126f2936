"""What a user sets: of each identity, and of the runs that read them."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ..attention import ATTENTION_PATHS, Need, Reason
from ..checks import check_choice, check_number
from ..controls import Controls
from ..errors import UserError
from ..guidance import OWN_SCALE, check_guidance
from .adapter import Adapter
from .kv_cache import CACHE_MODES
from .variant import ORDINARY

MOST_REFERENCES = 16  # each costs as many tokens as the first; more is a video connected by mistake


@dataclass(frozen=True, slots=True)
class Identity(Controls):
    """One person on a model; shared, unchanged, by every clone of it.

    reference_latent: [R, 16, 1, h, w], model space, R photos of the person, where ComfyUI keeps what nodes hand on.
    first_block, last_block: of the model's main blocks, both included; last_block -1 is the last.
    normalize_references: divide the weight by R, so that more photos do not weigh more.
    kept_tokens: [n] indices of the identity tokens of a reference that are read, of all its h/2 * w/2; None for all.
    time_offset: RoPE frame of the identity tokens; the video starts at 0, the paper takes -1.

    Raises UserError for values that cannot work together.
    """

    adapter: Adapter
    reference_latent: torch.Tensor
    first_block: int = 0
    last_block: int = -1
    normalize_references: bool = False
    kept_tokens: torch.Tensor | None = None
    time_offset: int = -1

    def __post_init__(self):
        Controls.__post_init__(self)
        check_number(self.first_block, "first_block", 0, whole=True)
        check_number(self.last_block, "last_block", -1, whole=True)
        check_number(self.time_offset, "time_offset", whole=True)
        if len(self.reference_latent) > MOST_REFERENCES:
            raise UserError(f"{len(self.reference_latent)} reference images came, at most {MOST_REFERENCES} photos "
                            "of a person are read: pick some with ImageFromBatch.")

    @property
    def controls(self) -> tuple[Reason, ...]:
        """Which settings beside strength change how a query weighs this identity."""
        used = {Need.SCHEDULE: bool(self.schedule), Need.REGION: self.region is not None,
                Need.NORMALIZED: self.shared_by > 1}
        return tuple(Reason(need) for need, is_used in used.items() if is_used)

    @property
    def needs(self) -> tuple[Reason, ...]:
        """What makes a query weigh this identity otherwise than the paper does."""
        strength = () if self.strength in (0, 1) else (Reason(Need.STRENGTH, (self.strength,)),)
        return (*strength, *self.controls)

    @property
    def shared_by(self) -> int:
        """Among how many photos the strength is divided."""
        return len(self.reference_latent) if self.normalize_references else 1

    def blocks(self, count: int) -> range:
        """Which of so many main blocks read the identity."""
        return range(self.first_block, (count if self.last_block == -1 else min(self.last_block + 1, count)))


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What all identities of a run have in common.

    attention: one of ATTENTION_PATHS.
    cache: one of CACHE_MODES.
    guidance: one of GUIDANCES; the paper's is "both passes".
    guidance_scale: the identity's guidance scale, used by "own scale" only.

    Raises UserError for another value.
    """

    attention: str = "auto"
    cache: str = "auto"
    guidance: str = "both passes"
    guidance_scale: float = 1.0

    def __post_init__(self):
        check_choice(self.attention, "attention", ATTENTION_PATHS)
        check_choice(self.cache, "cache", CACHE_MODES)
        check_guidance(self.guidance, self.guidance_scale)

    @property
    def needs(self) -> tuple[Reason, ...]:
        """What makes a query weigh an identity otherwise than the paper does."""
        return () if self.guidance == "both passes" else (Reason(Need.GUIDANCE, (self.guidance,)),)

    def differing(self, other: RunSettings) -> list[str]:
        """The names of the settings that differ and have an effect."""
        names = [field.name for field in dataclasses.fields(self)]
        if self.guidance != OWN_SCALE:
            names.remove("guidance_scale")
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True, slots=True)
class Applied:
    """All that a patched model reads: its identities in the order they were applied, and their common settings."""

    identities: tuple[Identity, ...] = ()
    settings: RunSettings = RunSettings()

    def with_identity(self, identity: Identity, settings: RunSettings) -> Applied:
        """Raises UserError where settings are not those of the identities before, or cannot serve this one."""
        if ORDINARY in {each.adapter.variant.self_attention for each in (*self.identities, identity)}:
            return Applied((identity,), self._for_ordinary_attention(identity, settings))
        needs = (*identity.needs, *settings.needs)
        if settings.attention == "concatenate" and needs:
            words = " and ".join(map(str, needs))
            raise UserError("attention is set to concatenate, which works only at strength 1, but "
                            f"{words} needs a different weight: set attention to auto or merge, or take that setting "
                            "back.")
        differing = settings.differing(self.settings) if self.identities else []
        if differing:
            raise UserError(f"{differing[0]} differs between the Apply Identity Branch nodes of this model, but a run "
                            "can use only one value: set it to the same in all of them.")
        return Applied((*self.identities, identity), settings)

    def _for_ordinary_attention(self, identity: Identity, settings: RunSettings) -> RunSettings:
        """K and V then follow from the video, and are computed in every call of the model."""
        if (self.identities or identity.needs or len(identity.reference_latent) > 1
                or (identity.first_block, identity.last_block) != (0, -1) or settings != RunSettings()):
            raise UserError("an adapter of this model was trained with ordinary attention, which reads one photo of "
                            "one person at strength 1 in every block, and knows no choice of attention, cache or "
                            "guidance: take the other settings back.")
        return RunSettings(attention="concatenate", cache="streaming")

    @property
    def is_ordinary(self) -> bool:
        """Whether the one identity reads the video too."""
        return any(identity.adapter.variant.self_attention == ORDINARY for identity in self.identities)

    @property
    def needs(self) -> tuple[Reason, ...]:
        """What needs a log-sum-exp: the needs of the first identity that has any."""
        return next((needs for identity in self.identities if (needs := (*identity.needs, *self.settings.needs))), ())
