"""The measures of likeness, against arithmetic written out, and the way from frames to figures."""
import json
import math
import sys
import types
from dataclasses import replace

import cv2
import numpy as np
import pytest
import skimage.data
import torch

import faces
from standin_core.errors import UserError
from standin_core.evaluation import CompareSettings, compare, contact_sheet, embedders, load_embedder, plot
from standin_core.evaluation.chart import Series, line_chart
from standin_core.evaluation.measures import copied_pixels, copy_paste, cosine, summarize
from standin_core.face import ARCFACE, SFACE, YUNET, Detector, Face

NAN = math.nan


def test_cosine_by_hand():
    found = cosine(np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, -1.0]]))
    assert np.allclose(found, [[0.6, -0.8], [0.0, -1.0]], atol=1e-15)


def test_summary_by_hand():
    found = summarize(np.array([0.2, NAN, 0.4, 0.5, 0.6]))  # 0.2 + 0.1 a frame
    assert found.mean == pytest.approx(0.425)
    assert found.minimum == 0.2
    assert found.p05 == pytest.approx(0.2 + 0.15 * 0.2)  # 5 % of the way over three gaps
    assert found.drift == pytest.approx(4 * 0.1)
    assert found.coverage == 0.8


def test_summary_of_no_face_and_of_one():
    nothing = summarize(np.array([NAN, NAN]))
    assert nothing.coverage == 0 and math.isnan(nothing.mean) and math.isnan(nothing.drift)
    assert summarize(np.array([NAN, 0.3])).drift == 0


def test_copy_paste_by_angles():
    """Photos r and t lie 60 degrees apart; a frame at r is a copy, at t it is none, in the middle neither."""
    def at(degrees):
        return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])

    r, t = at(0), at(60)
    frames = np.stack([at(0), at(30), at(60), at(45)])
    found = copy_paste(cosine(frames, t[None]), cosine(frames, r[None])[:, 0], cosine(t[None], r[None])[:, 0])
    assert np.allclose(found, [1, 0, -1, -0.5], atol=1e-7)


def smooth_noise(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), np.uint8)
    return cv2.resize(coarse, (128, 128), interpolation=cv2.INTER_CUBIC)


def test_copied_pixels():
    photo, other = smooth_noise(0), smooth_noise(1)
    darker = (photo // 2 + 20).astype(np.uint8)
    shifted = np.roll(photo, (3, -5), (0, 1))
    nearer = cv2.resize(photo[10:118, 10:118], (128, 128))
    assert copied_pixels(photo, photo) == pytest.approx(1, abs=1e-6)
    assert min(copied_pixels(each, photo) for each in (darker, shifted, nearer)) > 0.97
    assert max(copied_pixels(each, photo) for each in (255 - photo, other)) < 0.6
    plain = np.full_like(photo, 90)
    assert copied_pixels(plain, photo) == copied_pixels(photo, plain) == copied_pixels(plain, plain) == 0


class ClipVision:
    """In the place of a loaded CLIP vision model: the mean colour of the picture, as a vector."""

    def encode_image(self, image):
        assert image.shape == (1, embedders.CROP_PX, embedders.CROP_PX, 3) and image.min() >= 0 and image.max() <= 1
        return {"image_embeds": image.mean(dim=(1, 2)) + 0.01}


PHOTO = torch.from_numpy(skimage.data.astronaut()[:256, 96:352]).float()[None] / 255


def video():
    """The photo, the photo with another colour, and two pictures of nobody."""
    tinted = PHOTO * torch.tensor([0.5, 1.0, 0.5])
    return torch.cat((PHOTO, tinted, torch.zeros_like(PHOTO), torch.ones_like(PHOTO)))


def test_faces_in_a_video():
    result = compare(video(), PHOTO, CompareSettings("clip vision"), ClipVision())
    assert result.embedder == "CLIP vision on faces found by cascade"
    assert result.similarity[0] == pytest.approx(1, abs=1e-6) and result.copied[0] == pytest.approx(1, abs=1e-5)
    assert 0.9 < result.similarity[1] < 0.9998
    assert np.isnan(result.similarity[2:]).all() and result.copy_paste is None
    assert result.summaries["similarity"].coverage == 0.5
    text = result.as_text()
    assert "seen in 2 of 4 frames (50 %)" in text and "in frame 2" in text
    record = json.loads(result.as_json())
    assert record["frames"]["similarity"][2] is None and record["summary"]["similarity"]["coverage"] == 0.5


def test_whole_frames_and_other_photos():
    """With photos beside the given one come the nearest of them and the copy-paste measure."""
    given, other = torch.tensor([1.0, 0.2, 0.2]), torch.tensor([0.2, 1.0, 0.2])
    photos = torch.stack([colour.expand(32, 32, 3) for colour in (given, other)])
    frames = torch.stack([colour.expand(16, 32, 3) for colour in (given, other, (given + other) / 2)])
    result = compare(frames, photos, CompareSettings("auto", "whole frame"), ClipVision())
    assert result.copy_paste[0] > 0.3 > -0.3 > result.copy_paste[1] and abs(result.copy_paste[2]) < 0.01
    assert np.allclose(result.nearest, np.maximum(result.similarity, result.nearest))
    assert "copy-paste" in result.as_text()


def test_progress_is_told():
    told = []
    compare(video(), PHOTO, CompareSettings("clip vision", "whole frame"), ClipVision(), lambda: told.append(1))
    assert len(told) == 4


def test_a_video_without_any_face():
    result = compare(torch.zeros(3, 64, 64, 3), PHOTO, CompareSettings("clip vision"), ClipVision())
    assert "no face in any frame" in result.as_text()
    assert json.loads(result.as_json())["summary"]["similarity"] == {
        "mean": None, "p05": None, "minimum": None, "drift": None, "coverage": 0.0}
    assert plot(result).shape == (1, 360, 960, 3) and contact_sheet(result).ndim == 4


@pytest.mark.parametrize("settings, clip, photos, words", [
    (CompareSettings("clip vision"), None, PHOTO, "embedder is clip vision, and no CLIP vision is connected"),
    (CompareSettings("auto", "whole frame"), None, PHOTO, "region is whole frame, and no CLIP vision is connected"),
    (CompareSettings("auto"), None, PHOTO, "insightface cannot run: no detector; arcface cannot run: there is no "
                                           "recognition_.*; sface cannot run: .*, and no CLIP vision is connected"),
    (CompareSettings("insightface"), ClipVision(), PHOTO, "insightface cannot run"),
    (CompareSettings("insightface", "whole frame"), ClipVision(), PHOTO, "region is whole frame"),
    (CompareSettings("clip vision"), ClipVision(), torch.zeros(1, 64, 64, 3), "no face was found in photo 1 of 1"),
    (CompareSettings("clip vision"), ClipVision(), PHOTO[:0], "none of them 0"),
])
def test_what_cannot_be_compared(settings, clip, photos, words, monkeypatch, models_dir):
    monkeypatch.setattr(embedders, "detector_refusal", lambda name: "no detector")
    with pytest.raises(UserError, match=words):
        compare(video(), photos, settings, clip)


def rows_of(picture, colour):
    """[H, W] bool, where a picture has a colour."""
    return np.abs(np.asarray(picture, int) - colour).max(axis=-1) <= 2


def test_a_chart_is_to_scale():
    """Three level lines between the ends of the axis, and the columns of a value, of a gap and of a lone value."""
    colours = {"#1f60b4": (31, 96, 180), "#d66e14": (214, 110, 20), "#208030": (32, 128, 48)}
    levels = (1.0, -0.6, 0.2)
    values = np.array([1, 1, 1, 1, NAN, NAN, 1, NAN, NAN, NAN, 1])
    drawn = line_chart([Series("words", colour, level * values) for colour, level in zip(colours, levels)], "frame",
                       lowest=-0.6, highest=1.0)
    assert drawn.size == (960, 360)
    rows, columns = [], []
    for colour in colours.values():
        found = rows_of(drawn, colour)
        found[:50] &= np.arange(960) > 400  # the legend is above, on the left
        ys, xs = found.nonzero()
        rows.append(ys.mean())
        columns.append(np.unique(xs))
    top, bottom, between = rows
    assert top < between < bottom and bottom - top > 200
    assert between == pytest.approx(top + (bottom - top) * 0.5, abs=1)
    for xs in columns[1:]:  # the legend hides nothing of these
        first, last = xs.min() + 3, xs.max() - 3  # middles of the dots at 1 and 11, which are 6 px wide
        at = lambda index: first + (last - first) * (index - 1) / 10  # noqa: B023, E731
        runs = np.split(xs, np.flatnonzero(np.diff(xs) > 1) + 1)
        assert [(run[0] + run[-1]) / 2 for run in runs] == pytest.approx([at(2.5), at(7), at(11)], abs=2)


def test_a_chart_of_no_value():
    """And one whose axis fits the values."""
    assert line_chart([Series("loss", "#1f60b4", np.full(3, NAN), dots=False)], "step").size == (960, 360)
    high, low = (rows_of(line_chart([Series("loss", "#1f60b4", np.array([0.0, highest]), dots=False)], "step"),
                         (31, 96, 180))[60:].any(axis=1).argmax() for highest in (7.0, 700.0))
    assert abs(high - low) <= 3


def test_pictures():
    """The blue line lies at the top where a frame is the photo; the sheet has the photo first."""
    result = compare(torch.cat((PHOTO, PHOTO)), PHOTO, CompareSettings("clip vision"), ClipVision())
    drawn = plot(result)[0].numpy() * 255
    expected = line_chart([Series("similarity to the photo", "#1f60b4", np.ones(2)),
                           Series("copied pixels (1 is the photo itself)", "#d66e14", np.ones(2))], "frame",
                          highest=1.0)
    assert np.abs(drawn - np.asarray(expected)).max() < 0.01
    sheet = contact_sheet(result)[0]
    assert sheet.shape == (2 * 202, 3 * 176, 3)
    assert float((sheet[3:173, 3:173] - sheet[3:173, 179:349]).abs().mean()) < 0.02


# the key points of the made YuNet's face around a marker at (160, 120)
POINTS = 164 + 8 * faces.MARKER_POINTS - (0, 40)


def person(seed):
    """A dark photo with a pattern, and in it what the made YuNet takes for a face."""
    photo = faces.marked(320, 240, ("red", 160, 120, 8))
    return np.maximum(photo, np.random.default_rng(seed).integers(0, 50, photo.shape, np.uint8))


def as_opencv_aligns(photo, points):
    recognizer = cv2.FaceRecognizerSF.create("onnx", np.fromfile(faces.MADE[SFACE], np.uint8), np.empty(0, np.uint8))
    row = np.concatenate((np.zeros(4), points.ravel(), np.ones(1))).astype(np.float32)[None]
    return recognizer.alignCrop(photo, row)


def test_insightface_sees_aligned_faces_in_blue_green_red(monkeypatch, tmp_path):
    """With the package's interface and no network: what is aligned by key points goes to it, as OpenCV has colours."""
    class Network:
        def prepare(self, ctx_id):
            assert ctx_id == -1

        def get_feat(self, picture):
            return picture.reshape(1, -1)

    package, zoo = types.ModuleType("insightface"), types.ModuleType("insightface.model_zoo")
    zoo.get_model = lambda path, providers: Network()
    for module in (package, zoo):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(embedders, "find_insightface", lambda patterns: tmp_path / "w600k_r50.onnx")
    monkeypatch.setattr(embedders, "load_detector", lambda name, min_score: Detector(
        name, lambda picture, index: [Face((144, 100, 184, 148), 0.9, POINTS)], has_keypoints=True))
    embedder = embedders.face_embedder("insightface", 0.5)
    seen = embedder.see(person(0), 0)
    expected = as_opencv_aligns(person(0), POINTS)
    assert embedder.name == "insightface w600k_r50"
    assert np.abs(seen.crop.astype(int) - expected.astype(int)).max() <= 1
    assert np.array_equal(seen.vector, seen.crop[..., ::-1].ravel())


def test_sface(models_dir):
    """OpenCV's own classes with made networks: the vector is that of the aligned face, as red, green, blue."""
    faces.put(models_dir, YUNET, SFACE)
    embedder = load_embedder(CompareSettings("sface"), None)
    assert embedder.name == "SFace on faces found by yunet"
    for seed in (0, 1):
        expected = as_opencv_aligns(person(seed), POINTS)
        squares = expected.reshape(4, 28, 4, 28, 3).mean(axis=(1, 3))
        vector = (squares @ np.cos(np.arange(24)).reshape(8, 3).T).transpose(2, 0, 1).ravel()
        seen = embedder.see(person(seed), 0)
        assert np.abs(seen.crop.astype(int) - expected.astype(int)).max() <= 1
        assert np.allclose(seen.vector, vector, atol=0.02)
    assert embedder.see(np.zeros((64, 64, 3), np.uint8), 0) is None


def test_a_comparison_by_sface(models_dir):
    """From frames to the record; a vector that was returned is not overwritten by the next face."""
    faces.put(models_dir, YUNET, SFACE)
    frames = faces.as_image(person(0), person(1), np.zeros_like(person(0)))
    result = compare(frames, faces.as_image(person(0)), CompareSettings("sface"))
    assert result.similarity[0] == pytest.approx(1, abs=1e-6) and result.similarity[1] < 0.9998
    assert math.isnan(result.similarity[2]) and "compared by SFace on faces found by yunet" in result.as_text()
    assert result.copied[0] == pytest.approx(1, abs=1e-5) and result.copied[1] < 0.99


def put_arcface(models_dir):
    (models_dir / "facexlib").mkdir(exist_ok=True)
    torch.save(faces.arcface_weights(), models_dir / "facexlib" / ARCFACE.name)


def test_arcface(models_dir):
    """facexlib's network itself, given the aligned face in -1..1 as blue, green, red."""
    from facexlib.recognition.arcface_arch import Backbone

    put_arcface(models_dir)
    faces.put(models_dir, YUNET)
    embedder = load_embedder(CompareSettings("arcface"), None)
    assert embedder.name == "facexlib's ArcFace on faces found by yunet"
    seen = embedder.see(person(0), 0)
    network = Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
    network.load_state_dict(faces.arcface_weights())
    blue_green_red = np.ascontiguousarray(seen.crop[..., ::-1].transpose(2, 0, 1))[None]
    expected = network.eval()(2 * (torch.from_numpy(blue_green_red) / 255) - 1)[0]
    assert np.allclose(seen.vector, expected.numpy(), atol=1e-6) and seen.vector.shape == (512,)


def test_auto_prefers_faces(models_dir):
    """A face embedder whose file is there comes before CLIP vision, ArcFace before SFace."""
    auto = CompareSettings("auto")
    assert load_embedder(auto, ClipVision()).name == "CLIP vision on faces found by cascade"
    faces.put(models_dir, SFACE)
    assert load_embedder(auto, ClipVision()).name == "CLIP vision on faces found by cascade"
    faces.put(models_dir, YUNET)
    assert load_embedder(auto, ClipVision()).name == "SFace on faces found by yunet"
    put_arcface(models_dir)
    assert load_embedder(auto, ClipVision()).name == "facexlib's ArcFace on faces found by yunet"
    whole = CompareSettings("auto", "whole frame")
    assert load_embedder(whole, ClipVision()).name == "CLIP vision on the whole frame"


def test_a_recognition_network_needs_key_points(models_dir):
    faces.put(models_dir, SFACE)
    with pytest.raises(UserError, match=r"sface cannot run: it needs a detector with key points, and none can "
                                           r"run here; the smallest is face_detection_yunet_2023mar\.onnx \(0\.2 MB"):
        load_embedder(CompareSettings("sface"), ClipVision())


def test_embedders_are_downloaded_where_asked(models_dir, monkeypatch):
    """The one that was named; for auto ArcFace, unless CLIP vision is connected; and a detector with key points."""
    for name in ("ARCFACE", "SFACE", "YUNET"):
        monkeypatch.setattr(embedders, name, replace(getattr(embedders, name), url=f"http://127.0.0.1:9/{name}"))

    def asked(name, clip_vision=None):
        with pytest.raises(UserError) as error:
            load_embedder(CompareSettings(name), clip_vision, download_missing=True)
        return str(error.value).partition(" could not be downloaded")[0]

    assert (asked("arcface"), asked("auto"), asked("sface")) == (ARCFACE.name, ARCFACE.name, SFACE.name)
    assert load_embedder(CompareSettings("auto"), ClipVision(), download_missing=True).name.startswith("CLIP vision")
    with pytest.raises(UserError, match="sface cannot run: there is no face_recognition_sface"):
        load_embedder(CompareSettings("sface"), None)
    faces.put(models_dir, SFACE)
    assert asked("sface") == YUNET.name


def test_every_figure_is_in_the_record():
    """Other photos bring the copy-paste measure, CLIP vision the distance of whole pictures."""
    photos = torch.cat((PHOTO, PHOTO * torch.tensor([0.6, 1.0, 1.0])))
    result = compare(video(), photos, CompareSettings("clip vision"), ClipVision())
    record = json.loads(result.as_json())
    assert record["frames"].keys() == record["summary"].keys() == {
        "similarity", "copied_pixels", "clip_distance", "nearest", "copy_paste"}
    assert record["frames"]["clip_distance"][0] == pytest.approx(0, abs=1e-6)
    assert record["summary"]["clip_distance"]["coverage"] == 1 and "CLIP distance of whole pictures" in result.as_text()


def test_grey_pictures():
    grey = PHOTO.mean(dim=-1, keepdim=True)
    result = compare(grey, grey, CompareSettings("clip vision"), ClipVision())
    assert result.similarity[0] == pytest.approx(1, abs=1e-6) and result.copied[0] == pytest.approx(1, abs=1e-5)
