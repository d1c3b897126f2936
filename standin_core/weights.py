"""Files of weights: read whole, checked, and nothing in them run."""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from .checks import extent, oddity
from .errors import UserError
from .words import shown

MOST_BYTES = 8 << 30  # of a file that is read whole; an adapter of rank 1024 for Wan 14B has 5.0 GB in fp32
LONGEST_KEY = 256  # characters
MOST_IN_HEADER = 2 << 20  # bytes of what a file says of its tensors; a Wan 14B's have 0.2 MB
MOST_OPERATIONS = 1 << 19  # of a pickle, each of a byte at least; two million take 5 s
CHUNK_BYTES = 1 << 24
MOST_SHARING = 4  # tensors of a file may share their data, as weights and a copy of them do

# in the names of its tensors
ORDINARY_LORA = re.compile(r"lora_(up|down|A|B)\b|\.(alpha|diff|diff_b|hada_w1_a|lokr_w1)$")

SAFETENSORS = (".safetensors", ".sft")
COMPUTED = (torch.float32, torch.float16, torch.bfloat16)  # the dtypes of weights that every device computes in
CONTAINERS = ("state_dict", "module")  # in which Lightning and DeepSpeed keep the weights, with other things beside
# those of safetensors that PyTorch computes in; the others are parts of quantised layers
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "C64", "I64",
                    "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
Ask = Callable[[], None]  # called before each tensor or part of a file; it raises where the user has cancelled


class _Fault(ValueError):
    """What is wrong with a file, after its name.

    remedy: in the place of that of ``read_weights``, where there is a better one.
    """

    def __init__(self, words: str, remedy: str = ""):
        super().__init__(words)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Weights:
    """What a file of weights holds.

    content: key -> tensor where the file is in order, but a .ckpt or .pt file may hold any plain data. It is out of
        its container; see ``check_tensors`` for what is true of every tensor in it.
    metadata: empty for all but safetensors.
    sha256: of the file.
    """

    content: Any
    metadata: dict[str, str]
    sha256: str


def download_again(what: str) -> str:
    """The remedy for a file of a kind, such as "a Stand-In adapter"."""
    return f"{what} is a .safetensors or a weights-only .ckpt or .pt file, so download it again from its source page"


def read_weights(path: Path, remedy: str, ask: Ask = lambda: None) -> Weights:
    """Read a file of weights, on the CPU. Nothing in it is run, and what becomes of the file later changes nothing.

    remedy: what to do where the file cannot serve, as the end of a sentence.

    Raises UserError with the file, what is wrong with it, and the remedy.
    """
    with refusing_damage(path, remedy, ask) as ask:
        size = bytes_of(path)
        check_size(size)
        digest = hashlib.sha256()
        with path.open("rb") as file:  # a mapping would end the process at the next touch after the file is cut short

            def take(count: int) -> bytes:
                ask()
                taken = io.BytesIO()
                while part := file.read(min(CHUNK_BYTES, count - taken.tell())):
                    ask()
                    digest.update(part)
                    taken.write(part)
                return taken.getvalue()

            if path.suffix.lower() in SAFETENSORS:
                content, metadata = _safetensors(take, size)
            else:
                data = io.BytesIO()
                while part := take(CHUNK_BYTES):
                    data.write(part)
                check_claim(data, size)
                data.seek(0)
                content, metadata = weights_in(unpickled(data, ask)), {}
        check_tensors(content, size, ask)
        return Weights(content, metadata, digest.hexdigest())


def _safetensors(take: Callable[[int], bytes], size: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata, one tensor at a time; safetensors itself reads each as a file of its own.

    take: gives the next bytes of the file, so many or what is left.
    size: of the file in bytes.
    """
    length = int.from_bytes(take(8), "little")
    if length > MOST_IN_HEADER:
        raise _Fault(f"is damaged or no safetensors: its header would have {length:,} bytes, and such files have at "
                     f"most {MOST_IN_HEADER:,}")
    header, data = json.loads(take(length), object_pairs_hook=_each_once), size - 8 - length
    metadata = checked_metadata(header.pop("__metadata__", None))
    tensors: dict[str, torch.Tensor] = {}
    end = 0
    for name, said in sorted(header.items(), key=lambda entry: entry[1]["data_offsets"]):
        begin, (start, end) = end, said["data_offsets"]
        if end > data:
            raise _Fault(f"is cut off: {shown(name)} would end {end - data:,} bytes behind its end")
        if start != begin or end < begin:
            raise _Fault(f"has tensors that do not lie one behind the other ({shown(name)})")
        if said["dtype"] not in DTYPES:
            raise _Fault(f"has a tensor of dtype {shown(said['dtype'])} ({shown(name)}), in which nothing is computed",
                         "take the file in fp32, fp16 or bf16")
        alone = json.dumps({name: {**said, "data_offsets": [0, end - begin]}}).encode()
        tensors |= safetensors.torch.load(len(alone).to_bytes(8, "little") + alone + take(end - begin))
    if end != data:
        raise _Fault("has something behind its tensors")
    return tensors, metadata


def _each_once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of whose entries of one name Python takes the last."""
    found: dict[str, Any] = {}
    for key, value in entries:
        if key in found:
            raise _Fault(f"has {shown(key)} twice in its header")
        found[key] = value
    return found


def checked_metadata(metadata) -> dict[str, str]:
    """The metadata of a safetensors, none of which is an empty dictionary; refuses what is not text.

    Call it within ``refusing_damage``.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Fault("has metadata that is not text")
    return metadata


class _Counted(io.BufferedReader):
    """A pickle is read operation by operation, and no further than MOST_OPERATIONS."""

    operations = 0

    def read(self, size=-1, /):
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise _Fault(f"has more than {MOST_OPERATIONS:,} operations in its pickle")
        return super().read(size)


def _check_header(size: int) -> None:
    if size > MOST_IN_HEADER:
        raise _Fault(f"says more than {MOST_IN_HEADER:,} bytes of its tensors")


def unpickled(file: Path | io.BytesIO, ask: Ask) -> Any:
    """What a .ckpt or .pt file holds, on the CPU; nothing in it is run.

    file: is closed.

    Raises whatever damage leads torch to.
    """
    def to_cpu(storage, place):
        ask()
        return storage

    with _Counted(io.FileIO(file) if isinstance(file, Path) else file) as data:
        return torch.load(data, map_location=to_cpu, weights_only=True)


def check_named(weights: Any, name: str, instead: str) -> None:
    """Refuse what a file holds if it is no dictionary with names for keys.

    name: of the file.
    instead: what to choose.
    """
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise UserError(f"{name} holds a {type(weights).__name__} that is not named tensors: choose {instead}.")


def weights_in(content: Any) -> Any:
    """What a file holds, without the container that a training put around it.

    A container may hold more than weights, such as a best loss of infinity.
    """
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    return content


@contextlib.contextmanager
def refusing_damage(path: Path, remedy: str, ask: Ask = lambda: None) -> Iterator[Ask]:
    """Within the context a file of weights is read; raises UserError where that fails, whatever the damage leads to.

    remedy: see ``read_weights``.

    Yields ask for use within the context, from which its exceptions go through.
    """
    raised: list[BaseException] = []

    def asked() -> None:
        try:
            ask()
        except BaseException as error:
            raised.append(error)
            raise

    try:
        yield asked
    except Exception as error:  # torch's readers raise whatever the damage leads them to
        if error in raised:
            raise
        if isinstance(error, _Fault):
            fault, remedy = str(error), error.remedy or remedy
        elif isinstance(error, OSError) and error.filename is not None:
            fault = f"cannot be opened ({error.strerror})"
        elif isinstance(error, MemoryError):
            fault = "asks for more memory than there is"
        else:
            fault = f"cannot be read as weights ({type(error).__name__})"
        raise UserError(f"{shown(path.name)} {fault}: {remedy}.") from error


def bytes_of(path: Path) -> int:
    """The size of a file in bytes; to be called in ``refusing_damage``, which refuses pipes and devices."""
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # a folder cannot be opened
        raise _Fault("must be a file, but is a pipe or a device, which may have no end")
    return status.st_size


def check_size(size: int) -> None:
    """Refuse a file that is too large to be read whole; to be called in ``refusing_damage``.

    size: of the file in bytes.
    """
    if size > MOST_BYTES:
        raise _Fault(f"has {size:,} bytes, and such files have at most {MOST_BYTES:,}")


def check_claim(file: str | Path | io.BytesIO, size: int) -> None:
    """Refuse an archive that would unpack into more than it has, or that says too much of its tensors; to be called in
    ``refusing_damage``.

    size: of the file in bytes.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
        claimed = sum(record.file_size for record in records)
        if claimed > size:  # torch writes archives without compression
            raise _Fault(f"has {size:,} bytes and claims to unpack into {claimed:,}")
        _check_header(max((each.file_size for each in records if each.filename.endswith(".pkl")), default=0))


def check_tensors(content, size: int, ask: Ask) -> None:
    """Refuse what no file of weights has; to be called in ``refusing_damage``.

    Every tensor is then dense, real, finite, on the CPU and without gradients, they claim no more than MOST_SHARING
    times the bytes of the file, and every key is printable and has at most LONGEST_KEY characters.

    content: a tensor, a dict of anything at any depth, or anything else, which is passed over.
    size: of the file in bytes.
    """
    claimed, known, left = 0, set(), [("its content", content)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict) and id(value) not in known:
            known.add(id(value))
            for key in value:
                if isinstance(key, str) and (len(key) > LONGEST_KEY or not key.isprintable()):
                    raise _Fault(f"has the name {shown(key)}, which no tensor has")
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
