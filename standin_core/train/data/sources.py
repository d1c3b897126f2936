"""The videos to train on, each with its caption: from a folder, or from ComfyUI's own nodes."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ...words import counted, printable

SUFFIXES = (".mp4", ".avi", ".mov", ".webm", ".mkv", ".flv")  # those of ComfyUI's dataset nodes


@dataclass(frozen=True, slots=True)
class Source:
    """A video to train on.

    path: its file.
    name: tells it from the other sources, and stands in the manifest.
    caption: what it shows; None where a captioner is to say it.
    """

    path: Path
    name: str
    caption: str | None


def sources_in(folder: Path) -> list[Source]:
    """Every video below a folder, by name, with the caption in the .txt file of the same name beside it.

    Raises UserError where there is no video, and for a caption that is not UTF-8.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"there is no video in {folder}: put files there, with a caption in a .txt file of the same "
                        "name beside each.")
    return [Source(path, printable(path.relative_to(folder).as_posix()), _caption(path)) for path in found]


def sources_of(videos: list, captions: list[str]) -> list[Source]:
    """The files of ComfyUI's VIDEO objects; a file that comes several times counts once.

    videos: as Load Video-Text (from Folder) gives them.
    captions: one for each video.

    Raises UserError for a video that is not a whole file, for two files of one name, and for another number of
    captions than of videos.
    """
    if len(videos) != len(captions):
        raise UserError(f"each of the {len(videos)} videos must have a caption, but "
                        f"{counted(len(captions), 'caption')} came: connect both outputs of Load Video-Text (from "
                        "Folder).")
    sources: dict[str, Source] = {}
    for video, caption in zip(videos, captions):
        path = video.get_stream_source()
        if hasattr(video, "get_active_trim_window") and any(video.get_active_trim_window()):
            raise UserError("one video is trimmed, but training reads the whole file: save the trimmed video, then "
                            "load its folder with Load Video-Text (from Folder).")
        if not isinstance(path, str):
            raise UserError("one video is not a file, but training reads files: save the video, then load its folder "
                            "with Load Video-Text (from Folder).")
        sources.setdefault(path, Source(Path(path), printable(Path(path).name), caption))
    names = Counter(source.name for source in sources.values())
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice:
        raise UserError(f"two videos are called {twice}: give them names of their own.")
    return list(sources.values())


def _caption(video: Path) -> str | None:
    file = video.with_suffix(".txt")
    try:
        return (file.read_text(encoding="utf-8").strip() or None) if file.is_file() else None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error}): save it as UTF-8.") from error
