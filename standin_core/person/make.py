"""From photos to a person: the face work, the VAE and CLIP vision, once."""
from __future__ import annotations

from dataclasses import dataclass

import comfy.utils
import torch

from .. import __version__
from ..checks import checked_pictures, checked_size
from ..clip_vision import hidden_states
from ..errors import UserError
from ..face import FaceSettings, crop_faces, resolve_detector
from ..latents import PIXELS_PER_LATENT
from ..reference import answer_of, encode_reference, fitted
from .record import Person, Use

OTHER_PRESETS = {Use.CONCAT_ID: "Concat-ID", Use.ID_ANIMATOR: "ID-Animator"}


@dataclass(frozen=True, slots=True)
class PersonSettings:
    """How the face is found in every photo; as in FaceSettings.

    preset: of the crop for Stand-In; the others have their own.
    which_face: "largest" or "from left".
    """

    preset: str = "Stand-In inference"
    which_face: str = "largest"
    face_index: int = 0
    detector: str = "auto"
    min_score: float = 0.5
    download_missing: bool = False


def make_person(name: str, photos: torch.Tensor, settings: PersonSettings, vae=None, video: dict | None = None,
                clip_vision=None) -> tuple[Person, str]:
    """The person, and what was found in the photos, in words.

    photos: ComfyUI's IMAGE, each with the person's face; an alpha channel is the mask of the subject.
    vae: Wan's, for the latents of Stand-In and, where video came, of Concat-ID.
    video: a ComfyUI LATENT of the size of the videos that Concat-ID will make.
    clip_vision: for ID-Animator.

    Raises UserError for what is no picture or no latent, for a photo without a face, and for a video without a VAE.
    """
    photos = checked_pictures(photos, "photos")
    if video is not None and vae is None:
        raise UserError("a latent for Concat-ID came without a VAE, which encodes the photos in its size: connect "
                        "Wan 2.1's VAE, or disconnect the latent.")
    size = None if video is None else checked_size(video, "latent")
    presets = {Use.STAND_IN: settings.preset, **OTHER_PRESETS}
    progress = comfy.utils.ProgressBar(len(presets) * len(photos))
    crops = {use: crop_faces(photos, FaceSettings(
        preset=preset, which_face=settings.which_face, face_index=settings.face_index, detector=settings.detector,
        min_score=settings.min_score, download_missing=settings.download_missing),
        progress=lambda: progress.update(1)) for use, preset in presets.items()}
    if any(face.points is None for face in crops[Use.STAND_IN].faces):
        raise UserError("a person is kept with the points of a face, but detector is none: choose another detector.")
    latents = {}
    if vae is not None:
        latents[Use.STAND_IN] = encode_reference(vae, crops[Use.STAND_IN].image).float().cpu()
    if size is not None:
        height, width = (PIXELS_PER_LATENT * side for side in size)
        in_video = torch.stack([fitted(crop, height, width) for crop in crops[Use.CONCAT_ID].image])
        latents[Use.CONCAT_ID] = encode_reference(vae, in_video).float().cpu()
    hidden = None if clip_vision is None else hidden_states(clip_vision, crops[Use.ID_ANIMATOR].image)
    verdict = crops[Use.STAND_IN].verdict
    answer = None if vae is None else answer_of(vae)
    return Person(name, _made_by(settings), photos[..., :3].cpu(), crops, latents, answer, hidden), verdict


def _made_by(settings: PersonSettings) -> str:
    detector, _ = resolve_detector(settings.detector)
    return f"Stand-In for ComfyUI {__version__}, preset {settings.preset}, detector {detector}"
