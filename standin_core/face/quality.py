"""How good a photo is as a reference: its figures, and a warning for each that is poor."""
from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .detectors import Face

SMALL_SHARE = 0.10  # of the photo's height; identity adapters are trained on mid and close shots
MEASURED_PX = 128  # sharpness is compared at one size
BLURRED = 20.0  # skimage's astronaut, a face of 102 px, has 182; blurred by 1 px 28, by 2 px 10
TURNED_DEGREES = 35.0  # the far cheek is hidden from about here
# Distance of the nose's tip from the plane of the eyes, in half eye distances. MediaPipe's canonical face model has the
# tip at z = 7.48, and the corners of an eye at x = 4.45 and 1.86, z = 3.17 and 3.76.
NOSE_DEPTH = (7.475604 - (3.173422 + 3.757904) / 2) / ((4.445859 + 1.856432) / 2)


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of a face in a photo.

    width, height: of the face box in pixels.
    share: height of the face box over the height of the photo.
    sharpness: variance of the Laplacian of the face at MEASURED_PX.
    roll, yaw: in degrees; None without key points.
    """

    width: int
    height: int
    share: float
    sharpness: float
    roll: float | None
    yaw: float | None

    def __str__(self):
        pose = "pose unknown (no key points)" if self.roll is None else f"roll {self.roll:.0f}°, yaw {self.yaw:.0f}°"
        return (f"face of {self.width}x{self.height} px, {100 * self.share:.0f} % of the photo's height, sharpness "
                f"{self.sharpness:.0f}, {pose}")

    def warnings(self) -> list[str]:
        found = []
        if self.share < SMALL_SHARE:
            found.append(f"the face is {100 * self.share:.0f} % of the photo's height, less than "
                         f"{100 * SMALL_SHARE:.0f} %: a closer photo keeps more likeness")
        if self.sharpness < BLURRED:
            found.append(f"the face is blurred or too small for detail (sharpness {self.sharpness:.0f}, below "
                         f"{BLURRED:.0f}): a sharper photo keeps more likeness")
        if self.yaw is not None and abs(self.yaw) > TURNED_DEGREES:
            found.append(f"the face is turned by about {abs(self.yaw):.0f}°, more than {TURNED_DEGREES:.0f}°: a "
                         "frontal photo keeps more likeness")
        return found


def assess(photo: np.ndarray, face: Face) -> Quality:
    """The figures of a face.

    photo: [H, W, 3] uint8.
    face: in pixels of the photo.
    """
    left, top, right, bottom = face.box
    roll, yaw = (None, None) if face.keypoints is None else pose(face.keypoints)
    return Quality(right - left, bottom - top, (bottom - top) / photo.shape[0],
                   _sharpness(photo[max(top, 0):bottom, max(left, 0):right]), roll, yaw)


def _sharpness(region: np.ndarray) -> float:
    grey = cv2.cvtColor(region, cv2.COLOR_RGB2GRAY)
    shrinks = min(grey.shape) > MEASURED_PX
    grey = cv2.resize(grey, (MEASURED_PX, MEASURED_PX), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def pose(keypoints: np.ndarray) -> tuple[float, float]:
    """Roll and yaw in degrees; positive when the eyes fall to the right and the nose points to the right.

    A nose at depth d before two eyes at -1 and 1 is seen at d tan(yaw) between the eyes of a head turned by yaw.

    keypoints: [5, 2], x and y in the order of detectors.POINTS_IN_BOX.
    """
    left_eye, right_eye, nose = keypoints[:3]
    across = right_eye - left_eye
    distance = max(float(np.hypot(*across)), 1e-6)
    roll = math.degrees(math.atan2(across[1], across[0]))
    offset = float((nose - (left_eye + right_eye) / 2) @ across) / distance / (distance / 2)
    return roll, math.degrees(math.atan(offset / NOSE_DEPTH))
