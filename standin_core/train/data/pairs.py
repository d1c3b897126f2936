"""Cross-video pairs (Concat-ID, arXiv 2503.14151, stages II and III): a clip's photos come from other videos.

They are found by the similarity of the faces. A photo that is too similar is nearly a frame of the clip, and the model
would learn to copy it; one that is not similar enough shows somebody else.
"""
from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import numpy as np
import safetensors.numpy

from ...checks import check_choice, check_number
from ...errors import UserError
from ...evaluation import EMBEDDERS
from ...evaluation.embedders import Embedder
from ...evaluation.measures import cosine
from ...files import replacing
from .manifest import Clip
from .photos import read_photo

log = logging.getLogger(__name__)

REFERENCES_FROM = ("same video", "other videos")


@dataclass(frozen=True, slots=True)
class PairSettings:
    """Which photos of other videos are taken.

    lowest, highest: cosine between the photo and the clip's own photos. The paper takes 0.7 to 0.9 first and 0.9 to
        0.99 to end with, measured on ArcFace's vectors.
    embedder: one of ``evaluation.EMBEDDERS``.

    Raises UserError for values that cannot be.
    """

    lowest: float = 0.7
    highest: float = 0.9
    embedder: str = "auto"

    def __post_init__(self):
        for name in ("lowest", "highest"):
            check_number(getattr(self, name), name, -1, 1)
        check_choice(self.embedder, "embedder", EMBEDDERS)
        if self.lowest >= self.highest:
            raise UserError("the similarity of pairs must be a range within -1 to 1, such as 0.7 to 0.9, but is "
                            f"{self.lowest:g} to {self.highest:g}.")


def pair(clips: list[Clip], vectors: dict[str, np.ndarray], settings: PairSettings,
         photos: int) -> tuple[list[Clip], list[str]]:
    """Give every clip photos of other videos in place of its own.

    vectors: file of a photo -> [D], for every photo that shows a face.
    photos: the most that a clip gets. A photo's similarity to a clip is its cosine to the mean vector of the clip's own
        photos; among the photos within the range, the least similar come first.

    Returns the clips that got some, and the names of those that got none.
    """
    owners = {file: clip.video for clip in clips for file in clip.references if file in vectors}
    files = list(owners)
    table = np.stack([vectors[file] for file in files]) if files else np.empty((0, 1))
    paired, alone = [], []
    for clip in clips:
        comfy.model_management.throw_exception_if_processing_interrupted()
        own = [vectors[file] / np.linalg.norm(vectors[file]) for file in clip.references if file in vectors]
        similarity = cosine(table, np.mean(own, axis=0)[None])[:, 0] if own else np.empty(0)
        partners = [files[i] for i in np.argsort(similarity, kind="stable")
                    if settings.lowest <= similarity[i] < settings.highest and owners[files[i]] != clip.video]
        if partners:
            paired.append(dataclasses.replace(clip, references=tuple(partners[:photos])))
        else:
            alone.append(clip.name)
    return paired, alone


def embed(clips: list[Clip], folder: Path, embedder: Embedder) -> dict[str, np.ndarray]:
    """File of a photo -> vector [D], for every photo of the clips in which the embedder sees a face.

    folder: of the data, where the vectors are kept for the next time.
    """
    name = hashlib.sha256(embedder.name.encode()).hexdigest()[:8]
    kept = folder / f"vectors_{name}.safetensors"
    vectors = _kept_vectors(kept)
    missing = [file for file in dict.fromkeys(file for clip in clips for file in clip.references)
               if file not in vectors]
    progress = comfy.utils.ProgressBar(len(missing))
    for file in missing:
        comfy.model_management.throw_exception_if_processing_interrupted()
        seen = embedder.see(read_photo(folder / file), 0)
        vectors[file] = np.empty(0, np.float32) if seen is None else np.asarray(seen.vector, np.float32)
        progress.update(1)
    if missing:
        with replacing(kept) as part:
            safetensors.numpy.save_file(vectors, part)
    return {file: vector for file, vector in vectors.items() if vector.size}


def _kept_vectors(file: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(file) if file.exists() else {}
    except safetensors.SafetensorError as error:
        log.warning("%s is damaged (%s), and the photos are looked at again", file, error)
        return {}
