"""What a person types for: the people and the prompts, read from files."""
from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

from standin_core.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
KEPT = ".safetensors"  # a person that Save Person wrote
UNWRITABLE = {"Cc", "Cs"}  # Unicode's categories of control characters, and of bytes that are no text


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody to make videos of.

    name: of the file or the folder.
    photos: pictures, sorted by name; the first is what a model is given. None of a kept person.
    kept: the file that Save Person wrote, or None.
    """

    name: str
    photos: tuple[Path, ...]
    kept: Path | None = None


def read_people(folder: Path) -> list[Person]:
    """The people in a folder, each a picture, a folder of pictures or a kept person, sorted by name.

    Hidden files, whose names begin with a dot, are nobody: macOS puts ._anna.png, which is no picture, beside anna.png.

    Raises UserError where there is nobody, and for a name that comes twice or cannot be written on a line.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: make it, with a picture or a folder of pictures per person.")
    people = []
    for path in _shown(folder):
        photos = _shown(path) if path.is_dir() else [path]
        photos = [each for each in photos if each.is_file() and each.suffix.lower() in PICTURES]
        if path.is_file() and path.suffix.lower() == KEPT:
            people.append(Person(path.stem, (), path))
        elif photos:
            people.append(Person(path.stem if path.is_file() else path.name, tuple(photos)))
    if not people:
        raise UserError(f"{folder} holds no picture ({', '.join(PICTURES)}), no folder of pictures and no file of Save "
                        f"Person ({KEPT}): put one there per person.")
    odd = [person.name for person in people if UNWRITABLE & set(map(unicodedata.category, person.name))]
    if odd:
        raise UserError(f"{folder} has {odd[0]!a}, a name that cannot be written down: rename it.")
    twice = {person.name for person in people if sum(other.name == person.name for other in people) > 1}
    if twice:
        raise UserError(f"{folder} has {' and '.join(sorted(twice))} more than once: give each person one name.")
    return people


def _shown(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def read_prompts(file: Path) -> list[str]:
    """One prompt a line, without empty lines and those that begin with #.

    Raises UserError where there is none, or no text.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}: write one with a prompt on each line.")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8."
                        ) from error
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise UserError(f"{file} has no prompt: write one on each line.")
    return prompts
