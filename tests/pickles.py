"""Files that run code when they are read carelessly."""
from pathlib import Path


class Opens:
    """Pickles to a call of open, which leaves a file where it was run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
