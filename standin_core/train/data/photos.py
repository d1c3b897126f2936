"""Reference photos: faces cropped out of frames, as PNG files."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from ...face import FaceSettings, crop_faces
from ...files import replacing
from .dropped import Cause, Unusable

FOLDER = "references"  # below that of the data


def face_crops(frames: list[tuple[int, np.ndarray]], face: FaceSettings) -> Iterator[tuple[int, np.ndarray]]:
    """The largest face of every frame that shows one.

    frames: (number, picture [H, W, 3] uint8), all of one size.
    face: how they are cropped.

    Yields (number, crop [S, S, 3] uint8).
    """
    if not frames:
        return
    cropped = crop_faces(torch.from_numpy(np.stack([picture for _, picture in frames])).float() / 255,
                         dataclasses.replace(face, which_face="largest", no_face="whole image"))
    for (number, _), crop, found in zip(frames, cropped.image, cropped.faces, strict=True):
        if found.points is not None:
            yield number, (255 * crop).round().to(torch.uint8).numpy()


def check_cropping(face: FaceSettings) -> None:
    """Crop an empty picture; raises UserError where the detector or the parser cannot run here."""
    crop_faces(torch.ones(1, 64, 64, 3), dataclasses.replace(face, no_face="whole image"))


def write_photo(file: Path, picture: np.ndarray) -> None:
    """picture: [S, S, 3] uint8"""
    # cv2.imwrite fails on Windows for names that are not ASCII
    _, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    with replacing(file) as part:
        part.write_bytes(encoded.tobytes())


def read_photo(file: Path) -> np.ndarray:
    """[S, S, 3] uint8; raises Unusable for a file that is missing or damaged."""
    content = np.frombuffer(file.read_bytes() if file.is_file() else b"", np.uint8)
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if picture is None:
        raise Unusable(Cause.PHOTO_LOST, file.name)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
