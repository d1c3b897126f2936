"""The arithmetic of the evaluation, on vectors and series; NaN is a frame without a face."""
from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

COMPARED_PX = 96
FLAT = 1.0  # standard deviation of brightness, of 255
TEMPLATE_SHARE = 0.6  # of the side of the photo's crop that is looked for in the frame's
# detectors' boxes differ in size: of the same face in a video, by up to a fourth (measured with the cascade)
TEMPLATE_SCALES = (0.75, 0.82, 0.9, 1.0, 1.1, 1.22, 1.35)


@dataclass(frozen=True, slots=True)
class Summary:
    """Of a series over the frames of a video. mean, p05 (the 5th percentile) and minimum: over frames with a face;
    drift: what a straight line through them rises by from the first frame to the last; coverage: share of frames with
    a face. All NaN but coverage where no frame has one.
    """

    mean: float
    p05: float
    minimum: float
    drift: float
    coverage: float


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a: [N, D], b: [M, D] -> [N, M], cosines of the angles between them."""
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True) for x in (a, b))
    return a @ b.T


def summarize(series: np.ndarray) -> Summary:
    """series: [F]"""
    seen = np.flatnonzero(~np.isnan(series))
    if not seen.size:
        return Summary(math.nan, math.nan, math.nan, math.nan, 0.0)
    values = series[seen]
    slope = float(np.polyfit(seen, values, 1)[0]) if seen.size > 1 else 0.0
    return Summary(float(values.mean()), float(np.percentile(values, 5)), float(values.min()),
                   slope * (len(series) - 1), seen.size / len(series))


def copy_paste(frame_to_others: np.ndarray, frame_to_photo: np.ndarray, others_to_photo: np.ndarray) -> np.ndarray:
    """``(theta_gt - theta_gr) / theta_tr`` with angles theta between a generated frame g, the photo r that was given
    and another photo t of the same person (the copy-paste metric of WithAnyone, arXiv 2510.14975, equation 2): 1 is the
    given photo over again, 0 is as near to both, -1 is the other photo.

    frame_to_others: cosines [F, T]; frame_to_photo: [F]; others_to_photo: [T] -> [F], the mean over the other photos.
    """
    to_others, to_photo, between = (np.arccos(np.clip(x, -1, 1)) for x in (frame_to_others, frame_to_photo,
                                                                            others_to_photo))
    return ((to_others - to_photo[:, None]) / np.maximum(between, 1e-6)).mean(axis=1)


def clip_distance(frames: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """CLIPDist: ``1 - cos(CLIP(photo), CLIP(frame))``. frames: [F, D]; photo: [D] -> [F]"""
    return 1 - cosine(frames, photo[None])[:, 0]


def copied_pixels(crop: np.ndarray, photo: np.ndarray) -> float:
    """How much the pixels of two crops are the same, [S, S, 3] uint8 each: the correlation of their brightness where
    the middle of the photo's, at a size near its own, fits best. 1 is the photo itself, whatever its contrast; another
    pose, light or expression lowers it.
    """
    crop, photo = (cv2.resize(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), (COMPARED_PX, COMPARED_PX),
                              interpolation=cv2.INTER_AREA) for x in (crop, photo))
    margin = round(COMPARED_PX * (1 - TEMPLATE_SHARE) / 2)
    middle = photo[margin:COMPARED_PX - margin, margin:COMPARED_PX - margin]
    if min(crop.std(), middle.std()) < FLAT:
        return 0.0  # to OpenCV any two plain areas are the same
    best = 0.0
    for scale in TEMPLATE_SCALES:
        template = cv2.resize(middle, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found = cv2.matchTemplate(crop, template, cv2.TM_CCOEFF_NORMED)
        best = max(best, float(np.nan_to_num(found, posinf=0, neginf=0).max()))
    return best
