"""Where the crop lies: the square of Stand-In's authors around a face, padded where it leaves the photo."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import PIL.Image

from ..errors import UserError

Box = tuple[int, int, int, int]

# A face whose box comes this near to the photo's borders, in pixels, or nearer, fills the photo: nothing is cropped.
BORDER_PX = 10
# The inference code of Stand-In's authors asks for all four borders, their ComfyUI preprocessor for any one of them.
BORDER_RULES = {"all sides": all, "any side": any}

# Side of the pictures that face recognition networks take, and where the five points lie in them: left eye, right eye,
# nose, left and right corner of the mouth (insightface, utils/face_align.py, arcface_dst; OpenCV's SFace has the same).
ALIGNED_PX = 112
ALIGNED_POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
                           [70.7299, 92.2041]], np.float32)


@dataclass(frozen=True, slots=True)
class Square:
    """A region of a photo in its pixels, which is padded around its centre to a square."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def side(self) -> int:
        return max(self.right - self.left, self.bottom - self.top)

    @property
    def _padding(self) -> tuple[int, int]:
        return (self.side - (self.right - self.left)) // 2, (self.side - (self.bottom - self.top)) // 2

    def cut(self, image: np.ndarray, size: int, fill) -> np.ndarray:
        """The region, padded and resized: [size, size] or [size, size, C].

        The padding around the centre and INTER_AREA are those of Stand-In's authors, bit for bit.

        image: [H, W] or [H, W, C], of the photo's size.
        size: side of the result in pixels.
        fill: value of the padding.
        """
        region = image[self.top:self.bottom, self.left:self.right]
        height, width = region.shape[:2]
        left, top = self._padding
        padded = cv2.copyMakeBorder(region, top, self.side - height - top, left, self.side - width - left,
                                    cv2.BORDER_CONSTANT, value=fill)
        return cv2.resize(padded, (size, size), interpolation=cv2.INTER_AREA)

    def to_crop(self, points: np.ndarray, size: int) -> np.ndarray:
        """The same points in the crop.

        points: [n, 2], x and y in pixels of the photo.
        size: side of the crop in pixels.
        """
        left, top = self._padding
        in_square = np.asarray(points, np.float64) - (self.left - left, self.top - top)
        return (in_square + 0.5) * (size / self.side) - 0.5  # pixels have their centre at one half

    def put_back(self, crop: np.ndarray, height: int, width: int) -> np.ndarray:
        """A picture of the photo's size, [height, width], with the crop where it was cut, and 0 elsewhere.

        crop: [S, S]
        """
        whole = np.zeros((height, width), crop.dtype)
        left, top = self._padding
        square = cv2.resize(crop, (self.side, self.side), interpolation=cv2.INTER_NEAREST)
        whole[self.top:self.bottom, self.left:self.right] = square[
            top:top + self.bottom - self.top, left:left + self.right - self.left]
        return whole


def square_around(box: Box | None, height: int, width: int, scale: float, border_rule: str = "all sides") -> Square:
    """The square around a face.

    Integer halves and clipping before padding are those of Stand-In's authors, bit for bit.

    box: the face, left, top, right, bottom in pixels, which may reach out of the photo; None takes the whole photo.
    height, width: of the photo.
    scale: side of the square over the longer side of the box.
    border_rule: one of BORDER_RULES; it says when the face fills the photo, which is then taken whole.
    """
    if box is None or _fills(box, height, width, border_rule):
        return Square(0, 0, width, height)
    left, top, right, bottom = box
    centre_x, centre_y = (left + right) // 2, (top + bottom) // 2
    half = max(int(max(right - left, bottom - top) * scale) // 2, 1)
    # where the centre is outside, at least a pixel of the photo; the authors' code fails there
    left, top = min(max(centre_x - half, 0), width - 1), min(max(centre_y - half, 0), height - 1)
    return Square(left, top, max(min(centre_x + half, width), left + 1), max(min(centre_y + half, height), top + 1))


def _fills(box: Box, height: int, width: int, border_rule: str) -> bool:
    left, top, right, bottom = box
    return BORDER_RULES[border_rule]((left <= BORDER_PX, top <= BORDER_PX,
                                      right >= width - BORDER_PX, bottom >= height - BORDER_PX))


def levelling(centre: tuple[float, float], roll: float) -> np.ndarray:
    """[2, 3]: the rotation about the centre that levels a line which falls to the right by roll degrees."""
    return cv2.getRotationMatrix2D(centre, roll, 1.0)


@dataclass(frozen=True, slots=True)
class Place:
    """A square in a photo that was turned first.

    size: side of the crop in pixels.
    matrix: [2, 3], turns the photo within its frame; None leaves it as it is.
    """

    square: Square
    size: int
    matrix: np.ndarray | None = None

    def cut(self, photo: np.ndarray, fill) -> np.ndarray:
        """As ``Square.cut``."""
        if self.matrix is not None:
            photo = cv2.warpAffine(photo, self.matrix, photo.shape[1::-1], flags=cv2.INTER_LINEAR,
                                   borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
        return self.square.cut(photo, self.size, fill)

    def inside(self, height: int, width: int) -> np.ndarray:
        """[S, S] bool, which pixels of the crop show mostly the photo.

        height, width: of the photo.
        """
        return self.cut(np.full((height, width), 255, np.uint8), 0) > 127

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """As ``Square.to_crop``."""
        if self.matrix is not None:
            points = _mapped(self.matrix, points)
        return self.square.to_crop(points, self.size)

    def put_back(self, crop: np.ndarray, height: int, width: int) -> np.ndarray:
        """As ``Square.put_back``."""
        whole = self.square.put_back(crop, height, width)
        if self.matrix is not None:
            whole = cv2.warpAffine(whole, self.matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        return whole

    def corners(self) -> np.ndarray:
        """[4, 2]: x and y of the region's corners in the photo, one after the other around it."""
        corners = _corners(self.square.left, self.square.top, self.square.right, self.square.bottom)
        return corners if self.matrix is None else _mapped(cv2.invertAffineTransform(self.matrix), corners)


@dataclass(frozen=True, slots=True)
class Warp:
    """What an affine map brings of a photo to a crop; it has the methods of ``Place``.

    matrix: [2, 3], from pixels of the photo to pixels of the crop.
    height, width: of the crop in pixels.
    """

    matrix: np.ndarray
    height: int
    width: int

    def cut(self, photo: np.ndarray, fill) -> np.ndarray:
        return cv2.warpAffine(photo, self.matrix, (self.width, self.height), borderValue=fill)

    def inside(self, height: int, width: int) -> np.ndarray:
        """Which pixels show the photo at all: at its border they fade into the fill."""
        return self.cut(np.full((height, width), 255, np.uint8), 0) > 0

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        return _mapped(self.matrix, points)

    def put_back(self, crop: np.ndarray, height: int, width: int) -> np.ndarray:
        return cv2.warpAffine(crop, self.matrix, (width, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)

    def corners(self) -> np.ndarray:
        return _mapped(cv2.invertAffineTransform(self.matrix), _corners(0, 0, self.width, self.height))


@dataclass(frozen=True, slots=True)
class Enlarged:
    """A crop that Pillow enlarges, pictures bicubic and masks bilinear; it has the methods of ``Place``.

    crop: square, with sides of fewer pixels.
    size: side of the result in pixels.
    """

    crop: Warp
    size: int

    def cut(self, photo: np.ndarray, fill) -> np.ndarray:
        resampling = PIL.Image.Resampling  # bicubic would take a mask beyond 0 and 1
        crop = PIL.Image.fromarray(self.crop.cut(photo, fill))
        return np.asarray(crop.resize((self.size, self.size),
                                      resampling.BICUBIC if photo.dtype == np.uint8 else resampling.BILINEAR))

    def inside(self, height: int, width: int) -> np.ndarray:
        return self.cut(np.full((height, width), 255, np.uint8), 0) > 0

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        return (self.crop.to_crop(points) + 0.5) * (self.size / self.crop.width) - 0.5  # pixels have a centre

    def put_back(self, crop: np.ndarray, height: int, width: int) -> np.ndarray:
        smaller = cv2.resize(crop, (self.crop.width, self.crop.height), interpolation=cv2.INTER_NEAREST)
        return self.crop.put_back(smaller, height, width)

    def corners(self) -> np.ndarray:
        return self.crop.corners()


AnyPlace = Place | Warp | Enlarged


def whole_photo(height: int, width: int) -> Warp:
    """The photo as it is."""
    return Warp(np.eye(2, 3), height, width)


def alignment(points: np.ndarray, size: int = ALIGNED_PX) -> Warp:
    """The face as recognition networks take it, its points brought to ALIGNED_POINTS, in a crop of this side.

    The map is the rotation, scale and shift with the least squared error (Umeyama 1991). It is insightface's
    ``face_align.norm_crop`` to the last bit, which takes both sets of points in float32.

    points: [5, 2], x and y in pixels of the photo.

    Raises UserError where they lie in one place.
    """
    from skimage.transform import estimate_transform  # 0.5 s

    found = estimate_transform("similarity", points.astype(np.float32), ALIGNED_POINTS * (size / ALIGNED_PX))
    if not found or not np.isfinite(found.params).all():
        raise UserError("the five points of a face lie in one place, so the face cannot be aligned: connect better "
                        "face_landmarks, or choose another detector.")
    return Warp(found.params[:2], size, size)


def aligned(photo: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The crop of ``alignment``, [112, 112, 3], black where it leaves the photo.

    photo: [H, W, 3] uint8.
    """
    return alignment(points).cut(photo, 0)


def _corners(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def _mapped(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]
