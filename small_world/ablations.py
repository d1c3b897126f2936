"""What the paper takes away to show what it is for (Stand-In, table 3), by the names of the small world."""
from __future__ import annotations

import dataclasses
from pathlib import Path

from standin_core.stand_in.adapter import Adapter, load_adapter
from standin_core.stand_in.variant import PAPER, Variant

ABLATIONS = {"shared positions": Variant(positions="shared"), "ordinary attention": Variant(self_attention="ordinary")}


def variant_of(name: str | None) -> Variant:
    """The variant of an ablation, or the paper's for None."""
    return PAPER if name is None else ABLATIONS[name]


def trained_adapter(file: Path, ablation: str | None) -> Adapter:
    """With the method that it was trained with, which the files of the ablations do not say."""
    return dataclasses.replace(load_adapter(file), variant=variant_of(ablation))
