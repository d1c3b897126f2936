"""A video and a photo in, how alike they are in every frame out."""
from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

import numpy as np
import torch

from ..contracts import StandInError
from ..face import to_uint8
from .embedders import Embedder, Seen, clip_embedder, comparing_missing, insightface_embedder
from .measures import Summary, clip_distance, copied_pixels, copy_paste, cosine, summarize

EMBEDDERS = ("auto", "insightface", "clip vision")
REGIONS = ("face", "whole frame")


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """embedder: one of EMBEDDERS; region: one of REGIONS; min_score: of a face, 0 to 1."""

    embedder: str = "auto"
    region: str = "face"
    min_score: float = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """A video of F frames beside R photos of a person, of which the first is the one that was given to the model.

    embedder: in words. similarity: [F], cosine to the first photo; clip_distance: [F], of whole pictures, None without
    CLIP vision; nearest: [F], cosine to the nearest of all photos. copied: [F], see ``copied_pixels``; copy_paste:
    [F], see ``copy_paste``, None with one photo. NaN where a frame has no face. crops: of the frames, None where there
    is no face. photo: the first photo's crop.
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
        """[F] each, of what could be measured."""
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
        lines = [f"{frames} frames, compared by {self.embedder}"]
        if not seen:
            return "\n".join([*lines, "no face in any frame"])
        copied = summarize(self.copied)
        lines += [
            f"seen in {seen} of {frames} frames ({100 * summary.coverage:.0f} %)",
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
    """images: [F, H, W, 3], the video; photos: [R, h, w, 3], first the one given to the model, then others of the same
    person; float in 0..1. progress: called after each frame. Raises StandInError where a photo shows no face, and for
    an embedder that cannot run here.
    """
    if not len(images) or not len(photos):
        raise StandInError("the video or the photo is empty: connect the decoded frames and the photo.")
    embedder = load_embedder(settings, clip_vision)
    whole = embedder if settings.region == "whole frame" else None
    if whole is None and clip_vision is not None:
        whole = clip_embedder(clip_vision, whole=True, min_score=settings.min_score)
    pictures = [_picture(photo) for photo in photos]
    references = [embedder.see(picture, index) for index, picture in enumerate(pictures)]
    for index, seen in enumerate(references):
        if seen is None:
            raise StandInError(f"no face was found in photo {index + 1} of {len(references)} ({embedder.name}): "
                               "connect a clear photo, lower min_score, or set region to whole frame.")
    frames, vectors = [], []
    for index, frame in enumerate(images):
        picture = _picture(frame)
        frames.append(embedder.see(picture, index))
        if whole is not None:
            vectors.append((frames[-1] if whole is embedder else whole.see(picture, index)).vector)
        progress()
    distance = clip_distance(np.stack(vectors), whole.see(pictures[0], 0).vector) if vectors else None
    return _compared(embedder, references, frames, distance)


def _picture(image: torch.Tensor) -> np.ndarray:
    """[H, W, 1, 3 or 4] float -> [H, W, 3] uint8"""
    (pixels,) = to_uint8(image[None, ..., :3])
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _compared(embedder: Embedder, references: list[Seen], frames: list[Seen | None],
              distance: np.ndarray | None) -> Comparison:
    photo, *others = references
    seen = [index for index, frame in enumerate(frames) if frame is not None]
    similarity, nearest, copied, pasted = (np.full(len(frames), math.nan) for _ in range(4))
    if seen:
        vectors = np.stack([frames[index].vector for index in seen])
        to_photos = cosine(vectors, np.stack([each.vector for each in references]))
        similarity[seen], nearest[seen] = to_photos[:, 0], to_photos.max(axis=1)
        copied[seen] = [copied_pixels(frames[index].crop, photo.crop) for index in seen]
        if others:
            between = cosine(photo.vector[None], np.stack([each.vector for each in others]))[0]
            pasted[seen] = copy_paste(to_photos[:, 1:], to_photos[:, 0], between)
    return Comparison(embedder.name, similarity, distance, nearest, copied, pasted if others else None,
                      tuple(frame and frame.crop for frame in frames), photo.crop, len(references))


def load_embedder(settings: CompareSettings, clip_vision) -> Embedder:
    """What the settings name, or the first that can run here; raises StandInError where none can."""
    whole = settings.region == "whole frame"
    missing = "it compares faces, and region is whole frame" if whole else comparing_missing()
    if settings.embedder == "insightface" and missing is not None:
        raise StandInError(f"insightface cannot run: {missing}; mend that, or set embedder to clip vision.")
    if settings.embedder != "clip vision" and missing is None:
        return insightface_embedder(settings.min_score)
    if clip_vision is None:
        came = "embedder is clip vision" if settings.embedder == "clip vision" else (
            f"there is nothing to compare with: insightface cannot run ({missing})")
        raise StandInError(f"{came}, and no CLIP vision is connected: connect Load CLIP Vision (any model, like "
                           "clip_vision_h.safetensors).")
    return clip_embedder(clip_vision, whole, settings.min_score)
