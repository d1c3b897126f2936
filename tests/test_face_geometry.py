"""Where a face is cropped: the authors' results bit for bit, their two border rules, and any box in any photo."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st

import faces
from examples import examples
from standin_core.face.detectors import Face, choose
from standin_core.face.geometry import ALIGNED_POINTS, BORDER_RULES, Place, Square, aligned, levelling, square_around
from standin_core.face.models import SFACE

GOLDEN = Path(__file__).parent / "golden" / "face"
CASES = json.loads((GOLDEN / "reference_crop.json").read_text())
BACKGROUND = 0


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "reference_crop.npz")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_crop_is_the_authors(golden, case):
    name = case["name"]
    faces = choose([Face(tuple(box)) for box in case["boxes_xyxy"]], "largest", 0)
    photo = golden[f"{name}.image"]
    square = square_around(faces[0].box if faces else None, *photo.shape[:2], 1.5)
    crop = square.cut(photo, 512, (255, 255, 255))
    assert np.array_equal(crop, golden[f"{name}.rgba"][..., :3])
    crop[golden[f"{name}.labels"] == BACKGROUND] = 255
    assert np.array_equal(crop, golden[f"{name}.white"])


WHOLE = Square(0, 0, 120, 100)


@pytest.mark.parametrize("box, inference, preprocessor", [
    ((10, 10, 110, 90), True, True),   # near all four borders: 10 pixels from them
    ((11, 10, 110, 90), False, True),  # near all but the left one
    ((10, 40, 60, 80), False, True),   # near the left one alone
    ((40, 40, 110, 80), False, True),  # near the right one alone
    ((11, 11, 109, 89), False, False)])
def test_the_border_rules_of_the_two_published_preprocessors(box, inference, preprocessor):
    """Near all borders in the authors' inference code, near any in their ComfyUI nodes: then the photo stays whole."""
    assert (square_around(box, 100, 120, 1.0, "all sides") == WHOLE) is inference
    assert (square_around(box, 100, 120, 1.0, "any side") == WHOLE) is preprocessor


def test_padding_is_centred_and_filled():
    photo = np.zeros((50, 100, 3), np.uint8)
    crop = square_around(None, 50, 100, 1.5).cut(photo, 64, (10, 20, 30))
    assert (crop[16:48] == 0).all()
    assert (crop[:16] == (10, 20, 30)).all() and (crop[48:] == (10, 20, 30)).all()


sides = st.integers(1, 400)


@st.composite
def photos_with_boxes(draw):
    """Any photo and any box whose centre lies in it, which may reach out on all sides."""
    height, width = draw(sides), draw(sides)
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    w, h = draw(st.integers(0, 500)), draw(st.integers(0, 500))
    return height, width, (x - w, y - h, x + w + 1, y + h + 1)


@given(photo=photos_with_boxes(), scale=st.floats(0.05, 8), size=st.integers(1, 200),
       rule=st.sampled_from(list(BORDER_RULES)))
@examples("squares around faces", 100, 2000)
def test_the_crop_is_always_square_and_of_the_size(photo, scale, size, rule):
    height, width, box = photo
    square = square_around(box, height, width, scale, rule)
    assert 0 <= square.left < square.right <= width and 0 <= square.top < square.bottom <= height
    pixels = np.full((height, width, 3), 100, np.uint8)
    crop = square.cut(pixels, size, (200, 200, 200))
    assert crop.shape == (size, size, 3)
    assert crop.min() >= 100 and crop.max() <= 200
    back = square.put_back(np.ones((size, size), np.uint8), height, width)
    assert back.shape == (height, width)
    assert back.sum() == (square.right - square.left) * (square.bottom - square.top)


@given(photo=photos_with_boxes(), scale=st.floats(0.5, 4), size=st.integers(16, 128),
       roll=st.one_of(st.none(), st.floats(-90, 90)))
@examples("points of a crop", 50, 1000)
def test_points_go_where_the_pixels_go(photo, scale, size, roll):
    """A ramp in x and y, cropped, reads at a mapped point what it read in the photo at the point itself."""
    height, width, box = photo
    square = square_around(box, height, width, scale)
    if min(square.right - square.left, square.bottom - square.top) < 3 * max(square.side / size, 1):
        return  # too thin: the pixel there mixes with the padding
    middle = (square.left + square.right - 1) / 2, (square.top + square.bottom - 1) / 2
    place = Place(square, size, None if roll is None else levelling(middle, roll))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    (point,) = place.to_crop(np.array([middle]))
    x, y = np.clip(point, 0, size - 1).astype(np.float32)
    for ramp, expected in ((columns, middle[0]), (rows, middle[1])):
        crop = place.cut(ramp, 0)
        found = cv2.remap(crop, np.array([[x]]), np.array([[y]]), cv2.INTER_LINEAR)[0, 0]
        # half a pixel of the crop, in pixels of the photo, at each of two resamplings, and half a pixel of the photo at
        # the first where it enlarges, since INTER_AREA then takes the nearest; and cv2.warpAffine, which levels the
        # photo, knows places between pixels only in steps of 1/32
        half = 0.5 * square.side / size
        assert abs(found - expected) <= max(half, 0.5) + half + (0 if roll is None else 1 / 64)


@pytest.mark.parametrize("points", [faces.KEYPOINTS, faces.turned(faces.astronaut(), 40)[1],
                                    faces.KEYPOINTS + np.array([[9, -4], [0, 7], [-12, 5], [3, 3], [8, -6]])])
def test_a_face_is_aligned_as_by_opencv(points):
    """OpenCV's SFace does the same with code of its own; its mean of the points is rounded to the fourth digit."""
    photo = skimage.data.astronaut()
    recognizer = cv2.FaceRecognizerSF.create("onnx", np.fromfile(faces.MADE[SFACE], np.uint8), np.empty(0, np.uint8))
    row = np.concatenate((np.zeros(4), points.ravel(), np.ones(1))).astype(np.float32)[None]
    found, expected = aligned(photo, points), recognizer.alignCrop(photo, row)
    assert found.shape == (112, 112, 3)
    assert np.abs(found.astype(int) - expected.astype(int)).mean() < 0.002  # 1.6 for points 0.2 px aside


def test_the_points_of_an_aligned_face():
    """White dots at the key points of a small black photo come to lie where recognition networks expect them."""
    matrix = cv2.getRotationMatrix2D((56, 56), 30, 2.0)
    matrix[:, 2] += (90, 60)
    points = ALIGNED_POINTS @ matrix[:, :2].T + matrix[:, 2]
    for point, expected in zip(points, ALIGNED_POINTS):
        photo = np.zeros((300, 300, 3), np.uint8)
        cv2.circle(photo, tuple(np.rint(point * 16).astype(int)), 6 * 16, (255, 255, 255), -1, cv2.LINE_AA, shift=4)
        weight = aligned(photo, points)[..., 0].astype(float)
        ys, xs = np.indices(weight.shape)
        assert np.allclose(((xs * weight).sum() / weight.sum(), (ys * weight).sum() / weight.sum()), expected, atol=0.1)
