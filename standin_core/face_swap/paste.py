"""Warp the face of the reference on the frames of a video."""
from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import comfy.utils
import cv2
import numpy as np
import torch

from ..checks import checked_pictures
from ..contracts import CroppedFace, FaceCrop, SwapFrames
from ..errors import UserError
from ..face import Detector, ready_detector, to_uint8
from ..latents import PIXELS_PER_TOKEN, frames_of, latent_frames_of
from .follow import Follower, OneEuro


@dataclass(frozen=True, slots=True)
class SwapSettings:
    """Whom to follow, and how.

    detector, min_score, download_missing: as in FaceSettings.
    which_face: "largest" or "from left", in the first frame that has the face.
    face_index: which face "from left" follows; 0 is the leftmost.
    smoothing: 0 to 1, the amount of ``OneEuro``; the authors have none.
    hold_frames: for how many frames without the face its last mask stays.
    """

    detector: str = "auto"
    which_face: str = "largest"
    face_index: int = 0
    min_score: float = 0.5
    smoothing: float = 0.5
    hold_frames: int = 8
    download_missing: bool = False


def prepare_swap(images: torch.Tensor, face: FaceCrop, settings: SwapSettings, face_box=None,
                 face_mask: torch.Tensor | None = None, face_landmarks: dict | None = None) -> SwapFrames:
    """The first 4k+1 frames, cropped around their centre to multiples of 16, with the reference warped on, and masks.

    A rotation, scale and shift (least median of squares) brings the reference's five points to those of the frame; the
    reference's pixels are blended by its mask. Both are the authors', bit for bit. Pixels outside the mask stay as they
    came. The call needs the memory of one frame beside what it returns.

    images: [F, H, W, 3] float in 0..1.
    face: the reference, one face, cut out.
    face_box, face_mask, face_landmarks: of these frames; they take the place of the detector, see ``given_detector``.

    Raises UserError for what is no video, for a reference without a face or without a cut-out, and for a video that is
    too small or shows no face in any frame.
    """
    images = checked_pictures(images, "images")
    reference, person = _checked_reference(face)
    assert person.points is not None  # _checked_reference refuses a face without
    length, top, left, height, width = _trim(images)
    count, full_height, full_width = images.shape[:3]
    detector = ready_detector(settings, (count, full_height, full_width), face_box, face_mask, face_landmarks)
    follower, steady = Follower(settings.which_face, settings.face_index), OneEuro(settings.smoothing)
    frames, masks = torch.empty(length, height, width, 3), torch.zeros(length, height, width)
    found = held = 0
    progress = comfy.utils.ProgressBar(length)
    for i in range(length):
        comfy.model_management.throw_exception_if_processing_interrupted()
        frames[i] = images[i, top:top + height, left:left + width, :3]
        whole = to_uint8(images[i, ..., :3])
        seen = follower.pick(detector.find(whole, i))
        if seen is not None:
            points = steady(seen.moved(-left, -top).points)
            frame = whole[top:top + height, left:left + width]
            pasted, alpha = paste(frame, reference, person.points, points)
            changed = torch.from_numpy(alpha > 0)
            frames[i][changed] = torch.from_numpy(pasted[alpha > 0]).float() / 255
            masks[i] = torch.from_numpy(alpha).float() / 255
            found += 1
        else:
            steady.forget()
            if found and follower.missed <= settings.hold_frames:
                masks[i] = masks[i - 1]
                held += 1
        progress.update(1)
    if not found:
        raise UserError(f"{detector.name} found no face{_which(settings)} in {length} frames: lower min_score, "
                        "choose another detector, or connect face_box, face_mask or face_landmarks.")
    return SwapFrames(frames, masks, _report(images, frames, found, held, detector, person))


def paste(frame: np.ndarray, reference: np.ndarray, reference_points: np.ndarray,
          points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frame with the reference on it, [H, W, 3] uint8, and the mask of the reference in it, [H, W] uint8.

    If the points allow no transform, because they all lie in one place, nothing is pasted. The authors round down, too.

    frame: [H, W, 3] uint8.
    reference: [S, S, 4] uint8.
    reference_points, points: [5, 2], in pixels of the reference and of the frame.
    """
    matrix, _ = cv2.estimateAffinePartial2D(reference_points.astype(np.float32), points.astype(np.float32),
                                            method=cv2.LMEDS)
    if matrix is None:
        return frame, np.zeros(frame.shape[:2], np.uint8)
    warped = cv2.warpAffine(reference, matrix, frame.shape[1::-1])
    alpha = warped[..., 3:].astype(np.float32) / 255
    return (frame * (1 - alpha) + warped[..., :3] * alpha).astype(np.uint8), warped[..., 3]


def _checked_reference(face: FaceCrop) -> tuple[np.ndarray, CroppedFace]:
    """The reference, [S, S, 4] uint8, and the face in it."""
    if len(face.rgba) != 1:
        raise UserError(f"the reference must have one face, but has {len(face.rgba)}: set which_face to largest in "
                        "FacePreprocess and give it one photo.")
    (person,) = face.faces
    if person.points is None:
        raise UserError("the reference has no face to put on the video's: choose another photo or detector in "
                        "FacePreprocess, or connect face_box there.")
    if not person.cut_out:
        raise UserError("the reference is not cut out, so its background would be pasted too: put "
                        "parsing_bisenet.pth into models/facexlib (download_missing does), or connect subject_mask "
                        "to FacePreprocess.")
    return to_uint8(face.rgba[0]), person


def _trim(images: torch.Tensor) -> tuple[int, int, int, int, int]:
    """The number of frames, and top, left, height and width of the crop around their centre."""
    count, full_height, full_width = images.shape[:3]
    # the authors take n // 4 * 4 + 1, which is one frame too many where n is a multiple of 4
    length = frames_of(latent_frames_of(count))
    height, width = (side // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN for side in (full_height, full_width))
    if not height or not width:
        raise UserError(f"the video must be at least {PIXELS_PER_TOKEN}x{PIXELS_PER_TOKEN}, but is "
                        f"{full_width}x{full_height}: resize it first.")
    return length, (full_height - height) // 2, (full_width - width) // 2, height, width


def _which(settings: SwapSettings) -> str:
    return f" number {settings.face_index} from the left" if settings.which_face == "from left" else ""


def _report(images: torch.Tensor, frames: torch.Tensor, found: int, held: int, detector: Detector,
            person: CroppedFace) -> str:
    length, height, width = frames.shape[:3]
    lines = [f"{length} of {len(images)} frames, {width}x{height} of {images.shape[2]}x{images.shape[1]}: face in "
             f"{found} by {detector.name}, its last mask in {held}, none in {length - found - held}"]
    if not detector.has_keypoints:
        lines.append(f"{detector.name} gives no key points: the paste follows place and size of the box, and does not "
                     "turn with the head")
    elif not person.measured:
        lines.append("the reference was found without key points, which are estimated from its box, so the paste may "
                     "sit a little off: find it in Face Preprocess as it is found here")
    return "\n".join((*lines, *detector.notes))
