"""Where files lie, among ComfyUI's folders."""
from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

from .errors import UserError
from .words import shown

LONGEST_NAME = 200  # bytes; file systems take 255, of which endings such as .safetensors.part need some
# what Windows keeps for devices, with any ending, and the characters that it has in no name
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
NEVER_IN_NAMES = re.compile(r'[<>:"/\\|?*]')
Fingerprint = tuple[str, int, int]  # of a file: its path, the time of its last change in nanoseconds, its bytes


def register_folder(folder: str, *others: str) -> None:
    """Make models/<folder> one of ComfyUI's model folders, for files of weights.

    folder: its name. Where the user has configured a place for it, that place comes first.
    others: ComfyUI's names of further folders in which users keep such files, such as "loras".
    """
    own = os.path.join(folder_paths.models_dir, folder)
    configured = folder_paths.folder_names_and_paths.get(folder, ([], set()))[0]
    places = dict.fromkeys([*configured, own, *(place for other in others
                                                for place in folder_paths.get_folder_paths(other))])
    folder_paths.folder_names_and_paths[folder] = (list(places), folder_paths.supported_pt_extensions)


def new_file(folder: str, name: str) -> Path:
    """Where a new file of weights is written so that ComfyUI lists it; the name comes without a suffix."""
    return Path(folder_paths.get_folder_paths(folder)[0]) / f"{plain_name(name)}.safetensors"


def filenames(folder: str) -> list[str]:
    """The files that ComfyUI lists in a model folder, without those of a registered folder inside it."""
    inner = tuple(name.removeprefix(f"{folder}/") + os.sep for name in folder_paths.folder_names_and_paths
                  if name.startswith(f"{folder}/"))
    return [name for name in folder_paths.get_filename_list(folder) if not name.startswith(inner)]


def output_folder(folder: str, name: str) -> Path:
    """The folder of this name inside a folder of ComfyUI's output."""
    return Path(folder_paths.get_output_directory()) / folder / plain_name(name)


def find_file(folder: str, name: str) -> Path:
    """A file by its path, or by its name in one of ComfyUI's model folders. Raises UserError where it is in none."""
    if Path(name).is_file():
        return Path(name)
    return listed_file(folder, name)


def listed_file(folder: str, name: str) -> Path:
    """A file by its name in one of ComfyUI's model folders. Raises UserError where it is in none."""
    found = folder_paths.get_full_path(folder, name)
    if found is None:
        raise UserError(f"there is no {shown(name)} among ComfyUI's {folder}: take one of "
                        f"{shown(', '.join(folder_paths.get_filename_list(folder)) or 'none, the folder is empty')}.")
    return Path(found)


def fingerprint(folder: str, name: str) -> Fingerprint | None:
    """The fingerprint of a file of one of ComfyUI's model folders; None if the folder has no such file."""
    path = folder_paths.get_full_path(folder, name)
    return None if path is None else fingerprint_of(path)


def fingerprint_of(path: str | Path) -> Fingerprint:
    """What changes when a file is written anew."""
    status = os.stat(path)
    return str(path), status.st_mtime_ns, status.st_size


def plain_name(name: str) -> str:
    """The name; raises UserError unless every platform takes it as that of one file or folder, without a path."""
    faults = {
        "is empty": not name, "has characters that cannot be printed": not name.isprintable(),
        "has a character that file names cannot have": NEVER_IN_NAMES.search(name) is not None,
        "begins or ends with a space or ends with a dot": name != name.strip().rstrip("."),
        "is a name that Windows keeps for a device": RESERVED.fullmatch(name) is not None,
        f"is longer than {LONGEST_NAME} bytes": len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME}
    fault = next((words for words, is_so in faults.items() if is_so), None)
    if fault is not None:
        raise UserError(f"the name must be one for a file, without folders, but {shown(name)!r} {fault}: take letters, "
                        "digits, - and _.")
    return name
