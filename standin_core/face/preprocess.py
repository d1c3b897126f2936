"""A square face crop on a plain background from a photo: detect, choose, crop, parse."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import cv2
import numpy as np
import PIL.ImageColor
import torch

from ..checks import check_choice, check_number, checked_masks, checked_pictures
from ..contracts import CroppedFace, FaceCrop
from ..errors import UserError
from ..words import shown
from .colour import balanced
from .detectors import DETECTORS, WHICH, Detector, Face, choose
from .download import download_if_missing
from .geometry import BORDER_RULES, AnyPlace, Enlarged, Place, alignment, levelling, square_around, whole_photo
from .given import ready_detector
from .models import BISENET, file_refusal
from .parsing import ALL_BUT_BACKGROUND, EVERYTHING, KEPT_LABELS, NORMALIZATIONS, load_parser
from .pixels import to_uint8
from .presets import PRESETS, Preset
from .preview import Preview
from .quality import assess, pose

NO_FACE = ("error", "whole image")
PARSERS = ("auto", "bisenet", "none")
FROM_PRESET = "preset"
AUTHORS_CROP_SCALE = 1.5
LEAST_REMOVED = 0.01  # a crop counts as cut out if more than this share of the photo in it was removed


@dataclass(frozen=True, slots=True)
class FaceSettings:
    """How a face is found and cropped. Where a field is "preset", the preset sets it.

    preset: one of PRESETS.
    detector: one of DETECTORS.
    which_face: one of WHICH.
    face_index: which face "from left" takes; 0 is the leftmost.
    min_score: 0 to 1; faces with a lower score are left out.
    no_face: one of NO_FACE, what to do where no face is found; the detector "none" looks for none.
    crop_scale: side of the crop over the longer side of the face box, at least 1.
    size: side of the crop in pixels, except with a preset that aligns the face, which has its own.
    border_rule, keep, normalization: see Preset.
    background: a colour by name or #rrggbb, or "preset".
    parser: one of PARSERS.
    feather: width in pixels of the crop over which the mask fades inwards; 0 is the hard mask of Stand-In's authors.
    level_eyes: turn the photo until the eyes are level.
    balance_colors: see ``colour.balanced``.
    download_missing: download the face models that are missing.
    """

    preset: str = next(iter(PRESETS))
    detector: str = "auto"
    which_face: str = "largest"
    face_index: int = 0
    min_score: float = 0.5
    no_face: str = "error"
    crop_scale: float = AUTHORS_CROP_SCALE
    size: int = 512
    background: str = FROM_PRESET
    border_rule: str = FROM_PRESET
    keep: str = FROM_PRESET
    parser: str = "auto"
    normalization: str = FROM_PRESET
    feather: int = 0
    level_eyes: bool = False
    balance_colors: bool = False
    download_missing: bool = False

    def __post_init__(self):
        for name, known in (("preset", PRESETS), ("detector", DETECTORS), ("which_face", WHICH), ("no_face", NO_FACE),
                            ("parser", PARSERS), ("border_rule", (FROM_PRESET, *BORDER_RULES)),
                            ("keep", (FROM_PRESET, *KEPT_LABELS)), ("normalization", (FROM_PRESET, *NORMALIZATIONS))):
            check_choice(getattr(self, name), name, known)
        for name in ("crop_scale", "size"):
            check_number(getattr(self, name), name, 1, whole=name == "size")
        for name in ("face_index", "feather"):
            check_number(getattr(self, name), name, 0, whole=True)
        check_number(self.min_score, "min_score", 0, 1)
        changed = self.crop_scale != AUTHORS_CROP_SCALE or self.border_rule != FROM_PRESET or self.level_eyes
        if PRESETS[self.preset].aligned and changed:
            raise UserError(f"the preset {self.preset} brings the key points of the face to fixed places, which leaves "
                            "nothing to crop_scale, border_rule and level_eyes: set them back to "
                            f"{AUTHORS_CROP_SCALE}, preset and off, or take another preset.")

    def resolved(self) -> Preset:
        """The preset, with every field that the user set in place of its own, and the crop scale that follows."""
        base = PRESETS[self.preset]
        given = {name: getattr(self, name) for name in ("border_rule", "keep", "normalization", "background")}
        chosen = {name: value for name, value in given.items() if value != FROM_PRESET}
        if not base.aligned:
            chosen |= {"crop_scale": max(self.crop_scale, base.crop_scale), "size": self.size}
        return dataclasses.replace(base, **chosen)


def crop_faces(image: torch.Tensor, settings: FaceSettings, face_box=None, face_mask: torch.Tensor | None = None,
               face_landmarks: dict | None = None, subject_mask: torch.Tensor | None = None,
               progress=lambda: None) -> FaceCrop:
    """The crops of all faces of all photos.

    image: [B, H, W, 1, 3 or 4] float in 0..1; an alpha channel is the mask of the subject.
    face_box, face_mask, face_landmarks: take the place of the detector, see ``given_detector``.
    subject_mask: [B or 1, H, W], 1 where the subject is; takes the place of the parser and of alpha. Without it, a
        pixel is kept if both the parser and alpha keep it.
    progress: called after each photo.

    Raises UserError for what is no picture or no mask, for a choice that cannot run here, and for a photo
    without a face where no_face is "error".
    """
    photos, alpha = _checked(image)
    rules = settings.resolved()
    fill = _rgb(rules.background)
    detector = ready_detector(settings, photos.shape[:3], face_box, face_mask, face_landmarks)
    if subject_mask is not None:
        cut_out = _cut_out_by_masks(checked_masks(subject_mask, "subject_mask", photos.shape[:3]).cpu(), "subject_mask")
    else:
        cut_out = _cut_out_by_parser(settings, rules)
        if alpha is not None:
            cut_out = _both(cut_out, _cut_out_by_masks(alpha, "alpha"))
    images, cut, found, previews, lines = [], [], [], [], []
    for index, photo in enumerate(photos):
        comfy.model_management.throw_exception_if_processing_interrupted()
        seen = detector.find(photo, index)
        preview = Preview(photo, choose(seen, "all", 0))
        faces = choose(seen, settings.which_face, settings.face_index)
        looked_for = (settings.detector, detector.name) != ("none", "none")
        if not faces and looked_for and settings.no_face == "error":
            raise UserError(f"no face was found by {detector.name} in photo {index + 1} of {len(photos)}: choose "
                            "another photo or detector, lower min_score, connect a box or mask, or set no_face to "
                            "whole image.")
        for face in faces or (None,):
            comfy.model_management.throw_exception_if_processing_interrupted()
            place, done = _place(photo, face, rules, settings, alone=len(photos) == 1)
            crop = _crop(photo, index, place, settings, fill, cut_out)
            images.append(crop.image)
            cut.append(crop.rgba)
            found.append(CroppedFace(None if face is None else place.to_crop(face.points),
                                     face is not None and face.keypoints is not None, crop.removed > LEAST_REMOVED))
            preview.add(face, place, crop.rgba[..., 3])
            if settings.balance_colors:
                done.append("colours balanced")
            height, width = crop.image.shape[:2]
            lines += _lines(photo, face, detector, [*done, crop.words, f"{width}x{height} px"])
        previews.append(preview.drawn())
        progress()
    lines += [*detector.notes, *cut_out.notes]
    image, rgba, preview_images = (torch.from_numpy(np.stack(each)).float() / 255 for each in (images, cut, previews))
    return FaceCrop(image, rgba, tuple(found), preview_images, "\n".join(lines))


@dataclass(frozen=True, slots=True)
class _CutOut:
    """How the subject is cut out.

    mask: takes a crop, [S, S, 3] uint8, the place where it was cut and the index of the photo; returns [S, S] float, 1
        where the subject is.
    words: what it does, for the verdict.
    notes: what "auto" passed over, and why.
    least_kept: see Preset.
    parses: whether it judges the padding beside the photo too, as the authors have their parser do; otherwise the
        padding is transparent.
    """

    mask: Callable[[np.ndarray, AnyPlace, int], np.ndarray]
    words: str
    notes: tuple[str, ...] = ()
    least_kept: float = 0.0
    parses: bool = False


@dataclass(frozen=True, slots=True)
class _Crop:
    """A crop whose subject was cut out.

    image: [S, S, 3] uint8, over the background.
    rgba: [S, S, 4] uint8.
    removed: which share of the photo's part of it was removed.
    words: how the subject was cut out.
    """

    image: np.ndarray
    rgba: np.ndarray
    removed: float
    words: str


def _place(photo: np.ndarray, face: Face | None, rules: Preset, settings: FaceSettings,
           alone: bool) -> tuple[AnyPlace, list[str]]:
    """Where to cut, and what that does to the photo, in words.

    alone: whether it is the only photo.
    """
    height, width = photo.shape[:2]
    if rules.aligned and face is not None:
        how = "by its five points" if face.keypoints is not None else "by points guessed from its box"
        place = alignment(face.points, rules.aligned_px or rules.size)
        return Enlarged(place, rules.size) if rules.aligned_px else place, [f"aligned {how}"]
    if rules.aligned and alone:
        return whole_photo(height, width), ["the whole image"]
    square = square_around(None if face is None else face.box, height, width, rules.crop_scale, rules.border_rule)
    whole = (square.right - square.left, square.bottom - square.top) == (width, height)
    done = ["the whole image, padded to a square" if whole else f"cropped {rules.crop_scale:g}x"]
    if face is None or not settings.level_eyes:
        return Place(square, rules.size), done
    if face.keypoints is None:
        raise UserError("level_eyes needs key points, but this face was found without them: set detector to "
                        "retinaface or yunet, connect face_landmarks, or switch level_eyes off.")
    roll, _ = pose(face.keypoints)
    return Place(square, rules.size, levelling(face.centre, roll)), [f"turned by {roll:.1f}°", *done]


def _crop(photo: np.ndarray, index: int, place: AnyPlace, settings: FaceSettings, fill,
          cut_out: _CutOut) -> _Crop:
    crop, words = place.cut(balanced(photo) if settings.balance_colors else photo, fill), cut_out.words
    inside = place.inside(*photo.shape[:2])
    subject, parses = cut_out.mask(crop, place, index), cut_out.parses
    if subject.mean() < cut_out.least_kept:
        words = f"background kept, since {words} would leave {subject.mean():.0%} of the crop"
        subject, parses = _everything(crop, place, index), False
    mask = subject if parses else np.where(inside, subject, 0)
    removed = float((inside & (mask < 0.5)).sum() / max(inside.sum(), 1))
    if settings.feather:
        subject, mask = (_feathered(each, settings.feather) for each in (subject, mask))
    shown, alpha = (np.rint(255 * each).astype(np.uint8) for each in (subject, mask))
    return _Crop(_flattened(crop, shown, fill), np.dstack((crop, alpha)), removed, words)


def _cut_out_by_masks(masks: torch.Tensor, name: str) -> _CutOut:
    """masks: [B or 1, H, W] float32."""
    def mask(crop, place, index):
        return place.cut(masks[index if len(masks) > 1 else 0].numpy(), 0)

    return _CutOut(mask, f"background removed by {name}")


def _both(parser: _CutOut, alpha: _CutOut) -> _CutOut:
    """Keep a pixel if both keep it."""
    words = alpha.words if parser.mask is _everything else f"{parser.words}, {alpha.words}"
    return _CutOut(lambda *where: parser.mask(*where) * alpha.mask(*where), words, parser.notes, parses=parser.parses)


def _cut_out_by_parser(settings: FaceSettings, rules: Preset) -> _CutOut:
    if settings.parser == "none" or rules.keep == EVERYTHING:
        return _CutOut(_everything, "background kept")
    if settings.download_missing:
        download_if_missing(BISENET)
    refusal = file_refusal(BISENET)
    # a preset that may keep the whole crop goes on without the parser
    removes_parts = rules.keep != ALL_BUT_BACKGROUND and not rules.least_kept
    if refusal is not None and (settings.parser == "bisenet" or removes_parts):
        raise UserError(f"bisenet cannot run, and to keep {rules.keep} needs it: {refusal}; get that file (or "
                        "switch download_missing on), connect subject_mask, or set parser to none.")
    if refusal is not None:
        return _CutOut(_everything, "background kept", (f"bisenet not used: {refusal.fact}",))
    parse, kept = load_parser(rules.normalization), KEPT_LABELS[rules.keep]

    def mask(crop, place, index):
        return np.isin(parse(crop), kept).astype(np.float32)

    return _CutOut(mask, f"{rules.keep} kept by bisenet", least_kept=rules.least_kept, parses=True)


def _everything(crop, place, index) -> np.ndarray:
    return np.ones(crop.shape[:2], np.float32)


def _feathered(mask: np.ndarray, width: int) -> np.ndarray:
    """The mask, fading from 1 to 0 inwards over about this many pixels, so that no background shows at the edge."""
    return np.clip(2 * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), width / 2) - 1, 0, None) * mask


def _flattened(crop: np.ndarray, shown: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    """The picture over a plain colour, [S, S, 3] uint8.

    crop: [S, S, 3] uint8
    shown: [S, S] uint8, 255 where the crop covers the colour.
    fill: the colour.
    """
    share = shown[..., None].astype(np.float32) / 255
    return np.rint(crop * share + np.array(fill, np.float32) * (1 - share)).astype(np.uint8)


def _lines(photo: np.ndarray, face: Face | None, detector: Detector, done: list[str]) -> list[str]:
    """The verdict on a face in one line, and a line for each warning."""
    if face is None:
        found = "no detector" if detector.name == "none" else f"no face found by {detector.name}"
        return [f"{found}: {', '.join(done)}"]
    quality = assess(photo, face)
    return [f"{quality}, by {detector.name}: {', '.join(done)}",
            *(f"warning: {warning}" for warning in quality.warnings())]


def _checked(image: torch.Tensor) -> tuple[np.ndarray, torch.Tensor | None]:
    """The photos, [B, H, W, 3] uint8, and their alpha, [B, H, W] float32, or None where nothing is transparent."""
    pictures = checked_pictures(image, "image")
    alpha = pictures[..., 3].cpu() if pictures.shape[-1] == 4 and bool((pictures[..., 3] < 1).any()) else None
    return to_uint8(pictures[..., :3]), alpha


def _rgb(colour: str) -> tuple[int, int, int]:
    try:
        red, green, blue, *_ = PIL.ImageColor.getrgb(colour.strip())
        if max(red, green, blue) > 255:
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise UserError("background must be the name of a colour (white, grey, ...) or #rrggbb, but is "
                        f"{shown(colour)!r}.") from error
    return red, green, blue
