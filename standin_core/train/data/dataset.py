"""From videos to what a training reads, in one call that goes on where it was interrupted."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch

from ...errors import UserError
from ...evaluation import CompareSettings, load_embedder
from .encoders import Encoders, data_hash, encode_clips
from .manifest import manifest_clips, summary
from .pairs import PairSettings, embed, pair
from .prepare import Captioner, prepare
from .recipe import AS_CROPPED, PLAIN, TO_CLIP, DataSettings, PhotoSettings, kept_settings
from .sources import Source

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The data that one node makes and another trains on.

    shards: the folder that ``make_dataset`` returned.
    """

    shards: Path


def make_dataset(sources: list[Source], folder: Path, settings: DataSettings, encoders: Encoders, say: Say,
                 pairs: PairSettings | None = None, clip_vision=None, captioner: Captioner | None = None,
                 photos: PhotoSettings = PLAIN) -> Path:
    """Make what is missing of the data and its shards.

    folder: of the data.
    say: takes a line on what was done, and on what was dropped and why.
    pairs: take the photos of a clip from other videos of the person; None for photos of its own video.
    clip_vision: ComfyUI's CLIP vision model, which finds the pairs where no face recognition network can run.
    captioner: is asked for the captions that are missing.
    photos: how the reference photos are encoded.

    Returns the folder of the shards, which is named by a hash of all that they follow from. Raises UserError where
    nothing is left to train on, and where the disk is full.
    """
    if pairs is not None and settings.people > 1:
        raise UserError("pairs of other videos are matched by a single face, but people is "
                        f"{settings.people}: remove [pairs], or set people to 1.")
    if settings.people > 1 and photos.fit == AS_CROPPED:
        raise UserError(f"only Concat-ID is trained on several people, but people is {settings.people}: set people to "
                        f'1, or prepare the data with method Concat-ID, or with fit = "{TO_CLIP}" in [photos].')
    try:
        # encoders and detectors would keep what a backward pass needs
        with torch.inference_mode():
            return _made(sources, folder, settings, encoders, say, pairs, clip_vision, captioner, photos)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"the data could not be written to {folder} ({error}): make room there and start again; it "
                        "goes on.") from error


def _made(sources, folder: Path, settings, encoders: Encoders, say: Say, pairs, clip_vision, captioner,
          photos) -> Path:
    for line in prepare(sources, folder, settings, captioner):
        say(line)
    say(summary(folder))
    videos = {source.name: source.path for source in sources}
    clips = [clip for clip in manifest_clips(folder) if clip.video in videos]
    if pairs is not None:
        embedder = load_embedder(CompareSettings(pairs.embedder), clip_vision, settings.face.download_missing)
        clips, alone = pair(clips, embed(clips, folder, embedder), pairs, settings.references)
        say(f"{len(clips)} clips have photos of other videos of the person ({embedder.name}); {len(alone)} have none "
            f"of similarity {pairs.lowest:g} to {pairs.highest:g} and are dropped: {', '.join(alone) or 'none'}")
    if not clips:
        raise UserError(f"there is nothing to train on: {summary(folder)}; see {folder} for each video.")
    shards = folder / f"shards_{data_hash(clips, kept_settings(folder), encoders.fingerprint(), photos)}"
    for line in encode_clips(shards, clips, videos, folder, settings, photos, encoders):
        say(line)
    return shards
