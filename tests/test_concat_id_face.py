"""Concat-ID's reference picture against the authors', given what their networks find (tests/golden/face)."""
import cv2
import numpy as np
import pytest
import torch

import faces
from golden_cases import GOLDEN
from standin_core.errors import UserError
from standin_core.face import KEPT_LABELS, PRESETS, FaceSettings, crop_faces
from standin_core.face.geometry import alignment
from standin_core.reference import fitted

CASES = np.load(GOLDEN / "face" / "concat_id_reference.npz")
NAMES = sorted({key.partition(".")[0] for key in CASES})
# jonathandinu/face-parsing's number -> facexlib's BiSeNet's: background, skin, nose, glasses, eyes, brows, ears, mouth,
# lips, hair, hat, earring, necklace, neck, cloth
TO_BISENET = np.array([0, 1, 10, 6, 4, 5, 2, 3, 7, 8, 11, 12, 13, 17, 18, 9, 15, 14, 16], np.uint8)


def golden(name, what):
    return CASES[f"{name}.{what}"]


@pytest.fixture
def parsed(monkeypatch):
    """Sets what the parser finds in the crop, in BiSeNet's numbers."""
    def parse_as(labels):
        monkeypatch.setattr("standin_core.face.preprocess.file_refusal", lambda file: None)
        monkeypatch.setattr("standin_core.face.preprocess.load_parser", lambda normalization: lambda crop: labels)
    return parse_as


def landmarks(name):
    """The golden boxes and key points, as ComfyUI's MediaPipe node would give them."""
    found = []
    for box, points in zip(golden(name, "boxes"), golden(name, "key_points")):
        (face,), = faces.landmarks([(points.astype(np.float64), 1.0)])["frames"]
        found.append({**face, "bbox_xyxy": box})
    return {"frames": [found], "image_size": golden(name, "image").shape[:2]}


def preprocess(name, **settings):
    return crop_faces(faces.as_image(golden(name, "image")), FaceSettings(preset="Concat-ID", **settings),
                      face_landmarks=landmarks(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_of_the_authors(name, parsed):
    """Bit for bit; OpenCV before 5, which the authors pin, interpolates by up to 7 levels otherwise."""
    parsed(TO_BISENET[golden(name, "labels")])
    found = preprocess(name, no_face="whole image")
    crop = faces.as_uint8(found.rgba[0, ..., :3])
    if int(cv2.__version__.partition(".")[0]) >= 5:
        assert np.array_equal(crop, golden(name, "crop"))
        assert np.array_equal(faces.as_uint8(found.image[0]), golden(name, "masked"))
    else:
        assert crop.shape == golden(name, "crop").shape
        difference = np.abs(crop.astype(int) - golden(name, "crop"))
        assert difference.max() <= 7 and (difference > 0).mean() < 0.05
    assert "face, hair and neck kept by bisenet" in found.verdict
    assert ("the whole image" if name == "no_face_wide" else "aligned by its five points") in found.verdict


@pytest.mark.parametrize("name", [name for name in NAMES if f"{name}.matrix" in CASES])
def test_alignment(name):
    largest = np.argmax([(right - left) * (bottom - top) for left, top, right, bottom in golden(name, "boxes")])
    warp = alignment(golden(name, "key_points")[largest].astype(np.float64), 448)
    assert np.abs(warp.matrix - golden(name, "matrix")).max() < 1e-4  # pixels
    corners = warp.to_crop(warp.corners())
    assert np.abs(corners - [[0, 0], [448, 0], [448, 448], [0, 448]]).max() < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_the_fit_into_the_video(name):
    found = fitted(torch.from_numpy(golden(name, "masked")).float() / 255, *golden(name, "target").tolist())
    assert np.array_equal(faces.as_uint8(found), golden(name, "fitted"))


def test_a_line_is_fitted():
    """Cut to whole pixels it would have none."""
    found = fitted(torch.ones(96, 1, 3), 64, 96)
    bright = found.mean(dim=(0, 2))
    assert bright[47] > 0.99 and bright.sum() == bright[47]


def test_the_side_of_a_fitted_picture_is_cut_to_whole_pixels():
    """63.6 are 63, as in its authors' code; no golden picture tells this from rounding."""
    found = fitted(torch.ones(100, 151, 3), 64, 96)
    assert (found[:63] > 0.99).all() and not found[63].any()


@pytest.mark.parametrize("share, masked", [(0.39, False), (0.41, True)])
def test_a_crop_of_which_too_little_would_be_left_stays_as_it_is(parsed, share, masked):
    labels = np.zeros((448, 448), np.uint8)
    labels[:, :round(448 * share)] = 1
    parsed(labels)
    found = preprocess("two_faces")
    whole = torch.from_numpy(golden("two_faces", "crop")).float() / 255
    assert torch.equal(found.image[0, :, 200:], torch.zeros_like(whole[:, 200:]) if masked else whole[:, 200:])
    assert (found.verdict.find("background kept, since") == -1) == masked
    if not masked:
        assert "would leave 39% of the crop" in found.verdict


def test_labels_that_go():
    """Background, hat, earring, necklace and cloth; the neck stays, whatever the comment in the authors' code says."""
    gone = set(TO_BISENET[[0, 14, 15, 16, 18]].tolist())
    assert set(KEPT_LABELS[PRESETS["Concat-ID"].keep]) == set(range(19)) - gone
    assert gone == {0, 18, 9, 15, 16}


def test_without_the_parser_the_background_stays_and_the_verdict_says_so(models_dir):
    found = preprocess("two_faces")
    assert np.array_equal(faces.as_uint8(found.image[0]), faces.as_uint8(found.rgba[0, ..., :3]))
    assert "background kept" in found.verdict and "bisenet not used" in found.verdict


def test_points_that_no_detector_measured_are_said():
    found = crop_faces(faces.as_image(faces.astronaut()), FaceSettings(preset="Concat-ID", parser="none"),
                       face_box={"x": 182, "y": 77, "width": 89, "height": 102})
    assert found.image.shape == (1, 448, 448, 3)
    assert "aligned by points guessed from its box" in found.verdict


@pytest.mark.parametrize("preset, size", [("Concat-ID", 448), ("ID-Animator", 224), ("face only", 96)])
def test_an_alignment_has_its_own_size_and_the_verdict_says_it(preset, size):
    found = crop_faces(faces.as_image(faces.astronaut()), FaceSettings(preset=preset, size=96, parser="none"),
                       face_box={"x": 182, "y": 77, "width": 89, "height": 102})
    assert found.image.shape == (1, size, size, 3)
    assert found.verdict.splitlines()[0].endswith(f", {size}x{size} px")


def test_several_photos_of_which_one_has_no_face():
    """They make a batch, so that one is padded to a square."""
    photo = golden("two_faces", "image")
    given = landmarks("two_faces")
    found = crop_faces(faces.as_image(photo, photo),
                       FaceSettings(preset="Concat-ID", parser="none", no_face="whole image"),
                       face_landmarks={**given, "frames": [*given["frames"], []]})
    assert found.image.shape == (2, 448, 448, 3)
    assert "the whole image, padded to a square" in found.verdict


@pytest.mark.parametrize("setting", [{"crop_scale": 2.0}, {"border_rule": "any side"}, {"level_eyes": True}])
def test_what_an_alignment_leaves_no_room_for_is_refused(setting):
    with pytest.raises(UserError, match="brings the key points of the face to fixed places"):
        preprocess("two_faces", **setting)


def test_points_in_one_place_are_refused():
    with pytest.raises(UserError, match="the five points of a face lie in one place"):
        alignment(np.full((5, 2), 7.0))
