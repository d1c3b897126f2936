"""How similar a video and a photo are, frame by frame."""
from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

import comfy.model_management
import numpy as np
import torch

from ..checks import check_choice, check_number, checked_pictures
from ..errors import UserError
from ..face import to_uint8
from ..words import counted
from .embedders import (
    FACE_EMBEDDERS,
    Embedder,
    Seen,
    clip_embedder,
    download_face_embedder,
    face_embedder,
    face_embedder_refusal,
    face_embedder_refusals,
)
from .measures import Summary, clip_distance, copied_pixels, copy_paste, cosine, summarize

EMBEDDERS = ("auto", *FACE_EMBEDDERS, "clip vision")
REGIONS = ("face", "whole frame")


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """How pictures are compared.

    embedder: one of EMBEDDERS.
    region: one of REGIONS.
    min_score: 0 to 1; faces with a lower score are left out.
    """

    embedder: str = "auto"
    region: str = "face"
    min_score: float = 0.5

    def __post_init__(self):
        check_choice(self.embedder, "embedder", EMBEDDERS)
        check_choice(self.region, "region", REGIONS)
        check_number(self.min_score, "min_score", 0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """A video of F frames beside photos of a person. The model was given the first photo.

    In every series, a frame without a face is NaN.

    embedder: its name, in words.
    similarity: [F], cosine between the frame and the first photo.
    clip_distance: [F], between the whole frame and the whole first photo; None without CLIP vision.
    nearest: [F], cosine between the frame and the photo that is nearest to it.
    copied: [F], see ``copied_pixels``.
    copy_paste: [F], see ``copy_paste``; None with one photo.
    crops: the face of each frame, [S, S, 3] uint8, or None.
    photo: the face of the first photo, [S, S, 3] uint8.
    photos: how many photos there are.
    """

    embedder: str
    similarity: np.ndarray
    clip_distance: np.ndarray | None
    nearest: np.ndarray
    copied: np.ndarray
    copy_paste: np.ndarray | None
    crops: tuple[np.ndarray | None, ...]
    photo: np.ndarray
    photos: int

    @property
    def series(self) -> dict[str, np.ndarray]:
        """Each series that could be measured, [F]."""
        others = self.photos > 1
        found = {"similarity": self.similarity, "copied_pixels": self.copied, "clip_distance": self.clip_distance,
                 "nearest": self.nearest if others else None, "copy_paste": self.copy_paste}
        return {name: values for name, values in found.items() if values is not None}

    @property
    def summaries(self) -> dict[str, Summary]:
        return {name: summarize(values) for name, values in self.series.items()}

    def as_text(self) -> str:
        """One fact a line."""
        frames, summary = len(self.similarity), summarize(self.similarity)
        seen = round(summary.coverage * frames)
        lines = [f"{counted(frames, 'frame')}, compared by {self.embedder}"]
        if not seen:
            return "\n".join([*lines, "no face in any frame"])
        copied = summarize(self.copied)
        lines += [
            f"seen in {seen} of {counted(frames, 'frame')} ({100 * summary.coverage:.0f} %)",
            f"similarity: mean {summary.mean:.3f}, 5th percentile {summary.p05:.3f}, lowest {summary.minimum:.3f} in "
            f"frame {int(np.nanargmin(self.similarity)) + 1}, drift {summary.drift:+.3f} from first to last frame",
            f"copied pixels: mean {copied.mean:.3f}, most {np.nanmax(self.copied):.3f} in frame "
            f"{int(np.nanargmax(self.copied)) + 1}; 1 would be the photo itself, so similarity with little copied is "
            "what to look for",
        ]
        if self.clip_distance is not None:
            lines.append(f"CLIP distance of whole pictures: mean {summarize(self.clip_distance).mean:.3f}; 0 is the "
                         "same picture, scene and all")
        if self.copy_paste is not None:
            lines += [
                f"nearest of {self.photos} photos: mean {summarize(self.nearest).mean:.3f}",
                f"copy-paste: {summarize(self.copy_paste).mean:+.3f} against {self.photos - 1} other photo(s); 1 is "
                "the given photo over again, 0 as near to the others, -1 the others",
            ]
        return "\n".join(lines)

    def as_json(self) -> str:
        """Summaries and series; a frame without a face is null."""
        series = {name: [None if math.isnan(value) else round(float(value), 6) for value in values]
                  for name, values in self.series.items()}
        summaries = {name: {key: None if math.isnan(value) else round(value, 6)
                            for key, value in dataclasses.asdict(summary).items()}
                     for name, summary in self.summaries.items()}
        return json.dumps({"embedder": self.embedder, "photos": self.photos, "summary": summaries, "frames": series},
                          indent=1)


def compare(images: torch.Tensor, photos: torch.Tensor, settings: CompareSettings, clip_vision=None,
            progress=lambda: None) -> Comparison:
    """The video beside the photos, as in ``compare_each``.

    images: [F, H, W, 3] float in 0..1, the video.
    """
    (comparison,) = compare_each([images], photos, settings, clip_vision, progress)
    return comparison


def compare_each(videos: list[torch.Tensor], photos: torch.Tensor, settings: CompareSettings, clip_vision=None,
                 progress=lambda: None) -> list[Comparison]:
    """Each video beside the photos.

    videos: of [F, H, W, 3] float in 0..1.
    photos: [R, h, w, 3] float in 0..1, first the photo that the model was given, then others of the same person.
    clip_vision: from ComfyUI's Load CLIP Vision, or None.
    progress: called after each frame.

    Raises UserError for what is no video or no photo, if a photo shows no face, and for an embedder that cannot
    run here.
    """
    if not videos:
        raise UserError("no video came: connect the decoded frames.")
    videos = [checked_pictures(images, "images") for images in videos]
    photos = checked_pictures(photos, "reference_image")
    embedder = load_embedder(settings, clip_vision)
    whole = embedder if settings.region == "whole frame" else None
    if whole is None and clip_vision is not None:
        whole = clip_embedder(clip_vision, whole=True, min_score=settings.min_score)
    pictures = [_picture(photo) for photo in photos]
    references = []
    for index, picture in enumerate(pictures):
        comfy.model_management.throw_exception_if_processing_interrupted()
        seen = embedder.see(picture, index)
        if seen is None:
            raise UserError(f"no face was found in photo {index + 1} of {len(pictures)} ({embedder.name}): "
                            "connect a clear photo, lower min_score, or set region to whole frame.")
        references.append(seen)
    photo = None if whole is None else _vector(whole.see(pictures[0], 0))
    found = []
    for images in videos:
        frames, vectors = [], []
        for index, frame in enumerate(images):
            comfy.model_management.throw_exception_if_processing_interrupted()
            picture = _picture(frame)
            frames.append(embedder.see(picture, index))
            if whole is not None:
                vectors.append(_vector(frames[-1] if whole is embedder else whole.see(picture, index)))
            progress()
        distance = None if photo is None else clip_distance(np.stack(vectors), photo)
        found.append(_compared(embedder, references, frames, distance))
    return found


def _vector(seen: Seen | None) -> np.ndarray:
    """[D], of a whole picture, in which there is always something to see."""
    assert seen is not None
    return seen.vector


def _picture(image: torch.Tensor) -> np.ndarray:
    """[H, W, 3] uint8.

    image: [H, W, 3 or 4] float in 0..1.
    """
    return to_uint8(image[..., :3])


def _compared(embedder: Embedder, references: list[Seen], frames: list[Seen | None],
              distance: np.ndarray | None) -> Comparison:
    photo, *others = references
    faces = {index: frame for index, frame in enumerate(frames) if frame is not None}
    seen = list(faces)
    similarity, nearest, copied, pasted = (np.full(len(frames), math.nan) for _ in range(4))
    if seen:
        vectors = np.stack([face.vector for face in faces.values()])
        to_photos = cosine(vectors, np.stack([each.vector for each in references]))
        similarity[seen], nearest[seen] = to_photos[:, 0], to_photos.max(axis=1)
        copied[seen] = [copied_pixels(face.crop, photo.crop) for face in faces.values()]
        if others:
            between = cosine(photo.vector[None], np.stack([each.vector for each in others]))[0]
            pasted[seen] = copy_paste(to_photos[:, 1:], to_photos[:, 0], between)
    return Comparison(embedder.name, similarity, distance, nearest, copied, pasted if others else None,
                      tuple(None if frame is None else frame.crop for frame in frames), photo.crop, len(references))


def load_embedder(settings: CompareSettings, clip_vision, download_missing: bool = False) -> Embedder:
    """The embedder that the settings name, or the first that can run here; CLIP vision comes last.

    clip_vision: from ComfyUI's Load CLIP Vision, or None.
    download_missing: download the face embedder that the settings name; for "auto", arcface if no other can run.

    Raises UserError if the named embedder cannot run, or no embedder can.
    """
    name = settings.embedder
    if name in FACE_EMBEDDERS:
        return _named(settings, download_missing)
    if name == "auto" and settings.region == "face":
        refusals = face_embedder_refusals()
        if download_missing and clip_vision is None and refusals.keys() == FACE_EMBEDDERS.keys():
            download_face_embedder("arcface")
            refusals = face_embedder_refusals()
        able = [name for name in FACE_EMBEDDERS if name not in refusals]
        if able:
            return face_embedder(able[0], settings.min_score)
        why = "; ".join(f"{name} cannot run: {refusal}" for name, refusal in refusals.items())
    else:
        why = "region is whole frame" if name == "auto" else "embedder is clip vision"
    if clip_vision is None:
        raise UserError(f"{why}, and no CLIP vision is connected: connect Load CLIP Vision (any model, like "
                        "clip_vision_h.safetensors).")
    return clip_embedder(clip_vision, settings.region == "whole frame", settings.min_score)


def _named(settings: CompareSettings, download_missing: bool) -> Embedder:
    name = settings.embedder
    if settings.region == "whole frame":
        raise UserError(f"{name} compares faces, but region is whole frame: set region to face, or embedder to clip "
                        "vision.")
    if download_missing:
        download_face_embedder(name)
    refusal = face_embedder_refusal(name)
    if refusal is not None:
        raise UserError(f"{name} cannot run: {refusal}. Supply what is missing, or set embedder to auto or clip "
                        "vision.")
    return face_embedder(name, settings.min_score)
