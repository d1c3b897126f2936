"""A person as one safetensors file in models/stand_in/people."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pydantic
import safetensors.torch
import torch
from comfy.model_management import throw_exception_if_processing_interrupted

from ..contracts import CroppedFace, FaceCrop
from ..errors import UserError
from ..face import to_uint8
from ..files import replacing
from ..latents import CHANNELS
from ..weights import read_weights, refusing_damage
from ..words import shown
from .record import Person, Use

PEOPLE = "stand_in/people"  # under ComfyUI's models
FORMAT, VERSION = "stand_in_person", "1"
MAKE_ANEW = "make it anew with Save Person"  # the remedy for a file that is loaded
OTHERWISE = "choose another name, or switch replace on"  # and for one that is in the way
# last part of a tensor's name -> its dtype, and its sides after the first, which counts photos; None for any
SHAPES: dict[str, tuple] = {
    "photos": (torch.uint8, None, None, 3), "image": (torch.uint8, None, None, 3), "rgba": (torch.uint8, None, None, 4),
    "points": (None, 5, 2), "hidden_states": (torch.float32, None, None),
    "vae": (torch.float32, CHANNELS, 1, 2, 2),
    **dict.fromkeys((Use.STAND_IN, Use.CONCAT_ID), (torch.float32, CHANNELS, 1, None, None))}


class _Found(pydantic.BaseModel, strict=True, extra="forbid"):
    """What is said of a face; see CroppedFace."""

    measured: bool
    cut_out: bool


FACES = pydantic.TypeAdapter(dict[Use, list[_Found]])
VERDICTS = pydantic.TypeAdapter(dict[Use, str])


def save_person(person: Person, file: Path, replace: bool = False) -> None:
    """Write the file; the pictures are kept in 8 bits.

    replace: also where the file holds other photos.

    Raises UserError where it does and replace is off.
    """
    pixels = torch.from_numpy(to_uint8(person.photos))
    photos = content_sha256({"photos": pixels}, {})
    if file.exists() and not replace and read_weights(file, OTHERWISE).metadata.get("photos_sha256") != photos:
        raise UserError(f"there is a {file.name} already, made from other photos: {OTHERWISE}.")
    tensors = {"photos": pixels} | {f"latents.{use}": latent for use, latent in person.latents.items()}
    if person.vae is not None:
        tensors["vae"] = person.vae
    if person.hidden_states is not None:
        tensors["hidden_states"] = person.hidden_states
    measured = {}
    for use, crop in person.crops.items():
        tensors[f"crops.{use}.image"] = torch.from_numpy(to_uint8(crop.image))
        tensors[f"crops.{use}.rgba"] = torch.from_numpy(to_uint8(crop.rgba))
        tensors[f"crops.{use}.points"] = torch.from_numpy(np.stack([_points(face) for face in crop.faces]))
        measured[use] = [{"measured": face.measured, "cut_out": face.cut_out} for face in crop.faces]
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    metadata = {"format": FORMAT, "version": VERSION, "name": person.name, "made_by": person.made_by,
                "faces": json.dumps(measured),
                "verdicts": json.dumps({use: crop.verdict for use, crop in person.crops.items()}, ensure_ascii=False),
                "photos_sha256": photos}
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        safetensors.torch.save_file(tensors, part, metadata=metadata | {"sha256": content_sha256(tensors, metadata)})


def load_person(file: Path) -> Person:
    """Raises UserError for a file that is no person, of a later version, incomplete, or changed since it was saved."""
    weights = read_weights(file, MAKE_ANEW, throw_exception_if_processing_interrupted)
    metadata = dict(weights.metadata)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{shown(file.name)} holds no person: choose a file that Save Person wrote.")
    if metadata.get("version") != VERSION:
        raise UserError(f"{shown(file.name)} must be a person of version {VERSION}, but is of version "
                        f"{shown(metadata.get('version'))}: update the node pack, or {MAKE_ANEW}.")
    tensors, written = weights.content, metadata.pop("sha256", None)
    with refusing_damage(file, MAKE_ANEW):
        is_whole = content_sha256(tensors, metadata) == written
    if not is_whole:
        raise UserError(f"{shown(file.name)} was changed after Save Person wrote it, its hash is another: "
                        f"{MAKE_ANEW}.")
    with refusing_damage(file, MAKE_ANEW):
        _check_shapes(tensors)
        return _person(tensors, metadata)


def _check_shapes(tensors: dict[str, torch.Tensor]) -> None:
    """Raise ValueError for what ``save_person`` never writes: anyone can write a file with the right hash."""
    photos = len(tensors["photos"])
    others = {"hidden_states": photos + 1, "vae": 1}
    for name, tensor in tensors.items():
        dtype, *sides = SHAPES[name.rpartition(".")[2]]
        wanted = [others.get(name, photos), *sides]
        if dtype not in (None, tensor.dtype) or tensor.ndim != len(wanted) or not all(
                came > 0 and side in (None, came) for side, came in zip(wanted, tensor.shape)):
            raise ValueError(f"{name} is {tensor.dtype} of shape {list(tensor.shape)}")


def _person(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Person:
    faces, verdicts = FACES.validate_json(metadata["faces"]), VERDICTS.validate_json(metadata["verdicts"])
    photos = _picture(tensors["photos"])
    crops = {use: FaceCrop(
        _picture(tensors[f"crops.{use}.image"]), _picture(tensors[f"crops.{use}.rgba"]),
        tuple(CroppedFace(points.numpy(), **face.model_dump())
              for points, face in zip(tensors[f"crops.{use}.points"], faces[use], strict=True)),
        photos, verdicts[use]) for use in Use}
    latents = {use: tensors[f"latents.{use}"] for use in Use if f"latents.{use}" in tensors}
    return Person(shown(metadata["name"]), shown(metadata["made_by"]), photos, crops, latents,
                  tensors["vae"] if latents else None, tensors.get("hidden_states"))


def content_sha256(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """The hash of all metadata, and of names, types, shapes and values of the tensors."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _points(face: CroppedFace) -> np.ndarray:
    assert face.points is not None  # make_person refuses a face without
    return face.points


def _picture(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 255
