"""From a folder of videos to clips with captions and reference photos, the paper's recipe (Stand-In, section 4.1).

Every video becomes a line of ``manifest.jsonl``: its clips, as places in the video and not as copies, and what was
dropped and why. A run that was interrupted goes on behind the last line; a video that failed is tried again only if its
file changes. The reference photos are frames from outside the clip (ID-Animator's random reference), so the model
cannot learn to copy a frame.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from ..contracts import StandInError
from ..face import FaceSettings, crop_faces, load_detector
from ..latent_time import FRAMES_PER_LATENT
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
    done = {(line["video"], line["bytes"]) for line in read_lines(folder / MANIFEST)}
    for source in sources:
        try:
            size = source.path.stat().st_size
            if (source.name, size) in done:
                continue
            clips, dropped = _examine(source, folder, settings, captioner)
        except FileNotFoundError:
            size, clips, dropped = 0, [], [["whole video", f"{UNREADABLE}: the file is gone"]]
        except StandInError as error:
            clips, dropped = [], [["whole video", str(error)]]
        append_line(folder / MANIFEST, {"video": source.name, "bytes": size, "dropped": dropped,
                                        "clips": [dataclasses.asdict(clip) for clip in clips]})
        yield f"{source.name}: {len(clips)} clips" + "".join(f"; {what}: {why}" for what, why in dropped)


def prepared(folder: Path) -> list[Clip]:
    """All clips of a manifest; of a video that changed, those of its last line."""
    latest = {line["video"]: line for line in read_lines(folder / MANIFEST)}
    return [Clip(**{**clip, "references": tuple(clip["references"])})
            for line in latest.values() for clip in line["clips"]]


def prepared_settings(folder: Path) -> dict:
    """What ``DataSettings`` the data of a folder was made with, as a dictionary."""
    return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))


def read_reference(file: Path) -> np.ndarray:
    """[S, S, 3] uint8; raises StandInError for a file that is gone or damaged."""
    picture = cv2.imread(str(file))
    if picture is None:
        raise StandInError(f"the reference photo {file.name} is not there or is damaged")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


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


def _examine(source: Source, folder: Path, settings: DataSettings,
             captioner: Captioner | None) -> tuple[list[Clip], list[list[str]]]:
    """The clips of one video, and (what, why) of what was dropped."""
    path, name, caption = source.path, source.name, source.caption
    if not caption and captioner is None:
        return [], [["whole video", f"{NO_CAPTION}, and no captioner to ask"]]
    count, length = sum(1 for _ in decoded(path, settings.fps)), settings.frames
    if count <= length:
        return [], [["whole video", f"{TOO_SHORT}: {count} frames at {settings.fps:g} fps, needed are {length} for a "
                                    "clip and more to take a reference photo from"]]
    starts = range(0, count - length + 1, length)
    generator = np.random.default_rng([settings.seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])])
    order = generator.permutation(count).tolist()
    pools = {start: [i for i in order if not start <= i < start + length][:TRIED * settings.references]
             for start in starts}
    checked = {start + int(share * length): start for start in starts for share in CHECKED}
    told = {start + i * length // TOLD: start for start in starts for i in range(TOLD)} if not caption else {}
    crops, with_face, shown = _look(path, settings, {i for pool in pools.values() for i in pool}, checked, told)
    clips, dropped = [], []
    for start in starts:
        chosen = [i for i in pools[start] if i in crops][:settings.references]
        what = f"frames {start} to {start + length - 1}"
        if start not in with_face:
            dropped.append([what, NO_FACE])
        elif not chosen:
            dropped.append([what, f"{NO_REFERENCE}, in {len(pools[start])} frames"])
        elif not (words := caption or captioner(np.stack(shown[start])).strip()):
            dropped.append([what, f"{NO_CAPTION}: the captioner gave nothing"])
        else:
            clips.append(Clip(name, start, words, tuple(_written(crops[i], name, i, folder) for i in chosen)))
    if count % length:
        dropped.append([f"frames {len(starts) * length} to {count - 1}", f"{TOO_SHORT}: the rest, less than a clip"])
    return clips, dropped


def _look(path: Path, settings: DataSettings, wanted: set[int], checked: dict[int, int],
          told: dict[int, int]) -> tuple[dict[int, np.ndarray], set[int], dict[int, list[np.ndarray]]]:
    """Face crops of those of the wanted frames that show a face; the clips that show one; the frames to tell of."""
    detector = load_detector(settings.face.detector, settings.face.min_score)
    crops, with_face, shown, waiting = {}, set(), {}, []
    for number, frame in enumerate(decoded(path, settings.fps)):
        if number not in wanted and number not in checked and number not in told:
            continue
        picture = pixels(frame)
        if number in checked and detector.find(picture, number):
            with_face.add(checked[number])
        if number in told:
            shown.setdefault(told[number], []).append(picture)
        if number in wanted:
            waiting.append((number, picture))
        if len(waiting) == CROPPED_TOGETHER:
            crops.update(_crops(waiting, settings.face))
            waiting.clear()
    crops.update(_crops(waiting, settings.face))
    return crops, with_face, shown


def _crops(frames: Iterable[tuple[int, np.ndarray]], face: FaceSettings) -> Iterator[tuple[int, np.ndarray]]:
    if not frames:
        return
    cropped = crop_faces(torch.from_numpy(np.stack([picture for _, picture in frames])).float() / 255,
                         dataclasses.replace(face, which_face="largest", no_face="whole image"))
    for (number, _), crop, found in zip(frames, cropped.image, cropped.faces, strict=True):
        if found.points is not None:
            yield number, (255 * crop).round().to(torch.uint8).numpy()


def _written(crop: np.ndarray, video: str, number: int, folder: Path) -> str:
    """The file, below the folder, that the crop of a frame was written to."""
    file = Path(REFERENCES) / f"{hashlib.sha256(video.encode()).hexdigest()[:12]}_{number:06d}.png"
    if not (folder / file).exists() and not cv2.imwrite(str(folder / file), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)):
        raise OSError(f"{folder / file} could not be written: is the disk full?")
    return file.as_posix()


def _caption(path: Path) -> str | None:
    file = path.with_suffix(".txt")
    return (file.read_text(encoding="utf-8").strip() or None) if file.is_file() else None


def _keep_settings(file: Path, settings: DataSettings) -> None:
    now = dataclasses.asdict(settings)
    if not file.exists():
        file.write_text(json.dumps(now, indent=1), encoding="utf-8")
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    differing = sorted(name for name in now if before.get(name) != now[name])
    if differing:
        raise StandInError(f"{file.parent} was made with other settings ({', '.join(differing)}): set them alike, or "
                           "take another folder.")
