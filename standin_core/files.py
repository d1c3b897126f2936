"""Files that are whole or not there, and files of JSON lines, of which a kill spoils the last line at most."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

CHUNK_BYTES = 1 << 24
UNFINISHED = ".part"  # ends the name of a folder in which a file is written


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends, what lies there takes the file's place at once.

    After an error in the block, a full disk say, the file is what it was before. The path is in a folder of its own,
    because safetensors writes files of its own making beside it, which a kill leaves there.
    """
    folder = file.with_name(f"{file.name}{UNFINISHED}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder / "part"
        (folder / "part").replace(file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def drop_unfinished(folder: Path) -> None:
    """Remove what a kill left in a folder, and in those within it, of files that were to be replaced."""
    for left in list(folder.rglob(f"*{UNFINISHED}")):
        shutil.rmtree(left)


def sha256_of(path: Path, ask: Callable[[], None] = lambda: None) -> str:
    """ask: called before each part of the file; it raises where the user has cancelled."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            ask()
            digest.update(chunk)
    return digest.hexdigest()


def append_line(file: Path, value: dict) -> None:
    """Add a line that is on the disk when this returns; after an unfinished line, begin a new one."""
    with file.open("ab+") as out:
        if out.tell() and not _ends_a_line(out):
            out.write(b"\n")
        out.write(_line(value).encode())
        out.flush()
        os.fsync(out.fileno())


def write_lines(file: Path, values: Iterable[dict]) -> None:
    """Replace the file by one of these lines."""
    with replacing(file) as part:
        part.write_text("".join(map(_line, values)), encoding="utf-8")


def read_lines(file: Path) -> list[dict]:
    """Every line but those that were not finished; no lines where there is no file."""
    values = []
    for line in _lines(file):
        with contextlib.suppress(ValueError):  # of JSON, and of UTF-8 that was cut in a character
            values.append(json.loads(line))
    return values


def drop_damaged_lines(file: Path, *keys: str) -> int:
    """Take out the lines that are not finished, or that are no objects with these keys; returns how many they were."""
    lines = _lines(file)
    whole = [line for line in read_lines(file) if isinstance(line, dict) and all(key in line for key in keys)]
    if len(whole) < len(lines):
        write_lines(file, whole)
    return len(lines) - len(whole)


def _lines(file: Path) -> list[bytes]:
    return list(filter(None, file.read_bytes().split(b"\n"))) if file.exists() else []


def _line(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _ends_a_line(out) -> bool:
    out.seek(-1, os.SEEK_END)
    return out.read(1) == b"\n"
