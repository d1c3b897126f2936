"""Download of a face model, only where the user has switched download_missing on in a node."""
from __future__ import annotations

import contextlib
import hashlib
import http.client
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import comfy.model_management
import comfy.utils
import filelock
import folder_paths

from ..errors import UserError
from ..words import shown
from .models import FOLDERS, ModelFile, find_model

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30
ASKED_SECONDS = 0.5  # how long a download that waits for another goes without asking for the user's interrupt


def download_if_missing(model_file: ModelFile) -> None:
    """Download the file into models/facexlib unless one of the folders has it.

    The download grows under a temporary name, and a later call continues an interrupted one. The file gets its own name
    only when its size and its hash are right. (torch.hub and pooch continue no download.)

    Raises UserError if the source cannot be reached or sends another file.
    """
    if find_model(model_file.name) is not None:
        return
    folder = Path(folder_paths.models_dir) / FOLDERS[0]
    partial = folder / f"{model_file.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            if find_model(model_file.name) is not None:  # by now
                return
            _continue(partial, model_file)
            _check(partial, model_file)
            partial.replace(folder / model_file.name)
    except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and a full disk are OSErrors
        raise UserError(f"{model_file.name} could not be downloaded ({shown(error)}): try again, it continues where it "
                        f"stopped, or get by hand {model_file}.") from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Within the context nobody else downloads into the folder, as several ComfyUIs with one folder of models might."""
    lock = filelock.FileLock(folder / ".lock")
    while not lock.is_locked:
        comfy.model_management.throw_exception_if_processing_interrupted()
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=ASKED_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _continue(partial: Path, model_file: ModelFile) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if have >= model_file.size:
        return
    request = urllib.request.Request(model_file.url, headers={"Range": f"bytes={have}-"})
    progress = comfy.utils.ProgressBar(model_file.size)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        if response.status != 206:  # the server sends the whole file again
            have = 0
        with partial.open("ab" if have else "wb") as file:
            while chunk := response.read1(CHUNK_BYTES):  # what is there already, so that a slow server is left at once
                comfy.model_management.throw_exception_if_processing_interrupted()
                file.write(chunk)
                have += len(chunk)
                progress.update_absolute(min(have, model_file.size))
                if have > model_file.size:
                    break
    if have < model_file.size:
        raise ConnectionError(f"the connection ended after {have} of {model_file.size} bytes")


def _check(partial: Path, model_file: ModelFile) -> None:
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model_file.sha256:
        size = partial.stat().st_size
        partial.unlink()
        raise UserError(f"{model_file.url} sent another file than expected ({size} bytes, SHA-256 {found}); it was "
                        f"deleted: try again, or get by hand {model_file}.")
