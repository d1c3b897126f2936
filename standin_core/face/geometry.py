"""The authors' crop: a square around the face, padded where it leaves the photo, resized by area."""
from __future__ import annotations

import cv2
import numpy as np

Box = tuple[int, int, int, int]

# A face this near to all four borders, in pixels, fills the photo: there is nothing to crop.
BORDER_PX = 10


def square_crop(photo: np.ndarray, box: Box | None, scale: float, size: int,
                fill: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """photo: [H, W, 3] uint8; box: (left, top, right, bottom) in pixels, or None for the whole photo.

    -> crop [size, size, 3] uint8 and mask [size, size] bool, False where the crop was padded. Integer halves, clipping
    before padding, centred padding and INTER_AREA are the authors', bit for bit.
    """
    height, width = photo.shape[:2]
    if box is not None and not _fills(box, width, height):
        left, top, right, bottom = box
        centre_x, centre_y = (left + right) // 2, (top + bottom) // 2
        half = int(max(right - left, bottom - top) * scale) // 2
        photo = photo[max(centre_y - half, 0):min(centre_y + half, height),
                      max(centre_x - half, 0):min(centre_x + half, width)]
    inside = np.full(photo.shape[:2], 255, np.uint8)
    return _pad_and_resize(photo, size, (fill,) * 3), _pad_and_resize(inside, size, 0) > 127


def _fills(box: Box, width: int, height: int) -> bool:
    left, top, right, bottom = box
    return (left < BORDER_PX and top < BORDER_PX
            and right > width - BORDER_PX and bottom > height - BORDER_PX)


def _pad_and_resize(image: np.ndarray, size: int, fill) -> np.ndarray:
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = cv2.copyMakeBorder(image, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT,
                                value=fill)
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
