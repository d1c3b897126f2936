"""Files of weights: read whole, checked, and nothing in them run."""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from .checks import extent, oddity, shown
from .contracts import UserError

MOST_BYTES = 8 << 30  # of a file that is read whole; an adapter of rank 1024 for Wan 14B has 5.0 GB in fp32
LONGEST_KEY = 256  # characters
MOST_SHARING = 4  # tensors of a file may share their data, as weights and a copy of them do

# in the names of its tensors
ORDINARY_LORA = re.compile(r"lora_(up|down|A|B)\b|\.(alpha|diff|diff_b|hada_w1_a|lokr_w1)$")


class _Fault(ValueError):
    """What is wrong with a file, after its name."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a file of weights holds.

    content: key -> tensor where the file is in order, but a .ckpt or .pt file may hold any plain data. See
        ``check_tensors`` for what is true of every tensor in it.
    metadata: empty for all but safetensors.
    sha256: of the file.
    """

    content: Any
    metadata: dict[str, str]
    sha256: str


def download_again(what: str) -> str:
    """The remedy for a file of a kind, such as "a Stand-In adapter"."""
    return f"{what} is a .safetensors or a weights-only .ckpt or .pt file, so download it again from its source page"


def read_weights(path: Path, remedy: str) -> Weights:
    """Read a file of weights, on the CPU. Nothing in it is run, and what becomes of the file later changes nothing.

    remedy: what to do where the file cannot serve, as the end of a sentence.

    Raises UserError with the file, what is wrong with it, and the remedy.
    """
    with refusing_damage(path, remedy):
        if path.stat().st_size > MOST_BYTES:
            raise _Fault(f"has {path.stat().st_size:,} bytes, and such files have at most {MOST_BYTES:,}")
        data = path.read_bytes()  # a mapping would end the process at the next touch after the file is cut short
        if path.suffix.lower() in (".safetensors", ".sft"):
            content, metadata = safetensors.torch.load(data), _metadata(data)
        else:
            check_claim(io.BytesIO(data), len(data))
            content, metadata = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), {}
        check_tensors(content, len(data))
        return Weights(content, metadata, hashlib.sha256(data).hexdigest())


@contextlib.contextmanager
def refusing_damage(path: Path, remedy: str, *no_damage: type[BaseException]) -> Iterator[None]:
    """Within the context a file of weights is read; raises UserError where that fails, whatever the damage leads to.

    remedy: see ``read_weights``.
    no_damage: exceptions that go through, such as that of the user's Cancel.
    """
    try:
        yield
    except no_damage:
        raise
    except Exception as error:  # torch's readers raise whatever the damage leads them to
        if isinstance(error, _Fault):
            fault = str(error)
        elif isinstance(error, OSError) and error.filename is not None:
            fault = f"cannot be opened ({error.strerror})"
        elif isinstance(error, MemoryError):
            fault = "asks for more memory than there is"
        else:
            fault = f"cannot be read as weights ({type(error).__name__})"
        raise UserError(f"{shown(path.name)} {fault}: {remedy}.") from error


def check_claim(file: str | Path | io.BytesIO, size: int) -> None:
    """Refuse an archive that would unpack into more than it has; to be called in ``refusing_damage``.

    size: of the file in bytes.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            claimed = sum(record.file_size for record in archive.infolist())
        if claimed > size:  # torch writes archives without compression
            raise _Fault(f"has {size:,} bytes and claims to unpack into {claimed:,}")


def check_tensors(content, size: int, ask: Callable[[], None] = lambda: None) -> None:
    """Refuse what no file of weights has; to be called in ``refusing_damage``.

    Every tensor is then dense, real, finite, on the CPU and without gradients, they claim no more than MOST_SHARING
    times the bytes of the file, and every key is printable and has at most LONGEST_KEY characters.

    content: a tensor, a dict of anything at any depth, or anything else, which is passed over.
    size: of the file in bytes.
    ask: called before each tensor; it raises where the user has cancelled.
    """
    claimed, known, left = 0, set(), [("its content", content)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict) and id(value) not in known:
            known.add(id(value))
            for key in value:
                if isinstance(key, str) and (len(key) > LONGEST_KEY or not key.isprintable()):
                    raise _Fault(f"has the name {shown(key)}, which is none of a tensor")
            left += [(shown(key), each) for key, each in value.items() if isinstance(key, str)]
        elif isinstance(value, torch.Tensor):
            ask()
            odd = oddity(value)
            if odd is not None:
                raise _Fault(f"has a tensor that is {odd} ({name})")
            value.requires_grad_(False)  # a parameter is loaded as one
            claimed += value.nbytes
            if claimed > MOST_SHARING * size:
                raise _Fault(f"has {size:,} bytes and claims tensors of {claimed:,} ({name})")
            if value.is_floating_point() and value.numel() and not all(map(math.isfinite, extent(value))):
                raise _Fault(f"has values that are not finite (NaN or infinite, in {name})")


def _metadata(safetensors_file: bytes) -> dict[str, str]:
    length = int.from_bytes(safetensors_file[:8], "little")
    return json.loads(safetensors_file[8:8 + length]).get("__metadata__") or {}
