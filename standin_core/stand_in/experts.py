"""The adapters of Wan 2.2's two experts."""
from __future__ import annotations

import re

from ..errors import UserError
from .wrappers import installed

NOISE = re.compile(r"(?<![a-z])(high|low)(?![a-z])")  # in the file name of an adapter


def refuse_swapped_adapters(high_noise_model, low_noise_model) -> None:
    """Raise UserError if the adapters' file names say that each expert reads the other's.

    The weights do not tell: both adapters fit both experts, and a swapped pair runs and keeps less of the likeness.

    high_noise_model: a ModelPatcher.
    low_noise_model: a ModelPatcher or None.
    """
    if low_noise_model is None:
        return
    for high in installed(high_noise_model).identities:
        for low in installed(low_noise_model).identities:
            if (_noise(high.adapter.name), _noise(low.adapter.name)) == ("low", "high"):
                raise UserError(f"the adapters are swapped: the high-noise model reads {high.adapter.name} and the "
                                f"low-noise model {low.adapter.name}. Choose the other file in each Load Stand-In.")


def _noise(name: str) -> str | None:
    found = set(NOISE.findall(name.lower()))
    return found.pop() if len(found) == 1 else None
