"""Small faces of a finished video made anew: a steady square around one is enlarged, and what was sampled is put back.

Between the two runs any sampler with a denoise below 1, as for a face swap. Several people are refined one after the
other.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import comfy.model_management
import comfy.utils
import cv2
import numpy as np
import torch

from ..checks import checked_masks, checked_pictures
from ..errors import UserError
from ..face import Face, ready_detector, to_uint8
from ..latents import FRAMES_PER_LATENT, PIXELS_PER_TOKEN, frames_of, latent_frames_of
from .composite import fade_to_margins, feathered, match_colors
from .follow import Follower
from .paste import SwapSettings

# Frames over which the square's way is averaged at smoothing 1: the standard deviation of the Gaussian. It looks both
# ways in time, so the square never lags behind.
STEADIEST = 8.0
# half axes of the ellipse that is put back, as shares of the face's box: with hairline and chin
ELLIPSE = 0.62, 0.68


@dataclass(frozen=True, slots=True)
class RefineSettings(SwapSettings):
    """Which face, in which frames, and the square around it.

    smoothing: 0 to 1, how steady the square is.
    hold_frames: through how many frames without the face it is refined all the same.
    largest_face: longer side of the face box in pixels; frames with a larger one stay as they are.
    crop_scale: side of the square over the longer side of the largest face in it.
    size: side of the enlarged square in pixels.
    """

    largest_face: int = 128
    crop_scale: float = 2.5
    size: int = 624  # as many pixels as 832x480, to 3 %


@dataclass(frozen=True, slots=True, eq=False)
class FaceTrack:
    """Where the squares of a crop video lie in its source.

    first: frame of the source that the crop video begins with.
    side: of every square, in pixels of the source.
    corners: [F, 2] float64, left and top edge of the square in pixels of the source.
    refined: [F] bool, which frames are put back.
    size: height and width of the source.
    """

    first: int
    side: float
    corners: np.ndarray
    refined: np.ndarray
    size: tuple[int, int]

    def to_crop(self, i: int, pixels: int) -> np.ndarray:
        """[2, 3]: from pixels of the source to those of a square of so many pixels, in frame i of the crop video.

        Pixels have their centre at one half.
        """
        scale = pixels / self.side
        left, top = self.corners[i]
        return np.array([[scale, 0, scale * (0.5 - left) - 0.5], [0, scale, scale * (0.5 - top) - 0.5]])


@dataclass(frozen=True, slots=True, eq=False)
class SmallFace:
    """A small face, enlarged.

    frames: [4k+1, S, S, 3] float32 in 0..1.
    mask: [4k+1, S, S] float32 in 0..1, where the face is.
    """

    frames: torch.Tensor
    mask: torch.Tensor
    track: FaceTrack
    report: str


def enlarge_small_face(images: torch.Tensor, settings: RefineSettings, face_box=None,
                       face_mask: torch.Tensor | None = None, face_landmarks: dict | None = None) -> SmallFace:
    """One person's face in all frames from the first to the last in which it is small.

    The square has one size, moves smoothly and stays inside the picture. Where the video ends before 4k+1 frames, its
    last frame is repeated; it is not put back twice. Where the face is nowhere found or nowhere small, one frame is
    given on, which is not put back: a video with nothing to refine stops nobody who refines many.

    images: ComfyUI's IMAGE.
    face_box, face_mask, face_landmarks: of these frames; they take the place of the detector, see ``given_detector``.

    Raises UserError for what is no video, and for a size that the model does not take.
    """
    images = checked_pictures(images, "images")
    if settings.size % PIXELS_PER_TOKEN:
        raise UserError(f"size must be a multiple of {PIXELS_PER_TOKEN}, but is {settings.size}.")
    count, height, width = images.shape[:3]
    detector = ready_detector(settings, (count, height, width), face_box, face_mask, face_landmarks)
    seen = _seen(images, detector, Follower(settings.which_face, settings.face_index))
    sides = np.array([np.nan if face is None else max(_box_size(face)) for face in seen])
    refined = _held(sides <= settings.largest_face, np.isnan(sides), settings.hold_frames)
    if not refined.any():
        why = (f"{detector.name} found no such face in {count} frames: lower min_score, choose another detector, or "
               "connect face_box, face_mask or face_landmarks") if np.isnan(sides).all() else (
               f"the face is nowhere smaller than {settings.largest_face} pixels (it has {np.nanmin(sides):.0f} to "
               f"{np.nanmax(sides):.0f}): raise largest_face to refine it")
        return _nothing_to_refine(images, settings.size, "\n".join((why, *detector.notes)))
    where = np.flatnonzero(refined)
    first, last = int(where[0]), int(where[-1])
    boxes = _smooth(_without_gaps(seen), settings.smoothing)
    shown = np.minimum(first + np.arange(_whole_latents(last - first + 1)), count - 1)
    boxes, back = boxes[shown], refined[shown] & (first + np.arange(len(shown)) <= last)
    side = min(settings.crop_scale * float(boxes[back, 2:].max()), float(min(height, width)))
    corners = np.clip(boxes[:, :2] - side / 2, 0, np.array((width, height)) - side)
    track = FaceTrack(first, side, corners, back, (height, width))
    mask = torch.from_numpy(np.stack([ellipse(box, track, i, settings.size)
                                      for i, box in enumerate(_until_cancelled(boxes))]))
    report = (f"{int(back.sum())} of {count} frames, {first + 1} to {last + 1}, face of {np.nanmin(sides):.0f} to "
              f"{np.nanmax(sides):.0f} px by {detector.name}, a square of {side:.0f} px enlarged to {settings.size}")
    return SmallFace(enlarged(images, track, settings.size), mask, track, "\n".join((report, *detector.notes)))


def _nothing_to_refine(images: torch.Tensor, pixels: int, why: str) -> SmallFace:
    """The middle of the first frame, which a sampler takes as one frame and which is not put back.

    The mask covers it, because Face Swap Encode takes no empty mask.
    """
    height, width = images.shape[1:3]
    side = float(min(height, width))
    track = FaceTrack(0, side, np.array([[(width - side) / 2, (height - side) / 2]]), np.zeros(1, bool),
                      (height, width))
    return SmallFace(enlarged(images, track, pixels), torch.ones(1, pixels, pixels), track,
                     f"the video goes on unchanged, since {why}")


def enlarged(images: torch.Tensor, track: FaceTrack, pixels: int) -> torch.Tensor:
    """The squares of the track, [4k+1, pixels, pixels, 3] float32 in 0..1.

    images: [F, H, W, 3], the source, or what it became.
    """
    return torch.stack([torch.from_numpy(_square(images[min(track.first + i, len(images) - 1)], track, i, pixels))
                        for i in _until_cancelled(range(len(track.corners)))])


def put_back(source: torch.Tensor, images: torch.Tensor, mask: torch.Tensor, track: FaceTrack, feather: int,
             color_match: float, color_region: str) -> torch.Tensor:
    """The source with the refined face in it, [F, H, W, 3].

    Three pixels beyond the feathered mask, every pixel is the source's own.

    source: [F, H, W, 3] in 0..1, the frames that were enlarged.
    images: [4k+1, S, S, 3] in 0..1, the enlarged face after sampling.
    mask: [4k+1, S, S], see SmallFace.
    feather: in pixels of the enlarged face, over which the mask fades on either side of its edge.
    color_match, color_region: as in ``composite_swap``, inside the square.

    Raises UserError for images, a mask or a source that are not those of the track.
    """
    source, images = checked_pictures(source, "source"), checked_pictures(images, "images")
    mask = checked_masks(mask, "mask")
    _check(source, images, mask, track)
    pixels = images.shape[1]
    scale, fade = pixels / track.side, fade_to_margins(pixels, pixels, True, True, feather)
    result = source[..., :3].clone()
    progress = comfy.utils.ProgressBar(len(track.refined))
    for i in np.flatnonzero(track.refined).tolist():
        comfy.model_management.throw_exception_if_processing_interrupted()
        frame = result[track.first + i]
        front, inside = images[i, ..., :3].cpu().float().numpy(), mask[i].cpu().float().numpy()
        if color_match:
            front = match_colors(front, _square(frame, track, i, pixels), inside, color_region, color_match)
        alpha = np.minimum(feathered(inside, feather), fade)[..., None]
        layer: np.ndarray = np.dstack((front * alpha, alpha)).astype(np.float32)
        if scale > 1:  # what the source's pixels cannot hold is taken out first, or it would flicker
            layer = cv2.GaussianBlur(layer, (0, 0), scale / 2)
        layer = cv2.warpAffine(layer, track.to_crop(i, pixels), track.size[::-1],
                               flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        over = torch.from_numpy(layer).to(frame)
        result[track.first + i] = frame * (1 - over[..., 3:]) + over[..., :3]
        progress.update(1)
    return result


def _until_cancelled(values: Iterable) -> Iterator:
    """The values; raises ComfyUI's exception at the first one after the user has cancelled."""
    for each in values:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield each


def _seen(images: torch.Tensor, detector, follower: Follower) -> list[Face | None]:
    """The person's face in every frame."""
    seen, progress = [], comfy.utils.ProgressBar(len(images))
    for i, image in enumerate(images):
        comfy.model_management.throw_exception_if_processing_interrupted()
        seen.append(follower.pick(detector.find(to_uint8(image[..., :3]), i)))
        progress.update(1)
    return seen


def _box_size(face: Face) -> tuple[int, int]:
    left, top, right, bottom = face.box
    return right - left, bottom - top


def _held(small: np.ndarray, missing: np.ndarray, hold_frames: int) -> np.ndarray:
    """[F] bool: the frames with a small face, and those without a face that follow on one, so many at most."""
    refined, missed, last = small.copy(), 0, False
    for i in range(len(small)):
        if missing[i]:
            missed += 1
            refined[i] = last and missed <= hold_frames
        else:
            missed, last = 0, bool(small[i])
    return refined


def _without_gaps(seen: list[Face | None]) -> np.ndarray:
    """[F, 4]: centre, width and height of the face, on straight lines where it was not seen."""
    found = [i for i, face in enumerate(seen) if face is not None]
    values = np.array([(*face.centre, *_box_size(face)) for face in seen if face is not None], np.float64)
    return np.stack([np.interp(np.arange(len(seen)), found, column) for column in values.T], axis=1)


def _smooth(values: np.ndarray, amount: float) -> np.ndarray:
    """Each column of [F, n], averaged over time by a Gaussian."""
    if not amount or len(values) == 1:
        return values
    return cv2.GaussianBlur(values, (1, 0), sigmaX=1e-6, sigmaY=amount * STEADIEST, borderType=cv2.BORDER_REPLICATE)


def _whole_latents(count: int) -> int:
    """The least 4k+1 that is not below."""
    return frames_of(latent_frames_of(count + FRAMES_PER_LATENT - 1))


def _square(image: torch.Tensor, track: FaceTrack, i: int, pixels: int) -> np.ndarray:
    """[pixels, pixels, 3] float32"""
    return cv2.warpAffine(image[..., :3].cpu().float().numpy(), track.to_crop(i, pixels), (pixels, pixels),
                          flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).clip(0, 1)


def ellipse(box: np.ndarray, track: FaceTrack, i: int, pixels: int) -> np.ndarray:
    """[pixels, pixels] float32: 1 inside of the ellipse over the face, box being its centre, width and height."""
    (x, y), scale = track.to_crop(i, pixels) @ (box[0] - 0.5, box[1] - 0.5, 1), pixels / track.side
    columns, rows = np.arange(pixels), np.arange(pixels)[:, None]
    across, down = (scale * share * side for share, side in zip(ELLIPSE, box[2:]))
    return (((columns - x) / across)**2 + ((rows - y) / down)**2 <= 1).astype(np.float32)


def _check(source: torch.Tensor, images: torch.Tensor, mask: torch.Tensor, track: FaceTrack) -> None:
    last = track.first + max(np.flatnonzero(track.refined).tolist(), default=0)
    if tuple(source.shape[1:3]) != track.size or len(source) <= last:
        raise UserError(f"the source is {list(source.shape[:3])} (frames, height, width), but the face was enlarged "
                        f"from {list(track.size)} (height, width) up to frame {last + 1}: connect the frames that "
                        "went into Refine Faces Prepare.")
    if len(images) < len(track.refined) or images.shape[1] != images.shape[2] or mask.shape[:3] != images.shape[:3]:
        raise UserError(f"the refined face must be {len(track.refined)} square frames and their masks, but is "
                        f"{list(images.shape[:3])} (frames, height, width) with masks of {list(mask.shape)}: connect "
                        "VAE Decode, and the mask of the same Refine Faces Prepare.")
