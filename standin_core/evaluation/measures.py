"""The arithmetic of the evaluation, on vectors and series. In a series, NaN is a frame without a face."""
from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

COMPARED_PX = 96
FLAT = 1.0  # a crop whose brightness, 0 to 255, has a smaller standard deviation is plain
TEMPLATE_SHARE = 0.6  # the middle of the photo's crop, this share of its side, is looked for in the frame's crop
# The boxes of one face in a video differ in size by up to a fourth (measured with the cascade).
TEMPLATE_SCALES = (0.75, 0.82, 0.9, 1.0, 1.1, 1.22, 1.35)


@dataclass(frozen=True, slots=True)
class Summary:
    """The summary of a series over the frames of a video. Where no frame has a face, all but coverage is NaN.

    mean, p05, minimum: mean, 5th percentile and minimum over the frames with a face.
    drift: how far a straight line through them rises from the first frame of the video to the last.
    coverage: share of the frames that have a face.
    """

    mean: float
    p05: float
    minimum: float
    drift: float
    coverage: float


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosines of the angles between vectors, [N, M]; 0 where a vector has no direction.

    a: [N, D].
    b: [M, D].
    """
    a, b = (x.astype(np.float64) for x in (a, b))
    lengths = np.linalg.norm(a, axis=-1, keepdims=True) * np.linalg.norm(b, axis=-1)
    return np.divide(a @ b.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def summarize(series: np.ndarray) -> Summary:
    """The summary of a series, [F]."""
    seen = np.flatnonzero(~np.isnan(series))
    if not seen.size:
        return Summary(math.nan, math.nan, math.nan, math.nan, 0.0)
    values = series[seen]
    slope = float(np.polyfit(seen, values, 1)[0]) if seen.size > 1 else 0.0
    return Summary(float(values.mean()), float(np.percentile(values, 5)), float(values.min()),
                   slope * (len(series) - 1), seen.size / len(series))


def copy_paste(frame_to_others: np.ndarray, frame_to_photo: np.ndarray, others_to_photo: np.ndarray) -> np.ndarray:
    """How much nearer each frame is to the photo that was given than to the others, [F], the mean over the others.

    It is ``(theta_gt - theta_gr) / theta_tr`` with the angles theta between a generated frame g, the given photo r and
    another photo t of the same person: the copy-paste metric of WithAnyone (arXiv 2510.14975, equation 2). 1 is the
    given photo over again, 0 is as near to both, -1 is the other photo.

    frame_to_others: [F, T], cosines.
    frame_to_photo: [F], cosines.
    others_to_photo: [T], cosines.
    """
    to_others, to_photo, between = (np.arccos(np.clip(x, -1, 1)) for x in (frame_to_others, frame_to_photo,
                                                                            others_to_photo))
    return ((to_others - to_photo[:, None]) / np.maximum(between, 1e-6)).mean(axis=1)


def clip_distance(frames: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """CLIPDist of each frame, ``1 - cos(CLIP(photo), CLIP(frame))``, [F].

    frames: [F, D], vectors of CLIP.
    photo: [D], the photo's.
    """
    return 1 - cosine(frames, photo[None])[:, 0]


def copied_pixels(crop: np.ndarray, photo: np.ndarray) -> float:
    """How far the pixels of two crops are the same; 1 is the photo itself, at any contrast.

    The middle of the photo's crop is looked for in the frame's crop, at sizes near its own. The result is the
    correlation of their brightness where it fits best, which another pose, light or expression lowers.

    crop: [S, S, 3] uint8, of the frame.
    photo: [S, S, 3] uint8, of the photo.
    """
    crop, photo = (cv2.resize(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), (COMPARED_PX, COMPARED_PX),
                              interpolation=cv2.INTER_AREA) for x in (crop, photo))
    margin = round(COMPARED_PX * (1 - TEMPLATE_SHARE) / 2)
    middle = photo[margin:COMPARED_PX - margin, margin:COMPARED_PX - margin]
    if min(crop.std(), middle.std()) < FLAT:
        return 0.0  # OpenCV takes any two plain areas for the same
    best = 0.0
    for scale in TEMPLATE_SCALES:
        template = cv2.resize(middle, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found = cv2.matchTemplate(crop, template, cv2.TM_CCOEFF_NORMED)
        best = max(best, float(np.nan_to_num(found, posinf=0, neginf=0).max()))
    return best
