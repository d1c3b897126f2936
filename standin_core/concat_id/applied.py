"""What a user sets of the reference of a model."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ..controls import Span
from ..errors import UserError
from ..guidance import check_guidance
from .model import ConcatID


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendedReference(Span):
    """What a patched model appends to its video; shared, unchanged, by every clone of it.

    latent: [M, 16, 1, h, w], model space, of the video's h and w. Each reference is one frame that is appended.
        There are as many as the model was trained with, one for each person from left to right.
    guidance: one of GUIDANCES.
    guidance_scale: of "own scale".

    Outside of the span, and in a pass that does not read it, the reference is a latent of zeros, as in a tenth of the
    authors' training. The model never saw a video without a reference.

    Raises UserError for values that cannot work together.
    """

    concat_id: ConcatID
    latent: torch.Tensor
    guidance: str = "both passes"
    guidance_scale: float = 1.0

    def __post_init__(self):
        Span.__post_init__(self)
        check_guidance(self.guidance, self.guidance_scale)
        check_count(self.concat_id, len(self.latent))


def check_count(concat_id: ConcatID, came: int) -> None:
    """Raises UserError unless as many references came as the model was trained with."""
    name, needed = concat_id.name, concat_id.references
    if came == needed:
        return
    if needed == 1:
        raise UserError(f"{came} reference images came and {name} was trained with 1: pick one with ImageFromBatch.")
    raise UserError(f"{came} reference image(s) came and {name} was trained with {needed}: connect a batch of {needed} "
                    "faces, from left to right.")
