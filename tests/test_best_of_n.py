"""Best of N: the order by likeness with copies last, against figures written out, and its way through a real server."""
import json

import numpy as np
import PIL.Image
import pytest
import skimage.data
import torch

from casting.ranking import ranked
from small_world.tiny_models import CLIP_VISION
from small_world.tiny_workflow import on_tiny_models
from standin_core.errors import UserError
from standin_core.evaluation import CompareSettings, as_json, as_text, compare, rank, ranking_sheet, split_videos
from standin_core.likeness import MOST_COPIED
from support.comfyui_server import PromptFailed, node_id
from support.environment import PACK

PHOTO = torch.from_numpy(skimage.data.astronaut()[:256, 96:352]).float()[None] / 255
NOBODY = torch.zeros_like(PHOTO)
SETTINGS = CompareSettings("clip vision")


class ClipVision:
    """In the place of a loaded CLIP vision model: the mean colour of the picture, as a vector."""

    def encode_image(self, image):
        return {"image_embeds": image.mean(dim=(1, 2)) + 0.01}


def tinted(red):
    """The photo in the mirror, so that its pixels are not copied, with less red the lower the number."""
    return PHOTO.flip(2) * torch.tensor([red, 1.0, 1.0])


def videos():
    """Half a video of somebody, a copy of the photo, and two videos of other colours; the second of them is nearer."""
    return [torch.cat((tinted(0.9), NOBODY)), torch.cat((PHOTO, PHOTO)), tinted(0.6), tinted(0.8)]


def test_the_order():
    found = rank(videos(), PHOTO, SETTINGS, 0.9, clip_vision=ClipVision())
    assert [each.index for each in found] == [3, 2, 0, 1]
    assert [each.verdict.copied for each in found] == [False, False, False, True]
    one_by_one = [compare(each, PHOTO, SETTINGS, ClipVision()) for each in videos()]
    for each in found:
        expected, verdict = one_by_one[each.index], each.verdict
        assert verdict.likeness == pytest.approx(np.nansum(expected.similarity) / len(expected.similarity), abs=1e-12)
        assert verdict.copying == pytest.approx(np.nanmean(expected.copied), abs=1e-12)
    assert found[2].verdict.likeness < 0.51 and found[2].verdict.coverage == 0.5  # of its two frames one shows nobody


def test_a_batch_orders_alike():
    """The ranking of scripts/batch.py, from what Identity Report says of the same videos."""
    tried = [*videos(), NOBODY]
    best = rank(tried, PHOTO, SETTINGS, MOST_COPIED, clip_vision=ClipVision())
    records = [{"id": str(index), "person": "anna", "prompt": "a woman smiles", "seed": index, "files": [],
                "report": json.loads(compare(video, PHOTO, SETTINGS, ClipVision()).as_json())}
               for index, video in enumerate(tried)]
    (renders,) = ranked(records)["anna"].values()
    assert [each["seed"] for each in renders] == [each.index for each in best] == [3, 2, 0, 4, 1]
    for render, each in zip(renders, best, strict=True):
        assert render["likeness"] == pytest.approx(each.verdict.likeness, abs=2e-6)


def test_likeness_alone():
    assert rank(videos(), PHOTO, SETTINGS, 1.0, clip_vision=ClipVision())[0].index == 1


def test_with_other_photos_the_copy_paste_measure_says_what_is_a_copy():
    """Two plain pictures, whose pixels say nothing: the one that is like the first photo is the copy."""
    given, other = (torch.tensor(colour).expand(1, 32, 32, 3) for colour in ([1.0, 0.2, 0.2], [0.2, 1.0, 0.2]))
    whole = CompareSettings("auto", "whole frame")
    found = rank([given, (given + other) / 2], torch.cat((given, other)), whole, 0.8, clip_vision=ClipVision())
    assert [each.index for each in found] == [1, 0] and found[1].verdict.copied
    assert found[0].verdict.copying == pytest.approx(0, abs=0.05)
    assert found[1].verdict.copying == pytest.approx(1, abs=1e-6)


def test_nobody_in_any_video():
    found = rank([NOBODY, NOBODY], PHOTO, SETTINGS, 0.8, clip_vision=ClipVision())
    assert [(each.index, each.verdict.likeness, each.verdict.copying) for each in found] == [(0, 0, 0), (1, 0, 0)]


def test_words_and_json():
    found = rank(videos(), PHOTO, SETTINGS, 0.9, [7, 8, 9, 10], ClipVision())
    lines = as_text(found).splitlines()
    assert lines[0] == "compared by CLIP vision on faces found by cascade"
    assert lines[1].startswith("1. video 4, seed 10: likeness 0.9") and lines[4].endswith("(a copy)")
    record = json.loads(as_json(found))["videos"]
    assert [(each["index"], each["seed"]) for each in record] == [(3, 10), (2, 9), (0, 7), (1, 8)]


def test_the_sheet_shows_the_best_first():
    tried = [torch.full((2, 30, 50, 3), 0.2), torch.full((2, 30, 50, 3), 0.8)]
    photo = torch.tensor([1.0, 0.2, 0.2]).expand(1, 32, 32, 3)
    found = rank(tried, photo, CompareSettings("auto", "whole frame"), 0.8, clip_vision=ClipVision())
    order = [each.index for each in found]
    sheet = ranking_sheet(found, tried)[0]
    assert sheet.shape == (202, 4 * 300, 3)  # two videos of two frames, side by side
    levels = [float(sheet[88, 300 * tile + 150, 0]) for tile in range(4)]
    expected = [(0.2, 0.8)[index] for index in order for _ in range(2)]
    assert levels == pytest.approx(expected, abs=0.01)


def test_a_batch_is_cut_into_videos():
    batch = torch.arange(6.0)[:, None, None, None].expand(6, 2, 2, 3)
    found = split_videos([batch, batch[:3]], 3)
    assert [video[:, 0, 0, 0].tolist() for video in found] == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert split_videos([batch], 0) == [batch]
    with pytest.raises(UserError, match="6 frames came, which are no whole number of videos of 4"):
        split_videos([batch], 4)


def test_what_cannot_be_ranked():
    with pytest.raises(UserError, match="no video came"):
        rank([], PHOTO, SETTINGS, 0.8, clip_vision=ClipVision())
    with pytest.raises(UserError, match="each of the 4 videos must have a seed, but 3 seeds came"):
        rank(videos(), PHOTO, SETTINGS, 0.8, [1, 2, 3], ClipVision())
    with pytest.raises(UserError, match=r"images must have the shape .*, but has \[0, "):
        rank([PHOTO, PHOTO[:0]], PHOTO, SETTINGS, 0.8, clip_vision=ClipVision())


@pytest.fixture(scope="module")
def prompt(photo):
    """Two seeds through the sampler of a bundled workflow, five frames each, and their best."""
    prompt = on_tiny_models(PACK / "workflows" / "api" / "identity_text_to_video.json", photo, 96, 64, 5, 2)
    sampler, decoded, photo = (node_id(prompt, name) for name in ("StandInSampler", "VAEDecode", "LoadImage"))
    for number in range(2):
        prompt[f"seed_{number}"] = {"class_type": "PrimitiveInt", "inputs": {"value": 5 + number}}
    prompt["seeds"] = {"class_type": "CreateList", "inputs": {
        f"inputs.input{number}": [f"seed_{number}", 0] for number in range(2)}}
    prompt[sampler]["inputs"]["seed"] = ["seeds", 0]
    prompt["vision"] = {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": CLIP_VISION}}
    prompt["best"] = {"class_type": "BestOfN", "inputs": {
        "images": [decoded, 0], "reference_image": [photo, 0], "clip_vision": ["vision", 0], "seeds": ["seeds", 0],
        "frames_per_video": 0, "embedder": "clip vision", "region": "whole frame", "min_score": 0.5,
        "most_copied": 1.0}}
    for name, source in (("all", [decoded, 0]), ("picked", ["best", 0])):
        prompt[name] = {"class_type": "SaveImage", "inputs": {"images": source, "filename_prefix": name}}
    for name, output in (("json", 4), ("seed", 1)):
        prompt[name] = {"class_type": "PreviewAny", "inputs": {"source": ["best", output]}}
    return prompt


def test_in_a_server(server, prompt):
    outputs = server.run(prompt).outputs
    ranking = json.loads(outputs["json"]["text"][0])["videos"]
    assert sorted(each["seed"] for each in ranking) == [5, 6]
    assert ranking[0]["likeness"] > ranking[1]["likeness"]
    assert int(outputs["seed"]["text"][0]) == ranking[0]["seed"] == 5 + ranking[0]["index"]
    pictures = {name: [np.asarray(PIL.Image.open(server.path_of(item))) for item in outputs[name]["images"]]
                for name in ("all", "picked")}
    assert len(pictures["all"]) == 10 and len(pictures["picked"]) == 5
    first = 5 * ranking[0]["index"]
    assert all(np.array_equal(one, other)
               for one, other in zip(pictures["picked"], pictures["all"][first:first + 5], strict=True))
    assert "1. video" in outputs["best"]["text"][0]


def test_pictures_of_a_batch(server, prompt):
    """Every frame for itself: ten candidates, and the best is one picture."""
    single = {**prompt, "best": {**prompt["best"], "inputs": {**prompt["best"]["inputs"], "frames_per_video": 1}}}
    with pytest.raises(PromptFailed, match="each of the 10 videos must have a seed, but 2 seeds came"):
        server.run(single)
    del single["best"]["inputs"]["seeds"]
    outputs = server.run(single).outputs
    assert len(outputs["picked"]["images"]) == 1 and len(json.loads(outputs["json"]["text"][0])["videos"]) == 10
