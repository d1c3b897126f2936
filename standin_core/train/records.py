"""Files of one JSON record a line, which a run that is killed leaves whole but for the last line."""
from __future__ import annotations

import json
import os
from pathlib import Path


def append_line(file: Path, record: dict) -> None:
    """On the disk when it returns; after an unfinished line, begins a new one."""
    with file.open("ab+") as out:
        if out.tell() and not _ends_a_line(out):
            out.write(b"\n")
        out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


def write_lines(file: Path, records: list[dict]) -> None:
    """In place of what is there."""
    unfinished = file.with_suffix(".part")
    unfinished.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
                          encoding="utf-8")
    unfinished.replace(file)


def read_lines(file: Path) -> list[dict]:
    """Every record; a line that was not finished is left out. A file that is not there has none."""
    records = []
    for line in file.read_text(encoding="utf-8").split("\n") if file.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _ends_a_line(out) -> bool:
    out.seek(-1, os.SEEK_END)
    return out.read(1) == b"\n"
