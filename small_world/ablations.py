"""What the paper takes away to show what it is for (Stand-In, table 3), by the names of the small world."""
from __future__ import annotations

from pathlib import Path

from standin_core.stand_in.variant import PAPER, Variant

VARIANTS = {"the paper": PAPER, "shared positions": Variant(positions="shared"),
            "ordinary attention": Variant(self_attention="ordinary")}
SEEDS = (0, 1, 2)


def compared_file(folder: Path, variant: str, seed: int) -> Path:
    """The adapter of one of the trainings that are compared."""
    return folder / f"compared_{variant.replace(' ', '_')}_{seed}.safetensors"
