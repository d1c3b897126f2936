"""A small case computed on the user's own device, before a run depends on a path that nobody has tried there."""
from __future__ import annotations

from collections.abc import Callable


def fault(difference: Callable[[], float], bar: float) -> str | None:
    """What goes wrong, or None. difference: computes the case and compares it; bar: the most that it may be."""
    try:
        found = difference()
    except Exception as error:  # whatever a package, a compiler or the driver raise
        return f"it failed on this device ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    return None if found <= bar else f"it is wrong on this device, by {found:.1e}"
