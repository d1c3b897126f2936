"""What the paper takes away to show what it is for (Stand-In, table 3), by the names of the small world."""
from __future__ import annotations

import dataclasses

from standin_core.stand_in.adapter import Adapter, load_adapter
from standin_core.stand_in.variant import PAPER, Variant

from .models import adapter_file

ABLATIONS = {"shared positions": Variant(positions="shared"), "ordinary attention": Variant(self_attention="ordinary")}


def variant_of(name: str | None) -> Variant:
    """The variant of an ablation, or the paper's for None."""
    return PAPER if name is None else ABLATIONS[name]


def ablated_adapter(name: str | None) -> Adapter:
    """The adapter that ships, with the method that it was trained with: the files of the ablations do not say it."""
    return dataclasses.replace(load_adapter(adapter_file(name)), variant=variant_of(name))
