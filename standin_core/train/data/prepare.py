"""Every video cut into clips with reference photos, the paper's recipe (Stand-In, section 4.1).

A run that was interrupted goes on behind the last line of the manifest; a video is looked at again if its file or its
caption changes. The paper's reference photos are frames from outside the clip (ID-Animator's random reference), so the
model cannot learn to copy a frame.
"""
from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.utils
import numpy as np

from ...face import load_detector
from . import photos
from .dropped import Cause, Drop, Unusable
from .manifest import Clip, add_to_manifest, drop_damaged, read_manifest
from .recipe import OUTSIDE, DataSettings, keep_settings
from .sources import Source
from .video import decoded, pixels

TRIED = 3  # frames looked at for each reference photo that is wanted
CHECKED = (0.1, 0.5, 0.9)  # where in a clip a face is looked for
TOLD = 8  # frames of a clip that a captioner sees
CROPPED_TOGETHER = 8  # frames; a batch loads the face models once
WHOLE = "whole video"

# frames of a clip [n, H, W, 3] uint8 -> its caption
Captioner = Callable[[np.ndarray], str]


def prepare(sources: list[Source], folder: Path, settings: DataSettings,
            captioner: Captioner | None = None) -> Iterator[str]:
    """Bring the data up to date with the sources; yields a line on each source as it is done.

    folder: of the data.
    captioner: is asked where a source has no caption.

    Raises UserError where the folder holds data of other settings, and where no face can be looked for here.
    """
    (folder / photos.FOLDER).mkdir(parents=True, exist_ok=True)
    keep_settings(folder, settings)
    damaged = drop_damaged(folder)
    if damaged:
        yield f"damaged lines of the manifest that were dropped: {damaged}; their videos are looked at again"
    known, can_crop = read_manifest(folder), False
    progress = comfy.utils.ProgressBar(len(sources))

    def tell(done: int, share: float) -> None:
        progress.update_absolute(done + share)

    for index, source in enumerate(sources):
        comfy.model_management.throw_exception_if_processing_interrupted()
        origin = _origin(source, captioner)
        before = known.get(source.name)
        if before is not None and all(before.get(key) == value for key, value in origin.items()):
            continue
        if not can_crop:  # a detector or a parser that cannot run is no fault of the videos
            photos.check_cropping(settings.face)
            can_crop = True
        try:
            clips, dropped = _examine(source, origin["bytes"], folder, settings, captioner,
                                      functools.partial(tell, index))
        except Unusable as error:
            clips, dropped = [], [(WHOLE, error.drop)]
        progress.update_absolute(index + 1)
        add_to_manifest(folder, origin, clips, dropped)
        yield f"{source.name}: {len(clips)} clips" + "".join(f"; {what}: {drop}" for what, drop in dropped)


def _origin(source: Source, captioner: Captioner | None) -> dict:
    """What the clips of a video follow from, beside the settings."""
    size = source.path.stat().st_size if source.path.is_file() else 0
    return {"video": source.name, "bytes": size, "caption": source.caption,
            "captioned": not source.caption and captioner is not None}


def _examine(source: Source, size: int, folder: Path, settings: DataSettings, captioner: Captioner | None,
             progress: Callable[[float], None]) -> tuple[list[Clip], list[tuple[str, Drop]]]:
    """The clips of a video of so many bytes, and what was left out of it.

    progress: takes the share of the frames that were looked at.
    """
    path, caption, length = source.path, source.caption, settings.frames
    outside = settings.photos_from == OUTSIDE
    if not size:
        raise Unusable(Cause.UNREADABLE, "the file is gone or empty")
    if not caption and captioner is None:
        raise Unusable(Cause.NO_CAPTION, "there is no captioner to ask")
    count = sum(1 for _ in decoded(path, settings.fps))
    if count < length + outside:
        raise Unusable(Cause.TOO_SHORT, f"{count} frames at {settings.fps:g} fps, but a clip takes {length}"
                       + outside * " and more to take a reference photo from")
    starts = range(0, count - length + 1, length)
    video = hashlib.sha256(f"{source.name} {size}".encode()).hexdigest()[:12]
    order = np.random.default_rng([settings.seed, int(video, 16)]).permutation(count).tolist()
    pools = {start: [i for i in order if (start <= i < start + length) != outside][:TRIED * settings.references]
             for start in starts}
    found = _look(path, settings, {i for pool in pools.values() for i in pool}, starts,
                  folder / photos.FOLDER / video, None if caption else captioner,
                  lambda number: progress(number / count))
    clips, dropped, used = [], [], set()
    for start in starts:
        chosen = [i for i in pools[start] if i in found.photos][:settings.references]
        what = f"frames {start} to {start + length - 1}"
        if start not in found.with_face:
            dropped.append((what, Drop(Cause.NO_FACE)))
        elif not chosen:
            dropped.append((what, Drop(Cause.NO_REFERENCE if outside else Cause.NO_FACE,
                                       f"{len(pools[start])} frames were looked at")))
        elif not (words := caption or found.captions[start]):
            dropped.append((what, Drop(Cause.NO_CAPTION, "the captioner gave nothing")))
        else:
            files = tuple(found.photos[i].relative_to(folder).as_posix() for i in chosen)
            clips.append(Clip(source.name, start, words, files))
            used.update(chosen)
    for number in found.photos.keys() - used:
        found.photos[number].unlink()
    if count % length:
        rest = f"frames {len(starts) * length} to {count - 1}"
        dropped.append((rest, Drop(Cause.TOO_SHORT, "the rest, less than a clip")))
    return clips, dropped


@dataclass(frozen=True, slots=True)
class _Found:
    """What a video shows.

    photos: number of a frame -> file of its face crops.
    with_face: starts of the clips that show a face, or each of several people.
    captions: start of a clip -> what the captioner says.
    """

    photos: dict[int, Path] = field(default_factory=dict)
    with_face: set[int] = field(default_factory=set)
    captions: dict[int, str] = field(default_factory=dict)


def _look(path: Path, settings: DataSettings, wanted: set[int], starts: range, prefix: Path,
          captioner: Captioner | None, progress: Callable[[int], None]) -> _Found:
    """Read a video once.

    wanted: numbers of the frames to crop, as far as they show a face.
    starts: of the clips.
    prefix: of the files of the photos.
    captioner: None where the caption is known.
    progress: takes the number of each frame.
    """
    length = settings.frames
    checked = {start + int(share * length): start for start in starts for share in CHECKED}
    places = sorted({i * length // TOLD for i in range(TOLD)})
    told = {start + place: start for start in starts for place in places} if captioner else {}
    detector = load_detector(settings.face.detector, settings.face.min_score)
    found = _Found()
    waiting: list[tuple[int, np.ndarray]] = []
    showing: list[np.ndarray] = []

    def crop() -> None:
        for number, photo in photos.face_crops(waiting, settings.face, settings.people):
            found.photos[number] = prefix.with_name(f"{prefix.name}_{number:06d}.png")
            photos.write_photo(found.photos[number], photo)
        waiting.clear()

    for number, frame in enumerate(decoded(path, settings.fps)):
        progress(number)
        if number not in wanted and number not in checked and number not in told:
            continue
        picture = pixels(frame)
        if number in checked:
            faces = len(detector.find(_in_clip(picture, settings), number))
            if faces == settings.people or (settings.people == 1 and faces):
                found.with_face.add(checked[number])
        if captioner and number in told:
            showing.append(picture)
            if len(showing) == len(places):
                found.captions[told[number]] = captioner(np.stack(showing)).strip()
                showing.clear()
        if number in wanted:
            waiting.append((number, picture))
        if len(waiting) == CROPPED_TOGETHER:
            crop()
    crop()
    return found


def _in_clip(picture: np.ndarray, settings: DataSettings) -> np.ndarray:
    """The part of a frame that the clip keeps: its middle, of the clip's format."""
    height, width = picture.shape[:2]
    kept_height = min(height, round(width * settings.height / settings.width))
    kept_width = min(width, round(height * settings.width / settings.height))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    return np.ascontiguousarray(picture[top:top + kept_height, left:left + kept_width])
