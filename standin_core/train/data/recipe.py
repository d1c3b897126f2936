"""What clips and photos the data is made of, kept beside the data so that no two kinds of data mix in one folder."""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from ...contracts import UserError
from ...face import FaceSettings
from ...files import replacing
from ...latents import FRAMES_PER_LATENT, PIXELS_PER_TOKEN

FILE = "settings.json"


@dataclass(frozen=True, slots=True)
class DataSettings:
    """The clips and their reference photos; the defaults are the paper's (Stand-In, section 4.1).

    fps: frames a second, to which every video is resampled.
    width, height: of a clip in pixels, multiples of 16.
    frames: of a clip, 4k + 1.
    references: photos of the person for each clip.
    seed: decides which frames become photos.
    face: how the photos are cropped.

    Raises UserError for sizes that Wan's VAE cannot take.
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
            raise UserError(f"frames is {self.frames}, needed is a multiple of 4 and 1 more, like 81: Wan's VAE "
                            "makes one latent frame of 4.")
        for name in ("width", "height"):
            if getattr(self, name) % PIXELS_PER_TOKEN or getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, needed is a multiple of 16, like 832 or 480.")
        for name in ("fps", "references"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, needed is more than 0.")


def keep_settings(folder: Path, settings: DataSettings) -> None:
    """Note the settings that the data of a folder is made with; raises UserError where it was made with others."""
    now, file = dataclasses.asdict(settings), folder / FILE
    del now["face"]["download_missing"]  # changes nothing of what is made
    if not file.exists():
        with replacing(file) as part:
            part.write_text(json.dumps(now, indent=1), encoding="utf-8")
        return
    before = kept_settings(folder)
    differing = sorted(name for name in now if before.get(name) != now[name])
    if differing:
        raise UserError(f"{folder} was made with other settings ({', '.join(differing)}): set them alike, or take "
                        "another folder.")


def kept_settings(folder: Path) -> dict:
    """The ``DataSettings`` that the data of a folder was made with, as a dictionary."""
    return json.loads((folder / FILE).read_text(encoding="utf-8"))
