"""From a folder of videos to clips with captions and reference photos, the paper's recipe (Stand-In, section 4.1).

Every video becomes a line of ``manifest.jsonl``: its clips, as places in the video and not as copies, and what was
dropped and why. A run that was interrupted goes on behind the last line; a video is looked at again if its file or its
caption changes. The reference photos are frames from outside the clip (ID-Animator's random reference), so the model
cannot learn to copy a frame.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import cv2
import numpy as np
import torch

from ..contracts import StandInError
from ..face import FaceSettings, crop_faces, load_detector
from ..latents import FRAMES_PER_LATENT
from .records import append_line, read_lines
from .video import decoded, find_videos, pixels

MANIFEST, SETTINGS, REFERENCES = "manifest.jsonl", "settings.json", "references"
TRIED = 3  # frames looked at for each reference photo that is wanted
CHECKED = (0.1, 0.5, 0.9)  # where in a clip a face is looked for
TOLD = 8  # frames of a clip that a captioner sees
CROPPED_TOGETHER = 8  # frames; a batch loads the face models once

REASONS = NO_CAPTION, TOO_SHORT, NO_FACE, NO_REFERENCE, UNREADABLE, NOT_VIDEO = (
    "no caption", "too short", "no face in the clip", "no face outside of the clip", "cannot be read",
    "has no video in it")

Captioner = Callable[[np.ndarray], str]


@dataclass(frozen=True, slots=True)
class DataSettings:
    """fps, width, height, frames: of the clips, the paper's by default. references: photos for each clip. face: how
    they are cropped. seed: of what is drawn.
    """

    fps: float = 25.0
    width: int = 832
    height: int = 480
    frames: int = 81
    references: int = 5
    seed: int = 0
    face: FaceSettings = field(default_factory=FaceSettings)

    def __post_init__(self):
        if self.frames % FRAMES_PER_LATENT != 1 or self.frames < 5:
            raise StandInError(f"frames is {self.frames}, needed is a multiple of 4 and 1 more, like 81: Wan's VAE "
                               "makes one latent frame of 4.")
        for name in ("width", "height"):
            if getattr(self, name) % 16 or getattr(self, name) <= 0:
                raise StandInError(f"{name} is {getattr(self, name)}, needed is a multiple of 16, like 832 or 480.")
        for name in ("fps", "references"):
            if getattr(self, name) <= 0:
                raise StandInError(f"{name} is {getattr(self, name)}, needed is more than 0.")


@dataclass(frozen=True, slots=True)
class Source:
    """A video, named so among all, and what it shows, or None where a captioner is to say it."""

    path: Path
    name: str
    caption: str | None


@dataclass(frozen=True, slots=True)
class Clip:
    """start: of its first frame, counted at the data's fps, in the source of the name video; references: files below
    the folder of the data.
    """

    video: str
    start: int
    caption: str
    references: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.video}#{self.start}"


def sources_in(folder: Path) -> list[Source]:
    """Every video below a folder, with the caption in the .txt file of the same name beside it.

    Raises StandInError where there is none.
    """
    found = find_videos(folder)
    if not found:
        raise StandInError(f"there is no video in {folder}: put files there, with a caption in a .txt file of the same "
                           "name beside each.")
    return [Source(path, path.relative_to(folder).as_posix(), _caption(path)) for path in found]


def sources_of(videos: list, captions: list[str]) -> list[Source]:
    """ComfyUI's VIDEO, as Load Video-Text (from Folder) gives them, each with its caption; a video that comes again
    counts once. Raises StandInError for what is no file, and for another number of captions.
    """
    if len(videos) != len(captions):
        raise StandInError(f"{len(videos)} videos and {len(captions)} captions came, needed is one for each: connect "
                           "both outputs of Load Video-Text (from Folder).")
    sources = {}
    for video, caption in zip(videos, captions):
        path = video.get_stream_source()
        if hasattr(video, "get_active_trim_window") and any(video.get_active_trim_window()):
            raise StandInError("a video came that is trimmed, and its file is read from end to end: save the trimmed "
                               "video, and load its folder with Load Video-Text (from Folder).")
        if not isinstance(path, str):
            raise StandInError("a video came that is no file, and the clips are read from files: save it, and load the "
                               "folder with Load Video-Text (from Folder).")
        sources.setdefault(path, Source(Path(path), Path(path).name, caption))
    names = Counter(source.name for source in sources.values())
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice:
        raise StandInError(f"two videos are called {twice}: give them names of their own.")
    return list(sources.values())


def prepare(sources: list[Source], folder: Path, settings: DataSettings,
            captioner: Captioner | None = None) -> Iterator[str]:
    """Bring ``folder`` up to date with the sources; yields a line on each as it is done.

    captioner: is asked where a source has no caption, with some frames of the clip [n, H, W, 3] uint8. Raises
    StandInError for data of other settings.
    """
    (folder / REFERENCES).mkdir(parents=True, exist_ok=True)
    _keep_settings(folder / SETTINGS, settings)
    lines = {line["video"]: line for line in read_lines(folder / MANIFEST)}
    ready = False
    for source in sources:
        now = _seen(source, captioner)
        before = lines.get(source.name)
        if before is not None and all(before.get(key) == value for key, value in now.items()):
            continue
        if not ready:  # a detector or a parser that cannot run is no fault of the videos
            crop_faces(torch.ones(1, 64, 64, 3), dataclasses.replace(settings.face, no_face="whole image"))
            ready = True
        try:
            clips, dropped = _examine(source, now["bytes"], folder, settings, captioner)
        except StandInError as error:
            clips, dropped = [], [["whole video", str(error)]]
        append_line(folder / MANIFEST, {**now, "dropped": dropped,
                                        "clips": [dataclasses.asdict(clip) for clip in clips]})
        yield f"{source.name}: {len(clips)} clips" + "".join(f"; {what}: {why}" for what, why in dropped)


def _seen(source: Source, captioner: Captioner | None) -> dict:
    """What a video's line follows from, beside the settings."""
    size = source.path.stat().st_size if source.path.is_file() else 0
    return {"video": source.name, "bytes": size, "caption": source.caption,
            "captioned": not source.caption and captioner is not None}


def prepared(folder: Path) -> list[Clip]:
    """All clips of a manifest; of a video that changed, those of its last line."""
    latest = {line["video"]: line for line in read_lines(folder / MANIFEST)}
    return [Clip(**{**clip, "references": tuple(clip["references"])})
            for line in latest.values() for clip in line["clips"]]


def prepared_settings(folder: Path) -> dict:
    """What ``DataSettings`` the data of a folder was made with, as a dictionary."""
    return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))


def summary(folder: Path) -> str:
    """How much there is, and how often what was dropped for which reason."""
    lines = {line["video"]: line for line in read_lines(folder / MANIFEST)}.values()
    clips = [clip for line in lines for clip in line["clips"]]
    references = {file for clip in clips for file in clip["references"]}
    reasons = Counter(_reason(why) for line in lines for _, why in line["dropped"])
    return "\n".join([f"{len(lines)} videos, {len(clips)} clips, {len(references)} reference photos",
                      *(f"dropped {count}: {reason}" for reason, count in reasons.most_common())])


def _reason(why: str) -> str:
    """Without what differs from video to video."""
    return next((reason for reason in REASONS if reason in why), why)


def _examine(source: Source, size: int, folder: Path, settings: DataSettings,
             captioner: Captioner | None) -> tuple[list[Clip], list[list[str]]]:
    """The clips of one video of so many bytes, and (what, why) of what was dropped."""
    path, name, caption = source.path, source.name, source.caption
    if not size:
        return [], [["whole video", f"{UNREADABLE}: the file is gone or empty"]]
    if not caption and captioner is None:
        return [], [["whole video", f"{NO_CAPTION}, and no captioner to ask"]]
    count, length = sum(1 for _ in decoded(path, settings.fps)), settings.frames
    if count <= length:
        return [], [["whole video", f"{TOO_SHORT}: {count} frames at {settings.fps:g} fps, needed are {length} for a "
                                    "clip and more to take a reference photo from"]]
    starts = range(0, count - length + 1, length)
    video = hashlib.sha256(f"{name} {size}".encode()).hexdigest()[:12]
    order = np.random.default_rng([settings.seed, int(video, 16)]).permutation(count).tolist()
    pools = {start: [i for i in order if not start <= i < start + length][:TRIED * settings.references]
             for start in starts}
    seen = _look(path, settings, {i for pool in pools.values() for i in pool}, starts, folder / REFERENCES / video,
                 None if caption else captioner)
    clips, dropped, used = [], [], set()
    for start in starts:
        chosen = [i for i in pools[start] if i in seen.photos][:settings.references]
        what = f"frames {start} to {start + length - 1}"
        if start not in seen.with_face:
            dropped.append([what, NO_FACE])
        elif not chosen:
            dropped.append([what, f"{NO_REFERENCE}, in {len(pools[start])} frames"])
        elif not (words := caption or seen.captions[start]):
            dropped.append([what, f"{NO_CAPTION}: the captioner gave nothing"])
        else:
            clips.append(Clip(name, start, words,
                              tuple(seen.photos[i].relative_to(folder).as_posix() for i in chosen)))
            used.update(chosen)
    for number in seen.photos.keys() - used:
        seen.photos[number].unlink()
    if count % length:
        dropped.append([f"frames {len(starts) * length} to {count - 1}", f"{TOO_SHORT}: the rest, less than a clip"])
    return clips, dropped


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of one video. photos: number of a frame -> the file of its face crop; with_face: starts of the clips that show a
    face; captions: start -> what the captioner says.
    """

    photos: dict[int, Path] = field(default_factory=dict)
    with_face: set[int] = field(default_factory=set)
    captions: dict[int, str] = field(default_factory=dict)


def _look(path: Path, settings: DataSettings, wanted: set[int], starts: range, photos: Path,
          captioner: Captioner | None) -> _Seen:
    """Read a video once; wanted: the frames to crop, as far as they show a face, into files that begin with photos."""
    length = settings.frames
    checked = {start + int(share * length): start for start in starts for share in CHECKED}
    places = sorted({i * length // TOLD for i in range(TOLD)})
    told = {start + place: start for start in starts for place in places} if captioner else {}
    detector = load_detector(settings.face.detector, settings.face.min_score)
    seen, waiting, showing = _Seen(), [], []

    def crop() -> None:
        for number, photo in _crops(waiting, settings.face):
            seen.photos[number] = photos.with_name(f"{photos.name}_{number:06d}.png")
            write_reference(seen.photos[number], photo)
        waiting.clear()

    for number, frame in enumerate(decoded(path, settings.fps)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if number not in wanted and number not in checked and number not in told:
            continue
        picture = pixels(frame)
        if number in checked and detector.find(_in_clip(picture, settings), number):
            seen.with_face.add(checked[number])
        if number in told:
            showing.append(picture)
            if len(showing) == len(places):
                seen.captions[told[number]] = captioner(np.stack(showing)).strip()
                showing.clear()
        if number in wanted:
            waiting.append((number, picture))
        if len(waiting) == CROPPED_TOGETHER:
            crop()
    crop()
    return seen


def _in_clip(picture: np.ndarray, settings: DataSettings) -> np.ndarray:
    """The part of a frame that the clip keeps: its middle, of the clip's format."""
    height, width = picture.shape[:2]
    kept_height = min(height, round(width * settings.height / settings.width))
    kept_width = min(width, round(height * settings.width / settings.height))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    return np.ascontiguousarray(picture[top:top + kept_height, left:left + kept_width])


def _crops(frames: list[tuple[int, np.ndarray]], face: FaceSettings) -> Iterator[tuple[int, np.ndarray]]:
    if not frames:
        return
    cropped = crop_faces(torch.from_numpy(np.stack([picture for _, picture in frames])).float() / 255,
                         dataclasses.replace(face, which_face="largest", no_face="whole image"))
    for (number, _), crop, found in zip(frames, cropped.image, cropped.faces, strict=True):
        if found.points is not None:
            yield number, (255 * crop).round().to(torch.uint8).numpy()


def write_reference(file: Path, picture: np.ndarray) -> None:
    """picture: [S, S, 3] uint8. OpenCV's own writing fails for names that are not ASCII on Windows."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    unfinished = file.with_suffix(".part")
    unfinished.write_bytes(encoded.tobytes())
    unfinished.replace(file)


def read_reference(file: Path) -> np.ndarray:
    """[S, S, 3] uint8; raises StandInError for a file that is gone or damaged."""
    content = np.frombuffer(file.read_bytes() if file.is_file() else b"", np.uint8)
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if picture is None:
        raise StandInError(f"the reference photo {file.name} is not there or is damaged")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _caption(path: Path) -> str | None:
    file = path.with_suffix(".txt")
    try:
        return (file.read_text(encoding="utf-8").strip() or None) if file.is_file() else None
    except UnicodeDecodeError as error:
        raise StandInError(f"{file} is not UTF-8 ({error}): save it as UTF-8.") from error


def _keep_settings(file: Path, settings: DataSettings) -> None:
    now = dataclasses.asdict(settings)
    del now["face"]["download_missing"]  # changes nothing of what is made
    if not file.exists():
        file.write_text(json.dumps(now, indent=1), encoding="utf-8")
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    differing = sorted(name for name in now if before.get(name) != now[name])
    if differing:
        raise StandInError(f"{file.parent} was made with other settings ({', '.join(differing)}): set them alike, or "
                           "take another folder.")
