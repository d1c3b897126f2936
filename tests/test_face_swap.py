"""Face swap: the authors' paste bit for bit, one person followed, the mask on latent frames, and the composite."""
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.color
import torch
from hypothesis import given
from hypothesis import strategies as st

import faces
from examples import examples
from small_world import tiny_models
from standin_core.contracts import CroppedFace, FaceCrop
from standin_core.errors import UserError
from standin_core.face import FaceSettings, crop_faces
from standin_core.face.detectors import Face
from standin_core.face_swap import SwapSettings, composite_swap, encode_swap, prepare_swap
from standin_core.face_swap.encode import latent_mask
from standin_core.face_swap.follow import Follower, OneEuro
from standin_core.face_swap.paste import paste
from support import moving_photo
from support.peak_memory import resident_peak

pytestmark = pytest.mark.usefixtures("models_dir")

# The golden pastes were made with OpenCV 5, which they equal. OpenCV 4 samples on a grid of 1/32 px: 255 / 32 at a hard
# edge (measured with 4.10 to 4.13: 6).
WARP_BAR = 0 if int(cv2.__version__.partition(".")[0]) >= 5 else 8

PLAIN = SwapSettings(smoothing=0.0, hold_frames=0)  # the authors'


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parent / "golden" / "face" / "swap_paste.npz")


def reference_of(rgba: np.ndarray, points: np.ndarray) -> FaceCrop:
    image = faces.as_image(rgba)
    return FaceCrop(image[..., :3], image, (CroppedFace(points, True, True),), image[..., :3], "")


def test_paste_is_the_authors(golden):
    """Pasted frames and masks, all five, with a frame without a face among them; given 7 frames, 131x101."""
    reference = reference_of(golden["source_rgba"], golden["source_keypoints"])
    cropped = np.array([(131 - 128) // 2, (101 - 96) // 2])
    seen = [[(points.astype(np.float64) + cropped, 1.0)] if found else []
            for points, found in zip(golden["target_keypoints"], golden["detected"])]
    swap = prepare_swap(faces.as_image(*golden["frames"]), reference, PLAIN,
                        face_landmarks=faces.landmarks(*seen, [], [], size=(101, 131)))
    for found, expected in ((swap.frames, golden["pasted"]), (swap.mask, golden["mask"])):
        assert np.abs(faces.as_uint8(found).astype(int) - expected).max() <= WARP_BAR
    assert "5 of 7 frames, 128x96 of 131x101: face in 4 by the connected landmarks, its last mask in 0, none in 1" \
        in swap.report


@pytest.mark.parametrize("count, length", [(1, 1), (4, 1), (5, 5), (7, 5), (8, 5), (9, 9), (80, 77), (81, 81)])
def test_length_is_the_largest_that_fits(count, length):
    """4k+1, never more frames than came (the authors' rule asks for one too many at 4, 8, 80)."""
    reference = reference_of(moving_photo.cut_out(), faces.KEYPOINTS)
    frames = torch.zeros(count, 16, 16, 3)
    swap = prepare_swap(frames, reference, PLAIN, face_box={"x": 2, "y": 2, "width": 9, "height": 9})
    assert swap.frames.shape == (length, 16, 16, 3) and swap.mask.shape == (length, 16, 16)


@pytest.fixture(scope="module")
def reference():
    return crop_faces(faces.as_image(moving_photo.cut_out()), FaceSettings(detector="cascade", no_face="error"))


WIDTH, HEIGHT = 208, 160


@pytest.fixture(scope="module")
def video():
    return faces.as_image(*moving_photo.video(17, WIDTH, HEIGHT))


def true_points(i: int) -> np.ndarray:
    """Where the face's points are in frame i of the video, from how it was made."""
    matrix = moving_photo.head_to_frame(i, WIDTH, HEIGHT)
    rows, columns = moving_photo.HEAD
    points = faces.KEYPOINTS - (columns.start, rows.start)
    return points @ matrix[:, :2].T + matrix[:, 2]


def test_the_face_of_a_real_video_is_found_and_covered(reference, video):
    """By the cascade: the mask covers the points of the face in every frame, and nothing changes outside it."""
    swap = prepare_swap(video, reference, SwapSettings(detector="cascade"))
    assert "face in 17 by cascade" in swap.report and "does not turn with the head" in swap.report
    for i in range(17):
        for x, y in np.rint(true_points(i)).astype(int):
            assert swap.mask[i, y, x] == 1
    outside = swap.mask == 0
    assert torch.equal(swap.frames[outside], video[outside])
    assert not torch.equal(swap.frames[~outside], video[~outside])


def test_progress_is_told(reference, video, bars):
    swap = prepare_swap(video[:5], reference, SwapSettings(detector="cascade"))
    composite_swap(video[:5], swap.frames, swap.mask, 2, 1.0, "surroundings")
    assert bars[0] == (1, 5) and bars[-1] == (5, 5) and bars.count((5, 5)) == 2


def test_pixels_outside_keep_their_precision(reference):
    """A video of more than 8 bits is not rounded where nothing is pasted."""
    frames = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    swap = prepare_swap(frames, reference, PLAIN, face_box={"x": 20, "y": 20, "width": 12, "height": 14})
    outside = swap.mask == 0
    assert 0 < outside.float().mean() < 1
    assert torch.equal(swap.frames[outside], frames[outside])


def face(x, y, size=20.0):
    return Face((int(x - size / 2), int(y - size / 2), int(x + size / 2), int(y + size / 2)))


def test_the_same_person_is_followed():
    """Two people cross the picture in opposite directions; from left at first, and never the other one."""
    for which, first in (("from left", 0), ("largest", 1)):
        follower = Follower(which, 0)
        for i in range(30):
            people = [face(20 + 4 * i, 50), face(150 - 4 * i, 90, size=24)]
            assert follower.pick(people[::-1] if i % 2 else people) is people[first]


def test_a_person_who_leaves_is_not_replaced_at_once():
    """The other one stands too far away; who comes back near the last place is taken."""
    follower = Follower("largest", 0)
    mine, other = face(50, 50), face(150, 50, size=19)
    assert follower.pick([mine, other]) is mine
    for missed in range(1, 5):
        assert follower.pick([other]) is None
        assert follower.missed == missed
    back = face(60, 52)
    assert follower.pick([other, back]) is back and follower.missed == 0


def test_a_neighbour_is_not_taken_for_who_has_left():
    """Two faces' width apart, through a gap of any length; and who comes back to the last place is taken again."""
    follower = Follower("largest", 0)
    mine, neighbour = face(50, 50), face(90, 50, size=19)
    assert follower.pick([mine, neighbour]) is mine
    for _ in range(2000):
        assert follower.pick([neighbour]) is None
    back = face(52, 50)
    assert follower.pick([neighbour, back]) is back


def test_a_person_lost_while_a_neighbour_is_seen_now_and_then():
    """The neighbour's place is remembered over the frames in which neither is found."""
    follower = Follower("largest", 0)
    neighbour = face(80, 50, size=19)
    follower.pick([face(50, 50), neighbour])
    for seen in ([], [], [], [neighbour], [], [neighbour]):
        assert follower.pick(seen) is None


def test_a_second_box_of_the_same_face_is_nobody_else():
    """Detectors give one now and then; the person who moves on over its place is still followed."""
    follower = Follower("largest", 0)
    assert follower.pick([face(50, 50), face(58, 52, size=16)]).centre == (50, 50)
    for x in (54, 58, 62):
        assert follower.pick([face(x, 50)]) is not None


def test_a_face_of_another_size_is_another_face():
    follower = Follower("largest", 0)
    follower.pick([face(50, 50)])
    assert follower.pick([face(50, 50, size=60)]) is None


def test_from_left_waits_for_enough_faces():
    follower = Follower("from left", 1)
    assert follower.pick([face(50, 50)]) is None
    right = face(100, 50)
    assert follower.pick([right, face(50, 50)]) is right


def one_euro_by_hand(values, min_cutoff, beta, speed_cutoff):
    """The published algorithm for one number at one sample a second (Casiez et al. 2012, algorithm 1)."""
    def alpha(cutoff):
        return 1 / (1 + (1 / (2 * math.pi * cutoff)) / 1.0)

    filtered, speed, out = values[0], 0.0, [values[0]]
    for value in values[1:]:
        speed = alpha(speed_cutoff) * (value - filtered) + (1 - alpha(speed_cutoff)) * speed
        share = alpha(min_cutoff + beta * abs(speed))
        filtered = share * value + (1 - share) * filtered
        out.append(filtered)
    return out


def test_smoothing_is_the_one_euro_filter():
    """All points move alike, in x, at an eye distance of 1: then it is the filter of one number."""
    shape = np.array([[0, 0], [1, 0], [0.5, 0.5], [0.2, 1], [0.8, 1]])
    values = np.cumsum(np.random.default_rng(0).normal(size=40))
    steady = OneEuro(0.5)
    found = [steady(shape + np.array((value, 0)))[0, 0] for value in values]
    cutoff = math.sqrt(OneEuro.WEAKEST * OneEuro.STRONGEST)
    assert np.allclose(found, one_euro_by_hand(values, cutoff, OneEuro.BETA, OneEuro.SPEED_CUTOFF), rtol=0, atol=1e-12)


def test_smoothing_steadies_and_follows():
    """A still face shakes less the higher it is; a fast one is followed; at 0 nothing is touched."""
    rng = np.random.default_rng(0)
    shaking = [faces.KEYPOINTS + rng.normal(scale=1.0, size=(5, 2)) for _ in range(200)]
    left = []
    for amount in (0.0, 0.5, 1.0):
        steady = OneEuro(amount)
        left.append(np.std([steady(points) for points in shaking][20:], axis=0).mean())
    assert left[0] > 1.7 * left[1] and left[1] > 1.4 * left[2]
    steady = OneEuro(1.0)
    for i in range(30):
        found = steady(faces.KEYPOINTS + np.array((20 * i, 0)))  # nearly half an eye distance in each frame
    assert np.abs(found - (faces.KEYPOINTS + np.array((20 * 29, 0)))).max() < 10


def gaps(frames, missing, size=(160, 160), shift=lambda i: 0):
    return faces.landmarks(*[[] if i in missing else [(faces.KEYPOINTS * 0.3 + shift(i), 1.0)] for i in range(frames)],
                           size=size)


def test_frames_without_a_face(reference):
    """Held for as many frames as set, with the last mask and the frame's own pixels; then they pass through."""
    frames = torch.rand(13, 160, 160, 3, generator=torch.Generator().manual_seed(0))
    swap = prepare_swap(frames, reference, SwapSettings(hold_frames=2, smoothing=0.5),
                        face_landmarks=gaps(13, {0, 4, 5, 6, 10}))
    held, passed = [4, 5, 10], [0, 6]
    for i in (*held, *passed):
        assert torch.equal(swap.frames[i], frames[i])
    assert all(torch.equal(swap.mask[i], swap.mask[3]) for i in held)
    assert all(swap.mask[i].max() == 0 for i in passed)
    assert "face in 8 by the connected landmarks, its last mask in 3, none in 2" in swap.report


def test_a_face_that_comes_back_elsewhere_is_met_there(reference):
    """Smoothing begins anew after a gap: the paste does not lag behind the jump."""
    frames = torch.zeros(9, 160, 160, 3)
    seen = {"face_landmarks": gaps(9, {4}, shift=lambda i: 12 if i > 4 else 0)}
    smooth, plain = (prepare_swap(frames, reference, SwapSettings(hold_frames=4, smoothing=smoothing), **seen).mask
                     for smoothing in (1.0, 0.0))
    assert torch.equal(smooth[5], plain[5])
    assert not torch.equal(plain[5], plain[3])


def test_points_that_were_estimated_are_said(reference):
    """A reference by the cascade and frames with measured points do not quite agree."""
    swap = prepare_swap(torch.zeros(5, 160, 160, 3), reference, PLAIN, face_landmarks=gaps(5, ()))
    assert "the reference was found without key points" in swap.report
    measured = reference_of(moving_photo.cut_out(), faces.KEYPOINTS)
    assert "without key points" not in prepare_swap(
        torch.zeros(5, 160, 160, 3), measured, PLAIN, face_landmarks=gaps(5, ())).report


def test_no_face_in_the_whole_video(reference):
    with pytest.raises(UserError, match="cascade found no face in 5 frames"):
        prepare_swap(torch.zeros(5, 64, 64, 3), reference, SwapSettings(detector="cascade"))
    with pytest.raises(UserError, match="found no face number 3 from the left in 5 frames"):
        prepare_swap(torch.zeros(5, 160, 160, 3), reference, SwapSettings(which_face="from left", face_index=3),
                     face_landmarks=gaps(5, ()))


def no_face():
    return crop_faces(torch.zeros(1, 32, 32, 4), FaceSettings(size=64, no_face="whole image"))


def not_cut_out():
    return crop_faces(faces.as_image(faces.astronaut()), FaceSettings(size=64))


def only_padded():
    """Nothing was removed: the face is at the border of the photo, and the padding is all that is transparent."""
    left, top, right, bottom = faces.FACE_BOX
    found = crop_faces(faces.as_image(faces.astronaut()[70:]), FaceSettings(size=64, parser="none"),
                       face_box={"x": left, "y": top - 70, "width": right - left, "height": bottom - top})
    assert bool((found.rgba[..., 3] == 0).any())
    return found


def two_of_them():
    return crop_faces(faces.as_image(moving_photo.cut_out(), moving_photo.cut_out()), FaceSettings(size=64))


@pytest.mark.parametrize("made, words", [(no_face, "the reference has no face"), (not_cut_out, "is not cut out"),
                                         (only_padded, "is not cut out"),
                                         (two_of_them, "must have one face, but has 2")])
def test_references_that_cannot_be_pasted(video, made, words):
    with pytest.raises(UserError, match=words):
        prepare_swap(video, made(), PLAIN)


@pytest.mark.parametrize("shape, words", [((0, 64, 64, 3), "none of them 0"), ((5, 15, 64, 3), "at least 16x16"),
                                          ((5, 64, 64, 2), "with 1, 3 or 4 channels")])
def test_videos_that_cannot_be_swapped(reference, shape, words):
    with pytest.raises(UserError, match=words):
        prepare_swap(torch.zeros(shape), reference, PLAIN)


def test_a_video_with_nan(reference):
    frames = torch.zeros(5, 160, 160, 3)
    frames[3, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="the values of images must be finite"):
        prepare_swap(frames, reference, PLAIN, face_landmarks=gaps(5, ()))


def test_points_in_one_place_paste_nothing():
    frame = np.full((32, 32, 3), 9, np.uint8)
    pasted, mask = paste(frame, moving_photo.cut_out(), faces.KEYPOINTS, np.full((5, 2), 7.0))
    assert np.array_equal(pasted, frame) and mask.max() == 0


def test_an_interrupt_stops_the_preparation(reference, video):
    import comfy.model_management

    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        prepare_swap(video, reference, PLAIN)


def test_memory_does_not_grow_with_the_length(reference):
    """Beside what it returns, the process needs no more for 61 frames than for 5; one frame kept from each would be 266
    MiB more.
    """
    def beside(length):
        frames, seen = torch.zeros(1, 480, 832, 3).expand(length, -1, -1, -1), gaps(length, (), size=(480, 832))
        swap, peak = resident_peak(lambda: prepare_swap(frames, reference, PLAIN, face_landmarks=seen))
        return peak - sum(tensor.numel() * tensor.element_size() for tensor in (swap.frames, swap.mask))

    beside(5)
    assert beside(61) - max(beside(5), 0) < 64 * 2**20


def masks_by_hand(mask, h, w):
    """Frame by frame and pixel by pixel: latent frame i > 0 is made of frames 4i-3 .. 4i."""
    frames, height, width = mask.shape
    out = np.zeros(((frames - 1) // 4 + 1, h, w))
    for t in range(len(out)):
        group = mask[0:1] if t == 0 else mask[4 * t - 3:4 * t + 1]
        for y in range(h):
            for x in range(w):
                cell = group[:, y * height // h:(y + 1) * height // h, x * width // w:(x + 1) * width // w]
                out[t, y, x] = cell.max(axis=0).mean()
    return out


@given(groups=st.integers(0, 4), seed=st.integers(0, 100))
@examples("masks on latent frames", 25, 500)
def test_latent_mask(groups, seed):
    mask = np.random.default_rng(seed).random((4 * groups + 1, 32, 48), np.float32) ** 3
    soft = latent_mask(torch.from_numpy(mask), (4, 6), "soft")
    expected = masks_by_hand(mask, 4, 6)
    assert soft.shape == (1, 1, groups + 1, 4, 6)
    assert np.allclose(soft[0, 0].numpy(), expected, rtol=0, atol=1e-6)  # sums of 64 numbers in fp32
    hard = latent_mask(torch.from_numpy(mask), (4, 6), "hard")[0, 0].numpy()
    assert set(np.unique(hard)) <= {0, 1}
    sure = np.abs(expected - 0.5) > 1e-6
    assert np.array_equal(hard[sure], (expected > 0.5)[sure])


def test_a_face_in_one_frame_reaches_its_latent_frame_alone():
    """Where ComfyUI's interpolation in time would smear it or lose it."""
    for frame in range(9):
        mask = torch.zeros(9, 16, 16)
        mask[frame] = 1
        expected = 0 if frame == 0 else (frame - 1) // 4 + 1
        found = latent_mask(mask, (2, 2), "hard")[0, 0].amax(dim=(1, 2))
        assert found.tolist() == [float(i == expected) for i in range(3)]


@pytest.fixture(scope="module")
def vae():
    import comfy.sd

    return comfy.sd.VAE(sd=tiny_models.vae_weights())


@pytest.fixture(scope="module")
def small(video):
    """What the face fills of some of its frames."""
    return video[:9, 32:96, 64:144]


def test_encode(vae, small):
    mask = torch.zeros(9, 64, 80)
    mask[:, 10:50, 20:60] = 1
    locked = encode_swap(vae, small, mask, "locked", "hard")
    assert locked["samples"].shape == (1, 16, 3, 8, 10)
    assert torch.equal(locked["samples"], vae.encode(small))
    assert torch.equal(locked["noise_mask"], latent_mask(mask, (8, 10), "hard"))
    assert list(encode_swap(vae, small, mask, "free", "hard")) == ["samples"]
    one = encode_swap(vae, small, mask[0], "locked", "soft")["noise_mask"]
    assert torch.equal(one, latent_mask(mask, (8, 10), "soft"))


@pytest.mark.parametrize("background", ["locked", "free"])
def test_encoding_tells_its_progress(vae, small, bars, background):
    encode_swap(vae, small, torch.ones(9, 64, 80), background, "hard")
    assert bars[0] == (1, 9) and bars[-1] == (9, 9)
    assert not vae.first_stage_model.encoder._forward_hooks


def test_comfyui_takes_the_mask_as_it_is(vae, small):
    """Its own preparation of masks changes nothing but repeats it over the channels."""
    import comfy.sampler_helpers

    mask = torch.rand(9, 64, 80, generator=torch.Generator().manual_seed(0))
    latent = encode_swap(vae, small, mask, "locked", "soft")
    prepared = comfy.sampler_helpers.prepare_mask(latent["noise_mask"], latent["samples"].shape, "cpu")
    assert torch.equal(prepared, latent["noise_mask"].expand(-1, 16, -1, -1, -1))


@pytest.mark.parametrize("shape, mask, words", [
    ((8, 32, 32), torch.ones(8, 32, 32), "the number of frames must be 4k . 1, such as 81, but is 8"),
    ((9, 40, 32), torch.ones(9, 40, 32), "must be multiples of 16, but are 32x40"),
    ((9, 32, 32), torch.ones(8, 32, 32), r"mask must be of .* \[9, 32, 32\] .*, but is \[8, 32, 32\]"),
    ((9, 32, 32), torch.ones(9, 16, 32), r"mask must be of the .*, but is \[9, 16, 32\]"),
    ((9, 32, 32), torch.zeros(9, 32, 32), "the mask covers no latent pixel")])
def test_what_cannot_be_encoded(vae, shape, mask, words):
    with pytest.raises(UserError, match=words):
        encode_swap(vae, torch.zeros(*shape, 3), mask, "locked", "hard")


def test_a_mask_smaller_than_a_latent_pixel(vae):
    """Refused as a hard mask, which would be empty; as a soft one it counts, and a free background reads no mask."""
    mask = torch.zeros(1, 32, 32)
    mask[0, 4:12, 4:12] = 1  # a quarter of each of four latent pixels
    frames = torch.zeros(1, 32, 32, 3)
    with pytest.raises(UserError, match="set mask_edge to soft"):
        encode_swap(vae, frames, mask, "locked", "hard")
    assert encode_swap(vae, frames, mask, "locked", "soft")["noise_mask"].max() == 0.25
    assert list(encode_swap(vae, frames, torch.zeros(1, 32, 32), "free", "hard")) == ["samples"]


def test_another_vae():
    class Other:
        first_stage_model = torch.nn.Identity()

    with pytest.raises(UserError, match=r"the VAE must be Wan 2\.1's, .*, but is Identity"):
        encode_swap(Other(), torch.zeros(1, 32, 32, 3), torch.ones(1, 32, 32), "locked", "hard")


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_composite_is_the_source_outside_the_mask():
    """Farther out than the feather every pixel is the source's own, bit for bit; well inside, the swapped one's."""
    source, swapped = noise(5, 70, 90, 3), noise(5, 64, 80, 3, seed=1)
    mask = torch.zeros(5, 64, 80)
    mask[:, 20:40, 30:60] = 1
    found = composite_swap(source, swapped, mask, 4, 0.0, "surroundings")
    assert found.shape == source.shape
    touched = torch.zeros(70, 90, dtype=torch.bool)
    touched[3 + 16:3 + 44, 5 + 26:5 + 64] = True  # the mask and 4 px around, where the crop lies in the middle
    assert torch.equal(found[:, ~touched], source[:, ~touched])
    inner = found[:, 3 + 24:3 + 36, 5 + 34:5 + 56]
    assert torch.allclose(inner, swapped[:, 24:36, 34:56], rtol=0, atol=1e-6)  # a + 1 (b - a) in fp32
    hard = composite_swap(source, swapped, mask, 0, 0.0, "surroundings")
    assert torch.allclose(hard[:, 3 + 20:3 + 40, 5 + 30:5 + 60], swapped[:, 20:40, 30:60], rtol=0, atol=1e-6)
    assert torch.equal(composite_swap(source, swapped, mask[:1], 4, 0.0, "surroundings"), found)


def test_the_mask_of_each_frame_counts():
    source, swapped = noise(5, 32, 32, 3), noise(5, 32, 32, 3, seed=1)
    mask = torch.zeros(5, 32, 32)
    mask[2, 8:24, 8:24] = 1
    found = composite_swap(source, swapped, mask, 0, 0.0, "surroundings")
    assert torch.equal(found[[0, 1, 3, 4]], source[[0, 1, 3, 4]]) and not torch.equal(found[2], source[2])


def test_trailing_frames_of_the_source_are_left_out():
    found = composite_swap(noise(8, 32, 32, 3), noise(5, 32, 32, 3), torch.ones(5, 32, 32), 0, 0.0, "surroundings")
    assert len(found) == 5


@pytest.mark.parametrize("region", ["surroundings", "face"])
@pytest.mark.parametrize("amount", [0.5, 1.0])
def test_colour_match_in_lab(region, amount):
    """Mean and deviation in Lab brought to the source's, for a picture that drifted in colour and contrast; the Lab of
    scikit-image computes it anew.
    """
    source = faces.as_image(cv2.resize(faces.astronaut(), (96, 96), interpolation=cv2.INTER_AREA)) * 0.5 + 0.2
    drifted = source * torch.tensor([0.8, 0.7, 0.6]) + 0.1
    mask = torch.zeros(1, 96, 96)
    mask[:, 30:60, 30:60] = 1
    inside = mask[0].bool().numpy()
    where = inside if region == "face" else ~inside
    wanted, lab = (skimage.color.rgb2lab(picture[0].numpy()) for picture in (source, drifted))
    # with a noise of 4 units in both deviations
    ratio = np.sqrt((wanted[where].var(axis=0) + 16) / (lab[where].var(axis=0) + 16))
    matched = (lab - lab[where].mean(axis=0)) * ratio + wanted[where].mean(axis=0)
    expected = skimage.color.lab2rgb(lab + amount * (matched - lab))
    found = composite_swap(source, drifted, mask, 0, amount, region)[0].numpy()
    # OpenCV reads Lab from tables (measured: 0.0024 here), within a step of 8 bits
    assert np.abs(found - expected)[inside].max() < 1 / 255
    assert np.abs(drifted[0].numpy() - expected)[inside].max() > 10 / 255


@pytest.mark.parametrize("noisy", ["source", "swapped"])
def test_a_plain_wall_takes_nothing_from_the_face(noisy):
    """Where there is no contrast to compare, a ratio of noise must not become the contrast of the face."""
    small = faces.as_image(cv2.resize(faces.astronaut()[60:190, 170:290], (48, 48), interpolation=cv2.INTER_AREA))
    wall = torch.full((1, 128, 128, 3), 0.9)
    grain = wall + (noise(1, 128, 128, 3) - 0.5) * 0.03
    source, swapped = (grain, wall.clone()) if noisy == "source" else (wall, grain)
    mask = torch.zeros(1, 128, 128)
    mask[:, 40:88, 40:88] = 1
    swapped[:, 40:88, 40:88] = small
    face = composite_swap(source, swapped, mask, 0, 1.0, "surroundings")[:, 40:88, 40:88]
    assert (face - small).abs().mean() < 0.02
    assert face.std() / small.std() == pytest.approx(1, abs=0.05)


def test_a_mask_at_the_border_fades_before_the_margin():
    """The source goes on for a few pixels beyond the swapped video: no seam there, and none at the picture's own edge.
    """
    source, swapped = torch.zeros(1, 74, 64, 3), torch.ones(1, 64, 64, 3)
    column = composite_swap(source, swapped, torch.ones(1, 64, 64), 8, 0.0, "surroundings")[0, :, 32, 0]
    assert column[:5].max() == 0 and column[37] == pytest.approx(1, abs=1e-6)
    assert column.diff().abs().max() <= 1 / 8 + 1e-6
    row = composite_swap(source, swapped, torch.ones(1, 64, 64), 8, 0.0, "surroundings")[0, 37, :, 0]
    assert row.min() == pytest.approx(1, abs=1e-6)


def test_a_swapped_video_with_nan():
    swapped = torch.zeros(1, 32, 32, 3)
    swapped[0, 5, 5, 0] = float("nan")
    with pytest.raises(UserError, match="the values of images must be finite"):
        composite_swap(torch.zeros(1, 32, 32, 3), swapped, torch.ones(1, 32, 32), 0, 0.0, "surroundings")


def test_a_mask_of_everything_has_no_surroundings():
    source, swapped = noise(1, 32, 32, 3), noise(1, 32, 32, 3, seed=1)
    found = composite_swap(source, swapped, torch.ones(1, 32, 32), 0, 1.0, "surroundings")
    assert torch.allclose(found, swapped, rtol=0, atol=1e-6)


@pytest.mark.parametrize("source, images, mask, words", [
    ((5, 32, 32, 3), (0, 32, 32, 3), (1, 32, 32), r"images must have the shape .*, but has \[0, 32, 32, 3\]"),
    ((4, 32, 32, 3), (5, 32, 32, 3), (5, 32, 32), r"the source is \[4, 32, 32\]"),
    ((5, 32, 32, 3), (5, 48, 32, 3), (5, 48, 32), "must fit into it"),
    ((5, 32, 32, 3), (5, 32, 32, 3), (5, 16, 32), r"mask must be of the .*, but is \[5, 16, 32\]"),
    ((5, 32, 32, 3), (5, 32, 32, 3), (3, 32, 32), r"mask must be of the .*, but is \[3, 32, 32\]")])
def test_what_cannot_be_composited(source, images, mask, words):
    with pytest.raises(UserError, match=words):
        composite_swap(torch.zeros(source), torch.zeros(images), torch.zeros(mask), 0, 0.0, "surroundings")
