"""What a user sets of the reference of a model."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ..contracts import UserError
from ..controls import Span
from ..guidance import check_guidance
from .weights import ConcatID


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendedReference(Span):
    """What a patched model appends to its video; shared, unchanged, by every clone of it.

    latent: [M, 16, 1, h, w], model space, of the video's h and w, one reference for each frame that is appended.
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
        if len(self.latent) > self.concat_id.references:
            raise UserError(f"{len(self.latent)} reference images came and {self.concat_id.name} was trained with "
                            f"{self.concat_id.references}: pick one with ImageFromBatch.")
