"""What clips and photos the data is made of, kept beside the data so that no two kinds of data mix in one folder."""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from ...checks import check_choice, check_number
from ...errors import UserError
from ...face import FaceSettings
from ...files import replacing
from ...latents import FRAMES_PER_LATENT, PIXELS_PER_TOKEN

FILE = "settings.json"
PHOTOS_FROM = OUTSIDE, INSIDE = ("outside the clip", "the clip")
FITS = AS_CROPPED, TO_CLIP = ("as cropped", "to the clip")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """The clips and their reference photos; the defaults are the paper's (Stand-In, section 4.1).

    fps: frames a second, to which every video is resampled.
    width, height: of a clip in pixels, multiples of 16.
    frames: of a clip, 4k + 1.
    references: photos of the person for each clip.
    people: how many a clip shows, each with a face of its own in a photo, from left to right. They have the order in
        which they stand in the frame that the photo was taken from.
    photos_from: one of PHOTOS_FROM, the frames of the video that become photos. Photos from outside the clip teach no
        copying; Concat-ID's first stage takes them from the clip.
    seed: decides which frames become photos.
    face: how the photos are cropped.

    Raises UserError for values that cannot be, such as sizes that Wan's VAE cannot take.
    """

    fps: float = 25.0
    width: int = 832
    height: int = 480
    frames: int = 81
    references: int = 5
    people: int = 1
    photos_from: str = OUTSIDE
    seed: int = 0
    face: FaceSettings = field(default_factory=FaceSettings)

    def __post_init__(self):
        for name in ("frames", "width", "height", "references", "people"):
            check_number(getattr(self, name), name, 1, whole=True)
        check_number(self.fps, "fps", above=0)
        check_number(self.seed, "seed", 0, whole=True)
        check_choice(self.photos_from, "photos_from", PHOTOS_FROM)
        if self.frames % FRAMES_PER_LATENT != 1 or self.frames < 5:
            raise UserError("frames must be 4k + 1, such as 81, because Wan's VAE makes one latent frame of every "
                            f"{FRAMES_PER_LATENT} frames, but is {self.frames}.")
        for name in ("width", "height"):
            if getattr(self, name) % PIXELS_PER_TOKEN:
                raise UserError(f"{name} must be a multiple of {PIXELS_PER_TOKEN}, such as 832 or 480, but is "
                                f"{getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class PhotoSettings:
    """How the reference photos are encoded.

    fit: one of FITS. "as cropped" keeps the size of the crop. "to the clip" scales the photo to fit into the clip's
        frame and fills the rest with black, for methods that append the photo to the video.
    noise_draws: how many times each photo is encoded, each time with noise of its own on the pixels; 0 encodes it once
        and without noise.
    noise_mean, noise_deviation: of the natural logarithm of the noise's standard deviation, for pixels in -1..1. The
        defaults are Concat-ID's (arXiv 2503.14151).

    Raises UserError for values that cannot be.
    """

    fit: str = AS_CROPPED
    noise_draws: int = 0
    noise_mean: float = -3.0
    noise_deviation: float = 0.5

    def __post_init__(self):
        check_choice(self.fit, "fit", FITS)
        check_number(self.noise_draws, "noise_draws", 0, whole=True)
        check_number(self.noise_mean, "noise_mean")
        check_number(self.noise_deviation, "noise_deviation", 0)

    def size(self, data: DataSettings) -> tuple[int, int]:
        """(height, width) in pixels of a photo as it is encoded."""
        return (data.height, data.width) if self.fit == TO_CLIP else 2 * (data.face.resolved().size,)


PLAIN = PhotoSettings()


def keep_settings(folder: Path, settings: DataSettings) -> None:
    """Note the settings that the data of a folder is made with; raises UserError where it was made with others."""
    file = folder / FILE
    if not file.exists():
        now = dataclasses.asdict(settings)
        del now["face"]["download_missing"]  # changes nothing of what is made
        with replacing(file) as part:
            part.write_text(json.dumps(now, indent=1), encoding="utf-8")
        return
    now, then = _made_with(settings), _made_with(_as_settings(kept_settings(folder)))
    differing = sorted(name for name in now if then[name] != now[name])
    if differing:
        raise UserError(f"{folder} was made with other settings ({', '.join(differing)}): set them to those, or "
                        "take another folder.")


def _made_with(settings: DataSettings) -> dict:
    """What the data follow from, whether it was set or comes from a preset."""
    face = settings.face
    return {**dataclasses.asdict(settings), "face": {**dataclasses.asdict(face), **dataclasses.asdict(face.resolved()),
                                                     "download_missing": None}}


def kept_settings(folder: Path) -> dict:
    """The ``DataSettings`` that the data of a folder was made with, as a dictionary.

    Raises UserError where their file is damaged.
    """
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
        _as_settings(kept)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / FILE} is damaged ({error}), and it says what the data there was made with: take "
                        "another folder, or delete the file if the settings are still the same.") from error
    return kept


def _as_settings(kept: dict) -> DataSettings:
    """An earlier version's say nothing of settings that came later, whose defaults it had."""
    return DataSettings(**{**kept, "face": FaceSettings(**kept["face"])})
