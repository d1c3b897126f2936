"""The measures of likeness, against arithmetic written out, and the way from frames to figures."""
import json
import math
import sys
import types

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from standin_core.contracts import StandInError
from standin_core.evaluation import CompareSettings, compare, contact_sheet, embedders, plot
from standin_core.evaluation.measures import copied_pixels, copy_paste, cosine, summarize
from standin_core.face import Detector, Face

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
    assert 0.9 < result.similarity[1] < 0.999
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
    (CompareSettings("auto"), None, PHOTO, "no CLIP vision is connected"),
    (CompareSettings("insightface"), ClipVision(), PHOTO, "insightface cannot run"),
    (CompareSettings("insightface", "whole frame"), ClipVision(), PHOTO, "region is whole frame"),
    (CompareSettings("clip vision"), ClipVision(), torch.zeros(1, 64, 64, 3), "no face was found in photo 1 of 1"),
    (CompareSettings("clip vision"), ClipVision(), PHOTO[:0], "is empty"),
])
def test_what_cannot_be_compared(settings, clip, photos, words, monkeypatch):
    monkeypatch.setattr(embedders, "refusal", lambda name: "no detector")
    with pytest.raises(StandInError, match=words):
        compare(video(), photos, settings, clip)


def test_pictures():
    """The blue line lies at the top where a frame is the photo; the sheet has the photo first."""
    result = compare(torch.cat((PHOTO, PHOTO)), PHOTO, CompareSettings("clip vision"), ClipVision())
    drawn = plot(result)[0]
    blue = ((drawn - torch.tensor([31, 96, 180]) / 255).abs().amax(dim=-1) < 0.02).nonzero()
    line = blue[blue[:, 1] > 400]
    assert 40 <= line[:, 0].float().mean() <= 48
    sheet = contact_sheet(result)[0]
    assert sheet.shape == (2 * 202, 3 * 176, 3)
    assert float((sheet[3:173, 3:173] - sheet[3:173, 179:349]).abs().mean()) < 0.02


def test_insightface_sees_aligned_faces_in_blue_green_red(monkeypatch, tmp_path):
    """With the package's interface and no network: what is aligned by key points goes to it, as OpenCV has colours."""
    points = np.array([[50.0, 60], [90, 60], [70, 80], [55, 100], [85, 100]])
    asked = []

    class Network:
        def prepare(self, ctx_id):
            assert ctx_id == -1

        def get_feat(self, picture):
            asked.append(picture)
            return picture.reshape(1, -1, 3).mean(axis=1)

    package, zoo, utils, align = (types.ModuleType(name) for name in (
        "insightface", "insightface.model_zoo", "insightface.utils", "insightface.utils.face_align"))
    zoo.get_model = lambda path, providers: Network()
    align.norm_crop = lambda image, landmark: image[int(landmark[0, 1]):int(landmark[4, 1]),
                                                    int(landmark[0, 0]):int(landmark[1, 0])]
    for module in (package, zoo, utils, align):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(embedders, "find_insightface", lambda patterns: tmp_path / "w600k_r50.onnx")
    monkeypatch.setattr(embedders, "load_detector", lambda name, min_score: Detector(
        name, lambda picture, index: [Face((40, 40, 100, 120), 0.9, points)], has_keypoints=True))
    embedder = embedders.insightface_embedder(0.5)
    picture = np.zeros((160, 160, 3), np.uint8)
    picture[60:100, 50:90] = (200, 100, 0)
    seen = embedder.see(picture, 0)
    assert embedder.name == "insightface w600k_r50"
    assert asked[0].shape == (40, 40, 3) and asked[0][0, 0].tolist() == [0, 100, 200]
    assert seen.crop[0, 0].tolist() == [200, 100, 0] and seen.vector.tolist() == [0, 100, 200]


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
