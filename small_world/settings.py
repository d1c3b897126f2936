"""The settings of Apply Identity Branch that the demo and the README's picture show side by side."""
from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from standin_core.stand_in.presets import CUSTOM, with_preset

RECORD = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "small_world_cpu.json"


@dataclass(frozen=True, slots=True)
class Setting:
    """name: as people see it.
    measured_as: its name in RECORD.
    inputs: those of Apply Identity Branch that are not the template's.
    """

    name: str
    measured_as: str
    inputs: dict

    @property
    def controls(self) -> dict:
        """The inputs as the engine takes them: what the preset sets in place of its name."""
        return with_preset(self.inputs.get("preset", CUSTOM),
                           {name: value for name, value in self.inputs.items() if name != "preset"})

    @property
    def kept(self) -> float:
        """How much of a person is kept with it, as measured over `people_measured` people."""
        return _record()[self.measured_as]["kept"]


PAPER = Setting("as in the paper", "with the branch", {"preset": "paper"})
CLOSER = Setting("closer likeness", "positive pass", {"preset": "closer likeness"})
PLAIN = Setting("without the identity", "without the branch", {"strength": 0.0})
SETTINGS = (PAPER, CLOSER, PLAIN)


def people_measured() -> int:
    return _record()["people"]


@functools.cache
def _record() -> dict:
    return json.loads(RECORD.read_text(encoding="utf-8"))
