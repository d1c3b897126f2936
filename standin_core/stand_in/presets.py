"""Settings of the identity branch that a user takes by name."""
from __future__ import annotations

from collections.abc import Mapping

from ..checks import check_choice

CUSTOM = "custom"  # sets nothing

PRESETS: Mapping[str, Mapping[str, str]] = {
    CUSTOM: {},
    "paper": {"guidance": "both passes"},
    "closer likeness": {"guidance": "positive pass"},
}


def with_preset(preset: str, settings: Mapping) -> dict:
    """These settings, where those of the preset replace what differs. Raises UserError for an unknown preset."""
    check_choice(preset, "preset", PRESETS)
    return {**settings, **PRESETS[preset]}
