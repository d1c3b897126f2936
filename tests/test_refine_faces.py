"""Small faces made anew: the square is steady and holds the face, and what was not refined stays, bit for bit."""
import json

import numpy as np
import PIL.Image
import pytest
import skimage.color
import torch

import faces
from small_world.tiny_workflow import on_tiny_models
from standin_core.errors import UserError
from standin_core.face_swap import RefineSettings, enlarge_small_face, enlarged, put_back
from standin_core.face_swap.refine import FaceTrack
from support import moving_photo, pack
from support.comfyui_server import node_id
from support.environment import PACK

pytestmark = pytest.mark.usefixtures("models_dir")

WIDTH, HEIGHT = 208, 160
WHOLE = RefineSettings(detector="cascade", size=128, largest_face=400, crop_scale=1.5)


def boxes(*rectangles):
    """What a node gives as face_box for each frame: left, top, width, height, or None."""
    return [[] if each is None else [dict(zip(("x", "y", "width", "height"), each))] for each in rectangles]


@pytest.fixture(scope="module")
def video():
    return faces.as_image(*moving_photo.video(17, WIDTH, HEIGHT))


def test_a_real_face_stays_in_the_middle(video):
    """The head sways through a tenth of the picture; between its own square and the face there is little movement."""
    small = enlarge_small_face(video, WHOLE)
    assert small.frames.shape == (17, 128, 128, 3) and small.mask.shape == (17, 128, 128)
    nose = [small.track.to_crop(i, 128) @ (*nose_in(i), 1) for i in range(17)]
    moved = np.ptp([nose_in(i) for i in range(17)], axis=0)[0] * 128 / small.track.side
    assert moved > 12 and np.ptp(nose, axis=0)[0] < moved / 2
    assert np.abs(np.diff(small.track.corners, 2, axis=0)).max() < 0.5  # pixels a frame, a frame
    for i, (x, y) in enumerate(np.rint(nose).astype(int)):
        assert small.mask[i, y, x] == 1


def nose_in(i):
    rows, columns = moving_photo.HEAD
    return moving_photo.head_to_frame(i, WIDTH, HEIGHT) @ (*(faces.KEYPOINTS[2] - (columns.start, rows.start)), 1)


def noise(count, height=64, width=80):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(0))


def test_progress_is_told(bars):
    source = noise(5)
    small = enlarge_small_face(source, PLAIN, face_box=boxes(*[(30, 22, 16, 16)] * 5))
    put_back(source, small.frames, small.mask, small.track, 2, 1.0, "surroundings")
    assert bars[0] == (1, 5) and bars[-1] == (5, 5) and bars.count((5, 5)) == 2


PLAIN = RefineSettings(size=64, smoothing=0.0, largest_face=20, crop_scale=1.6)


def test_the_square_is_cut_and_put_back_pixel_by_pixel():
    """At the source's own scale: the square is a slice, and the result is the mix of both by the mask."""
    source = noise(1)
    small = enlarge_small_face(source, RefineSettings(size=32, smoothing=0.0, largest_face=20, crop_scale=1.6),
                               face_box=boxes((30, 22, 20, 20)))
    assert (small.track.side, small.track.corners.tolist()) == (32, [[24, 16]])
    assert torch.allclose(small.frames[0], source[0, 16:48, 24:56], atol=1e-6)
    new = noise(1, 32, 32).flip(1)
    result = put_back(source, new, small.mask, small.track, 0, 0.0, "surroundings")
    expected, inside = source.clone(), small.mask[0, ..., None]
    expected[0, 16:48, 24:56] += inside * (new[0] - expected[0, 16:48, 24:56])
    assert torch.allclose(result, expected, atol=1e-6)
    outside = torch.ones(64, 80, dtype=torch.bool)
    outside[16:48, 24:56] = small.mask[0] == 0
    assert torch.equal(result[0][outside], source[0][outside])
    assert 0.6 < float(small.mask.sum()) / (np.pi * 0.62 * 0.68 * 20 * 20) < 1.05


@pytest.mark.parametrize("color_match", [0.0, 1.0])
def test_a_face_that_was_not_changed_looks_as_before(video, color_match):
    """The square goes there and back with little loss, inside of it; outside with none."""
    small = enlarge_small_face(video, WHOLE)
    result = put_back(video, small.frames, small.mask, small.track, 8, color_match, "surroundings")
    difference = (result - video).abs()
    assert float(difference.mean()) < 0.004 and float((difference > 0).float().mean()) < 0.5
    assert (result[0, :3] == video[0, :3]).all() and (result[:, -3:] == video[:, -3:]).all()


def test_a_shift_of_colours_is_taken_back(video):
    """A shift of all colours by the same amount, in Lab; no colour is so dark or bright that it would be clipped."""
    source = 0.25 + video[:2] / 2
    small = enlarge_small_face(source, WHOLE)
    shifted = skimage.color.lab2rgb(skimage.color.rgb2lab(small.frames.numpy()) + np.array((-5, 6, -8)))
    shifted = torch.from_numpy(shifted).float()
    expected, kept, matched = (
        put_back(source, frames, small.mask, small.track, 8, amount, "surroundings")
        for frames, amount in ((small.frames, 0.0), (shifted, 0.0), (shifted, 1.0)))
    assert float((matched - expected).abs().mean()) < 0.1 * float((kept - expected).abs().mean())


def test_only_frames_with_a_small_face_are_refined():
    """Frames 2 to 6 of 9: large at first, then small, lost for one frame, lost for longer than is held, then large."""
    small, large = (30, 20, 16, 20), (29, 17, 18, 26)
    where = [large, large, small, None, small, None, None, small, large]
    source = noise(9)
    found = enlarge_small_face(source, RefineSettings(**vars_of(PLAIN) | {"hold_frames": 1}), face_box=boxes(*where))
    assert found.track.first == 2 and len(found.frames) == 9  # six frames, and the next 4k+1
    assert found.track.refined.tolist() == [True, True, True, True, False, True, False, False, False]
    result = put_back(source, 1 - found.frames, found.mask, found.track, 4, 0.0, "face")
    changed = [not torch.equal(one, other) for one, other in zip(result, source)]
    assert changed == [False, False, True, True, True, True, False, True, False]
    assert "5 of 9 frames, 3 to 8" in found.report


def vars_of(settings):
    return {name: getattr(settings, name) for name in RefineSettings.__dataclass_fields__}


def test_the_end_of_the_video_is_repeated_and_not_put_back_twice():
    found = enlarge_small_face(noise(3), PLAIN, face_box=boxes(*[(30, 20, 16, 20)] * 3))
    assert len(found.frames) == 5 and found.track.refined.tolist() == [True, True, True, False, False]
    assert torch.equal(found.frames[4], found.frames[2])


def test_squares_stay_inside_the_picture():
    for box, side, corner in (((0, 0, 16, 20), 32, (0, 0)), ((70, 44, 10, 20), 32, (48, 32))):
        track = enlarge_small_face(noise(1), PLAIN, face_box=boxes(box)).track
        assert track.side == side and tuple(track.corners[0]) == corner
    tall = enlarge_small_face(noise(1), RefineSettings(**vars_of(PLAIN) | {"crop_scale": 8.0}),
                              face_box=boxes((30, 20, 16, 20)))
    assert tall.track.side == 64


def test_two_people_one_after_the_other():
    """Each pass changes the face of one of them and leaves the other."""
    source = noise(1, 64, 160)
    pair = [[{"x": 20, "y": 20, "width": 16, "height": 20}, {"x": 110, "y": 20, "width": 16, "height": 20}]]
    result, spans = source, ((0, 80), (80, 160))
    for index, (begin, end) in enumerate(spans):
        found = enlarge_small_face(result, RefineSettings(**vars_of(PLAIN) | {
            "which_face": "from left", "face_index": index}), face_box=pair)
        after = put_back(result, 1 - found.frames, found.mask, found.track, 4, 0.0, "face")
        changed = (after != result).any(dim=-1)[0].any(dim=0).nonzero()
        assert begin <= changed.min() and changed.max() < end
        result = after


def test_the_edge_of_the_square_is_not_seen():
    """A feather wider than the room around the face fades to nothing at the square's border."""
    source = torch.zeros(1, 64, 80, 3)
    found = enlarge_small_face(source, PLAIN, face_box=boxes((30, 22, 20, 20)))
    row = put_back(source, torch.ones(1, 64, 64, 3), found.mask, found.track, 40, 0.0, "face")[0, 32, :, 0]
    assert row.max() > 0.3 and row[:22].max() == 0
    assert row.diff().abs().max() < 0.1


def test_before_and_after(video):
    small = enlarge_small_face(video, WHOLE)
    assert torch.equal(enlarged(video, small.track, 128), small.frames)


REFUSED = {
    "no frames": (noise(0), [], PLAIN, r"images must have the shape .*, but has \[0, "),
    "size": (noise(1), boxes((30, 20, 16, 20)), RefineSettings(size=100), "size must be a multiple of 16, but is 100"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_refined(name):
    images, seen, settings, words = REFUSED[name]
    with pytest.raises(UserError, match=words):
        enlarge_small_face(images, settings, face_box=seen)


@pytest.mark.parametrize("seen, words", [
    ([None] * 6, "found no such face in 6 frames"),
    ([(10, 10, 30, 40)] * 6, "the face is nowhere smaller than 20 pixels (it has 40 to 40)"),
], ids=["no face", "large"])
def test_a_video_with_nothing_to_refine_goes_on_unchanged(seen, words):
    """Whatever is made of the one frame that a sampler gets."""
    source = noise(6)
    found = enlarge_small_face(source, PLAIN, face_box=boxes(*seen))
    assert found.report.startswith("the video goes on unchanged, since ") and words in found.report
    assert found.frames.shape == (1, 64, 64, 3) and found.mask.shape == (1, 64, 64) and found.mask.all()
    assert torch.allclose(found.frames[0], source[0, :, 8:72], atol=1e-6)
    assert torch.equal(put_back(source, 1 - found.frames, found.mask, found.track, 4, 1.0, "face"), source)


def test_what_cannot_be_put_back():
    track = FaceTrack(0, 32.0, np.zeros((5, 2)), np.ones(5, bool), (64, 80))
    new, mask = noise(5, 64, 64), torch.ones(5, 64, 64)
    for source, images, given, words in ((noise(4), new, mask, "the source is"),
                                         (noise(5, 60), new, mask, "the source is"),
                                         (noise(5), new[:4], mask[:4], "the refined face must be"),
                                         (noise(5), new, mask[:, :32], "the refined face must be")):
        with pytest.raises(UserError, match=words):
            put_back(source, images, given, track, 4, 1.0, "face")


@pytest.fixture(scope="module")
def uploaded(server, tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    moving_photo.write_video(path, moving_photo.video(9, 160, 128))
    return server.upload(path)


def refined_in_a_server(server, photo, video, **settings):
    """The bundled template: the frames before and after, [F, H, W, 3] uint8, and what came of the prompt."""
    prompt = on_tiny_models(PACK / "workflows" / "api" / "refine_faces.json", photo, 64, 64, steps=2, video=video)
    prompt[node_id(prompt, "RefineFacesPrepare")]["inputs"] |= settings
    composite, source = (node_id(prompt, name) for name in ("RefineFacesComposite", "GetVideoComponents"))
    for name, images in (("before", source), ("after", composite)):
        prompt[name] = {"class_type": "SaveImage", "inputs": {"images": [images, 0], "filename_prefix": name}}
    prompt["record"] = {"class_type": "PreviewAny", "inputs": {"source": [node_id(prompt, "StandInSampler"), 3]}}
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": [node_id(prompt, "RefineFacesPrepare"), 3]}}
    result = server.run(prompt)
    return *(np.stack([np.asarray(PIL.Image.open(server.path_of(item)).convert("RGB"))
                       for item in result.outputs[name]["images"]]) for name in ("before", "after")), result


def test_in_a_server(server, photo, uploaded):
    """The face is refined with the identity, and the rest of the video stays."""
    before, after, result = refined_in_a_server(server, photo, uploaded)
    assert before.shape == after.shape == (9, 128, 160, 3)
    changed = (before != after).any(axis=-1)
    assert changed.any(axis=(1, 2)).all() and 0.02 < changed.mean() < 0.8
    assert not changed[:, :2].any() and not changed[:, :, :2].any()
    (run,) = json.loads(result.outputs["record"]["text"][0])
    assert run["identity_calls"] > 0


def test_the_template_hands_on_what_has_no_small_face(server, photo, uploaded):
    before, after, result = refined_in_a_server(server, photo, uploaded, largest_face=8)
    assert before.shape == (9, 128, 160, 3) and np.array_equal(before, after)
    assert "nowhere smaller than 8 pixels" in result.outputs["report"]["text"][0]


def test_the_size_is_that_of_the_videos_of_the_training():
    """The square of whole tokens that comes closest to their pixels, in the node as in the settings."""
    (size,) = [each for each in pack.node_classes()["RefineFacesPrepare"].GET_SCHEMA().inputs if each.id == "size"]
    nearest = min(range(16, 2048, 16), key=lambda side: abs(side * side - 832 * 480))
    assert size.default == RefineSettings().size == nearest and f"{nearest}x{nearest}" in size.tooltip
