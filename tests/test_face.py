"""The face stage: the authors' geometry bit for bit, a real photograph, and facexlib's networks where files are."""
import importlib.util
import json
from pathlib import Path

import cv2
import folder_paths
import numpy as np
import pytest
import skimage.data
import torch

from standin_core.contracts import StandInError
from standin_core.face import crop_face
from standin_core.face.detectors import Face, load_detector
from standin_core.face.geometry import square_crop
from standin_core.face.parsing import BACKGROUND

GOLDEN = Path(__file__).parent / "golden" / "face"
CASES = json.loads((GOLDEN / "reference_crop.json").read_text())


@pytest.fixture(autouse=True)
def models_dir(tmp_path, monkeypatch):
    """A models folder of our own, empty unless a test puts a file there."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "reference_crop.npz")


@pytest.fixture(scope="module")
def astronaut():
    return skimage.data.astronaut()


def largest(photo, detector="cascade"):
    return max(load_detector(detector).find(photo), key=lambda face: face.area).box


def as_image(*photos):
    return torch.from_numpy(np.stack(photos)).float() / 255


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_crop_is_the_authors(golden, case):
    name = case["name"]
    faces = [Face(tuple(box), 1.0) for box in case["boxes_xyxy"]]
    largest = max(faces, key=lambda face: face.area, default=None)
    crop, _ = square_crop(golden[f"{name}.image"], largest and largest.box, scale=1.5, size=512)
    assert np.array_equal(crop, golden[f"{name}.rgba"][..., :3])
    crop[golden[f"{name}.labels"] == BACKGROUND] = 255
    assert np.array_equal(crop, golden[f"{name}.white"])


def test_a_face_that_fills_the_photo_is_not_cropped():
    """The border rule of the authors' inference code: near all four borders, not any of them."""
    photo = np.arange(100 * 120 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 120, 3)
    whole, _ = square_crop(photo, None, 1.0, 64)
    assert np.array_equal(square_crop(photo, (9, 9, 111, 91), 1.0, 64)[0], whole)
    assert not np.array_equal(square_crop(photo, (10, 9, 111, 91), 1.0, 64)[0], whole)


def test_padding_is_outside_the_mask():
    crop, inside = square_crop(np.zeros((50, 100, 3), np.uint8), None, 1.5, 64, fill=128)
    assert (crop[~inside] == 128).all()
    assert (crop[inside] == 0).all()
    assert inside.sum() == 32 * 64


def test_cascade_finds_the_astronaut(astronaut):
    left, top, right, bottom = largest(astronaut)
    assert left < 205 < 245 < right  # her eyes, in the photo's pixels
    assert top < 108 < bottom


def test_cascade_finds_her_in_a_large_photo(astronaut):
    """Detected on a shrunk copy; the box is in the photo's own pixels."""
    large = cv2.resize(astronaut, None, fx=5, fy=5, interpolation=cv2.INTER_LINEAR)
    box, small = largest(large), largest(astronaut)
    assert max(abs(a - 5 * b) for a, b in zip(box, small)) < 5 * 12


def test_crop_of_a_photograph(astronaut):
    crop = crop_face(as_image(astronaut))
    assert crop.image.shape == (1, 512, 512, 3) and crop.image.dtype == torch.float32
    assert crop.mask.shape == (1, 512, 512) and bool((crop.mask == 1).all())
    assert "by cascade" in crop.verdict
    assert "retinaface not used: no detection_Resnet50_Final.pth" in crop.verdict
    assert "background kept: no parsing_bisenet.pth" in crop.verdict


def test_a_batch_and_alpha(astronaut):
    photos = as_image(astronaut, astronaut[:, ::-1])
    crop = crop_face(torch.cat((photos, torch.ones(*photos.shape[:3], 1)), dim=-1), size=128)
    assert crop.image.shape == (2, 128, 128, 3)
    assert torch.equal(crop.image[:1], crop_face(as_image(astronaut), size=128).image)


@pytest.mark.parametrize("detector", ["cascade", "none"])
@pytest.mark.parametrize("background, value", [("white", 255), ("grey", 128), ("black", 0)])
def test_without_a_face_the_whole_image_is_padded(astronaut, detector, background, value):
    brick = np.broadcast_to(skimage.data.brick()[:100, :200, None], (100, 200, 3))
    crop = crop_face(as_image(brick), detector, size=64, background=background)
    assert "the whole image, padded to a square" in crop.verdict
    assert torch.all(crop.image[0, :16] == value / 255)
    assert crop.mask[0, :16].sum() == 0 and crop.mask[0, 16:48].min() == 1


def test_empty_image():
    with pytest.raises(StandInError, match="the image is empty"):
        crop_face(torch.zeros(0, 8, 8, 3))


def test_retinaface_by_name_needs_its_file(astronaut):
    with pytest.raises(StandInError, match=r"retinaface cannot run: no detection_Resnet50_Final\.pth"):
        crop_face(as_image(astronaut), "retinaface")


def not_installed(monkeypatch, *names):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find_spec(name))


def test_auto_goes_on_without_optional_packages(astronaut, monkeypatch):
    """A broken install costs the detector, not the node."""
    not_installed(monkeypatch, "facexlib", "skimage")
    crop = crop_face(as_image(astronaut), size=64)
    assert "no detector: the whole image" in crop.verdict
    assert "retinaface not used: facexlib is not installed" in crop.verdict
    assert "cascade not used: scikit-image is not installed" in crop.verdict
    with pytest.raises(StandInError, match="cascade cannot run: scikit-image is not installed"):
        crop_face(as_image(astronaut), "cascade")


@pytest.fixture(scope="module")
def retinaface_weights():
    """RetinaFace with random weights, but for a head that is sure of a face everywhere; with the file's "module."."""
    from facexlib.detection.retinaface import RetinaFace

    torch.manual_seed(0)
    network = RetinaFace(network_name="resnet50", device=torch.device("cpu"))
    for head in network.ClassHead:
        torch.nn.init.zeros_(head.conv1x1.weight)
        head.conv1x1.bias.data.copy_(torch.tensor([-5.0, 5.0]).repeat(head.num_anchors))
    return {f"module.{key}": value for key, value in network.state_dict().items()}


def test_retinaface_is_taken_where_its_file_is(astronaut, models_dir, retinaface_weights):
    (models_dir / "facexlib").mkdir()
    torch.save(retinaface_weights, models_dir / "facexlib" / "detection_Resnet50_Final.pth")
    small = cv2.resize(astronaut, (96, 96), interpolation=cv2.INTER_AREA)
    detector = load_detector("auto")
    assert (detector.name, detector.notes) == ("retinaface", ())
    faces = detector.find(small)
    assert faces and all(face.score > 0.99 for face in faces)


@pytest.mark.parametrize("folder", ["facexlib", "face_parsing"])
def test_bisenet_removes_the_background(astronaut, models_dir, folder):
    """A real BiSeNet with random weights: its labels mean nothing, but both sides of them must be treated right."""
    from facexlib.parsing.bisenet import BiSeNet

    torch.manual_seed(0)
    (models_dir / folder).mkdir()
    torch.save(BiSeNet(num_class=19).state_dict(), models_dir / folder / "parsing_bisenet.pth")
    crop = crop_face(as_image(astronaut), size=256, background="grey")
    assert "background removed by BiSeNet" in crop.verdict
    outside = crop.mask[0] == 0
    assert 0 < outside.float().mean() < 1
    assert torch.all(crop.image[0][outside] == 128 / 255)
    kept, _ = square_crop(astronaut, largest(astronaut), 1.5, 256)
    assert torch.equal(crop.image[0][~outside], as_image(kept)[0][~outside])
