"""Where files lie, among ComfyUI's folders."""
from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from .contracts import UserError

ADAPTERS = "stand_in"
TRAINING = "stand_in_training"  # below ComfyUI's output folder


def register_adapters() -> None:
    """models/stand_in, then wherever LoRAs lie, because that is where users put these files."""
    extensions = folder_paths.supported_pt_extensions
    own = os.path.join(folder_paths.models_dir, ADAPTERS)
    configured = folder_paths.folder_names_and_paths.get(ADAPTERS, ([], set()))[0]
    places = dict.fromkeys([*configured, own, *folder_paths.get_folder_paths("loras")])
    folder_paths.folder_names_and_paths[ADAPTERS] = (list(places), extensions)


def new_adapter_file(name: str) -> Path:
    """Where an adapter of this name is written, for Load Stand-In to list it."""
    return Path(folder_paths.get_folder_paths(ADAPTERS)[0]) / f"{plain_name(name)}.safetensors"


def training_folder(name: str) -> Path:
    """The folder that holds the data and the runs of this name."""
    return Path(folder_paths.get_output_directory()) / TRAINING / plain_name(name)


def find_file(folder: str, name: str) -> Path:
    """A file by its path, or by its name in one of ComfyUI's model folders. Raises UserError where it is in none."""
    if Path(name).is_file():
        return Path(name)
    found = folder_paths.get_full_path(folder, name)
    if found is None:
        raise UserError(f"there is no {name} among ComfyUI's {folder}: give a path, or one of "
                        f"{', '.join(folder_paths.get_filename_list(folder)) or 'none that are there yet'}.")
    return Path(found)


def fingerprint(folder: str, name: str) -> tuple[str, int, int] | None:
    """What is another where a file of one of ComfyUI's model folders is another: its path, the time of its last change
    in nanoseconds and its bytes. None where it is not there.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        return None
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size


def plain_name(name: str) -> str:
    """The name; raises UserError where it would lead into another folder."""
    if not name or Path(name).name != name or name in (".", "..") or "\\" in name:
        raise UserError(f"the name is {name!r}, needed is one for a file, without folders.")
    return name
