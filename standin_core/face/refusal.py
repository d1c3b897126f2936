"""Why a network for faces cannot run here."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """A fact, and what helps.

    fact: enough for a verdict that is otherwise good.
    remedy: where to get what is missing; "" where the fact says it.
    """

    fact: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.fact} ({self.remedy})" if self.remedy else self.fact
