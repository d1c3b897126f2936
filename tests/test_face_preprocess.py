"""A photo through the whole face stage: what comes out for good photos, for odd ones, and for each setting."""
import cv2
import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st

import faces
from examples import examples
from standin_core.errors import UserError
from standin_core.face import PRESETS, FaceSettings, crop_faces
from standin_core.face.detectors import Face
from standin_core.face.geometry import square_around
from standin_core.face.parsing import KEPT_LABELS
from standin_core.face.quality import BLURRED, SMALL_SHARE, TURNED_DEGREES, assess, pose

pytestmark = pytest.mark.usefixtures("models_dir")


def test_a_photograph():
    photo = faces.astronaut()
    crop = faces.crop(photo)
    assert crop.image.shape == (1, 512, 512, 3) and crop.image.dtype == torch.float32
    assert crop.rgba.shape == (1, 512, 512, 4) and bool((crop.rgba[..., 3] == 1).all())
    assert torch.equal(crop.rgba[..., :3], crop.image)
    assert crop.preview.shape == (1, 512, 512, 3)
    verdict, *notes = crop.verdict.splitlines()
    assert "% of the photo's height" in verdict and "by cascade: cropped 1.5x, background kept" in verdict
    assert [note.partition(" not used")[0] for note in notes] == [
        "retinaface", "insightface", "yunet", "bisenet"]
    (face,) = crop.faces
    assert not face.measured and not face.cut_out
    left, top, right, bottom = faces.FACE_BOX
    side = 1.5 * (bottom - top)
    by_eye = (faces.KEYPOINTS - ((left + right - side) / 2, (top + bottom - side) / 2)) * 512 / side
    # the cascade's box lies within 0.15 of the face's side of the one drawn by eye, and the crop is 1.5 sides wide
    assert np.abs(face.points - by_eye).max() < 0.15 / 1.5 * 512


def box(left, top, right, bottom):
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


HER = {"face_box": box(*faces.FACE_BOX)}


def halved(picture):
    """Every 2x2 pixels to their mean, as OpenCV rounds it."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    sums = picture.astype(int).reshape(height, 2, width, 2, 3).sum(axis=(1, 3))
    return ((sums + 2) // 4).astype(np.uint8)


@pytest.mark.parametrize("preset, half", [("Stand-In inference", 76), ("Stand-In ComfyUI preprocessor", 76),
                                          ("face only", 76), ("head and shoulders", 127)])
def test_presets_set_the_geometry(preset, half):
    """1.5 and 2.5 times the 102 px of her face, cut by hand around its middle and halved."""
    photo = faces.astronaut()
    crop = faces.crop(photo, given=HER, preset=preset, parser="none", size=half if half > 100 else 2 * half)
    region = np.full((2 * half, 2 * half, 3), 255, np.uint8)
    x, y = (182 + 271) // 2, (77 + 179) // 2
    inside = photo[max(y - half, 0):y + half, max(x - half, 0):x + half]
    top = (2 * half - inside.shape[0]) // 2  # what lies above the photo is padded on both sides, as the authors do
    region[top:top + inside.shape[0]] = inside
    assert np.array_equal(faces.as_uint8(crop.image[0]), halved(region) if half > 100 else region)


@pytest.mark.parametrize("preset, whole", [("Stand-In inference", False), ("Stand-In ComfyUI preprocessor", True)])
def test_a_face_at_the_border(preset, whole):
    """The one crops it; the other pads the whole photo, here of 256x128, to a square."""
    photo = np.ascontiguousarray(faces.astronaut()[60:188, 178:434])
    crop = faces.crop(photo, given={"face_box": box(4, 17, 93, 119)}, preset=preset, parser="none", size=128)
    if whole:
        padded = np.full((256, 256, 3), 255, np.uint8)
        padded[64:192] = photo
        assert np.array_equal(faces.as_uint8(crop.image[0]), halved(padded))
    assert ("the whole image" in crop.verdict) is whole


def by_the_authors(photo, box, size, near):
    """The square of both published preprocessors, written out.

    near: ``any`` or ``all`` of the borders, near which the photo stays whole.
    """
    height, width = photo.shape[:2]
    left, top, right, bottom = (int(edge) for edge in box)
    if not near((left <= 10, top <= 10, right >= width - 10, bottom >= height - 10)):
        x, y, half = (left + right) // 2, (top + bottom) // 2, int(1.5 * max(right - left, bottom - top)) // 2
        photo = photo[max(y - half, 0):min(y + half, height), max(x - half, 0):min(x + half, width)]
    height, width = photo.shape[:2]
    square = np.full((max(height, width), max(height, width), 3), 255, np.uint8)
    top, left = (len(square) - height) // 2, (len(square) - width) // 2
    square[top:top + height, left:left + width] = photo
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)


AUTHORS = [("Stand-In inference", all), ("Stand-In ComfyUI preprocessor", any)]


@given(height=st.integers(20, 90), width=st.integers(20, 90), x=st.floats(0, 1), y=st.floats(0, 1),
       box_width=st.floats(3, 120), box_height=st.floats(3, 120), size=st.integers(16, 80),
       authors=st.sampled_from(AUTHORS))
@examples("boxes, as the authors crop them", 40, 800)
def test_any_box_is_cropped_as_the_authors_crop_it(height, width, x, y, box_width, box_height, size, authors):
    """Bit for bit, also where the box has broken edges, reaches out of the photo or lies at its border, and where
    interpolation mixes the photo with its padding."""
    preset, near = authors
    photo = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    left, top = x * (width - 1) - box_width / 2, y * (height - 1) - box_height / 2
    crop = faces.crop(photo, given={"face_box": box(left, top, left + box_width, top + box_height)}, preset=preset,
                      parser="none", size=size)
    # the node adds width and height to x and y again
    edges = left, top, left + ((left + box_width) - left), top + ((top + box_height) - top)
    expected = by_the_authors(photo, edges, size, near)
    assert np.array_equal(faces.as_uint8(crop.image[0]), expected)
    assert np.array_equal(faces.as_uint8(crop.rgba[0, ..., :3]), expected)


def test_a_box_without_end_is_the_whole_photo():
    crop = faces.crop(BRICK, given={"face_box": box(-4e11, -4e11, 4e11, 4e11)}, parser="none", size=64)
    assert torch.equal(crop.image, faces.crop(BRICK, detector="none", parser="none", size=64).image)


@pytest.mark.parametrize("preset, near, normalization, dropped", [
    (*AUTHORS[0], "0.5", {0}), (*AUTHORS[1], "imagenet", {0, 14, 15, 16, 18})])
def test_labels_decide_in_the_padding_too(models_dir, preset, near, normalization, dropped):
    """As by the authors: the box reaches out of the photo to the right, so that the crop is padded by a third."""
    put_bisenet(models_dir)
    photo, edges = faces.astronaut()[:, :240], (150, 60, 300, 190)
    expected = by_the_authors(photo, edges, 512, near)
    kept = ~np.isin(labels_by_hand(expected, *NORMALIZATIONS[normalization]), list(dropped))
    crop = faces.crop(np.ascontiguousarray(photo), given={"face_box": box(*edges)}, preset=preset)
    assert kept[:, :20].any() and kept[:, -20:].any() and not kept.all()
    assert np.array_equal(crop.rgba[0, ..., 3].numpy() == 1, kept)
    assert np.array_equal(faces.as_uint8(crop.image[0]), np.where(kept[..., None], expected, 255))


def test_the_published_preprocessors():
    """What each was read to do: scale, border rule, normalization, and the labels it drops."""
    inference, preprocessor = (FaceSettings(preset=name).resolved()
                               for name in ("Stand-In inference", "Stand-In ComfyUI preprocessor"))
    for preset, expected in ((inference, (1.5, "all sides", "0.5")), (preprocessor, (1.5, "any side", "imagenet"))):
        assert (preset.crop_scale, preset.border_rule, preset.normalization) == expected
    assert set(KEPT_LABELS[inference.keep]) == set(range(1, 19))
    assert set(range(19)) - set(KEPT_LABELS[preprocessor.keep]) == {0, 14, 15, 16, 18}
    assert set(range(19)) - set(KEPT_LABELS["face"]) == {0, 14, 15, 16, 17, 18}
    assert next(iter(PRESETS)) == FaceSettings().preset == "Stand-In inference"


def test_every_value_of_a_preset_can_be_set():
    changed = FaceSettings(preset="face only", crop_scale=2.0, border_rule="any side", keep="head with hat",
                           normalization="imagenet").resolved()
    assert (changed.crop_scale, changed.border_rule, changed.keep, changed.normalization) == (
        2.0, "any side", "head with hat", "imagenet")
    own = FaceSettings(preset="face only").resolved()
    assert (own.crop_scale, own.border_rule, own.keep, own.normalization) == (1.5, "all sides", "face", "0.5")


@pytest.mark.parametrize("preset, given, expected", [
    ("Stand-In inference", 1.2, 1.2), ("head and shoulders", 1.5, 2.5), ("head and shoulders", 3.0, 3.0)])
def test_the_crop_scale_is_the_users_but_for_a_preset_that_needs_more(preset, given, expected):
    assert FaceSettings(preset=preset, crop_scale=given).resolved().crop_scale == expected


def put_bisenet(models_dir):
    (models_dir / "facexlib").mkdir(exist_ok=True)
    torch.save(faces.bisenet_weights(), models_dir / "facexlib" / "parsing_bisenet.pth")


def labels_by_hand(crop: np.ndarray, mean, deviation) -> np.ndarray:
    """facexlib's BiSeNet on a crop, run here."""
    from facexlib.parsing.bisenet import BiSeNet

    network = BiSeNet(num_class=19)
    network.load_state_dict(faces.bisenet_weights())
    pixels = cv2.resize(crop, (512, 512), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1).astype(np.float32) / 255
    pixels = (pixels - np.array(mean, np.float32)[:, None, None]) / np.array(deviation, np.float32)[:, None, None]
    found = network.eval()(torch.from_numpy(pixels)[None])[0][0].argmax(dim=0).numpy().astype(np.uint8)
    return cv2.resize(found, crop.shape[:2], interpolation=cv2.INTER_NEAREST)


NORMALIZATIONS = {"0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
                  "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


@pytest.mark.parametrize("normalization, keep, dropped", [
    ("0.5", "all but background", {0}), ("imagenet", "face", {0, 14, 15, 16, 17, 18}),
    ("0.5", "face and hair", {0, 14, 15, 16, 18})])
def test_bisenet_removes_what_is_not_kept(models_dir, normalization, keep, dropped):
    """Random weights: the labels mean nothing, but each must be treated right."""
    put_bisenet(models_dir)
    photo = faces.astronaut()
    crop = faces.crop(photo, given=HER, size=256, background="grey", normalization=normalization, keep=keep)
    plain = square_around(faces.FACE_BOX, 512, 512, 1.5).cut(photo, 256, (128, 128, 128))
    kept = ~np.isin(labels_by_hand(plain, *NORMALIZATIONS[normalization]), list(dropped))
    assert 0 < kept.mean() < 1
    assert np.array_equal(crop.rgba[0, ..., 3].numpy() == 1, kept)
    assert np.array_equal(faces.as_uint8(crop.image[0]), np.where(kept[..., None], plain, 128))
    assert np.array_equal(faces.as_uint8(crop.rgba[0, ..., :3]), plain)
    assert f"{keep} kept by bisenet" in crop.verdict


def test_parts_cannot_be_dropped_without_bisenet():
    """auto falls back to keeping the background, and says so; a choice of parts does not fall back."""
    with pytest.raises(UserError, match=r"to keep face needs it: there is no parsing_bisenet\.pth"):
        faces.crop(faces.astronaut(), preset="face only")
    assert "background kept" in faces.crop(faces.astronaut(), preset="face only", parser="none", size=64).verdict


def test_progress_is_told():
    told = []
    crop_faces(faces.as_image(*[faces.astronaut()] * 3), FaceSettings(size=64), **HER, progress=lambda: told.append(1))
    assert len(told) == 3


DARK = 1.2  # sum of red, green and blue


def disc(height=512, width=512):
    rows, columns = np.mgrid[:height, :width]
    return torch.from_numpy(((columns - 226)**2 + (rows - 128)**2 < 60**2).astype(np.float32))


def test_a_mask_takes_the_place_of_the_parser(models_dir):
    put_bisenet(models_dir)
    photo = faces.astronaut()
    crop = faces.crop(photo, given={**HER, "subject_mask": disc()}, size=128, background="#0a141e")
    square = square_around(faces.FACE_BOX, 512, 512, 1.5)
    alpha = np.rint(255 * square.cut(disc().numpy(), 128, 0))
    assert np.array_equal(np.rint(crop.rgba[0, ..., 3].numpy() * 255), alpha)
    assert (faces.as_uint8(crop.image[0])[alpha == 0] == (10, 20, 30)).all()
    assert np.array_equal(faces.as_uint8(crop.image[0])[alpha == 255],
                          square.cut(photo, 128, (10, 20, 30))[alpha == 255])
    assert "background removed by subject_mask" in crop.verdict and crop.faces[0].cut_out


def test_the_mask_of_comfyuis_remove_background():
    """BiRefNet as ComfyUI loads it, on pictures of 128 px and with weights that are 0 but for one path through the
    network: it takes the sum of red, green and blue of each pixel, so that what is dark is the subject."""
    removal = pytest.importorskip("comfy.bg_removal_model", reason="this ComfyUI has no Remove Background")
    from comfy_extras.nodes_bg_removal import RemoveBackground

    known_by = {"bb.layers.1.blocks.0.attn.relative_position_index": torch.zeros(144, 144).long()}
    model = removal.load_background_removal_model(known_by)
    model.image_size = 128
    for weights in model.model.state_dict().values():
        weights.zero_()
    whole = model.model.decoder.ipt_blk1
    whole.conv1.weight[0, :, 1, 1] = 1
    whole.conv_out.weight[0, 0, 1, 1] = 1
    last = model.model.decoder.conv_out1[0]
    last.weight[0, -whole.conv_out.out_channels] = -100
    last.bias.fill_(100 * DARK)
    photo = faces.as_image(faces.astronaut())
    (mask,) = RemoveBackground.execute(model, photo).args
    crop = crop_faces(photo, FaceSettings(size=512), **HER, subject_mask=mask)
    square = square_around(faces.FACE_BOX, 512, 512, 1.5)
    brightness = square.cut(faces.astronaut().astype(np.float32).mean(axis=2) * 3 / 255, 512, 3)
    smooth = cv2.GaussianBlur(brightness, (0, 0), 9)
    found = faces.as_uint8(crop.image[0])
    assert (found[smooth > DARK + 0.5] == 255).mean() > 0.99 and crop.faces[0].cut_out
    kept = square.cut(faces.astronaut(), 512, (255, 255, 255))
    assert (found[smooth < DARK - 0.5] == kept[smooth < DARK - 0.5]).mean() > 0.99
    assert "background removed by subject_mask" in crop.verdict


def test_alpha_is_a_mask():
    photo = torch.cat((faces.as_image(faces.astronaut()), disc()[None, ..., None]), dim=-1)
    by_alpha = crop_faces(photo, FaceSettings(size=128), **HER)
    by_mask = faces.crop(faces.astronaut(), given={**HER, "subject_mask": disc()}, size=128)
    assert torch.equal(by_alpha.rgba, by_mask.rgba)
    assert "background removed by alpha" in by_alpha.verdict
    opaque = torch.cat((photo[..., :3], torch.ones(1, 512, 512, 1)), dim=-1)
    assert torch.equal(crop_faces(opaque, FaceSettings(size=128)).rgba, faces.crop(faces.astronaut(), size=128).rgba)


def test_alpha_and_the_parser_both_remove(models_dir):
    """A photo with rounded corners is still parsed; and a crop counts as cut out only if something went."""
    put_bisenet(models_dir)
    alpha = torch.ones(1, 512, 512, 1)
    alpha[:, :200, :200] = 0
    photo = torch.cat((faces.as_image(faces.astronaut()), alpha), dim=-1)
    both = crop_faces(photo, FaceSettings(size=128, keep="face"), **HER)
    parsed = faces.crop(faces.astronaut(), given=HER, size=128, keep="face")
    kept = square_around(faces.FACE_BOX, 512, 512, 1.5).cut(alpha[0, ..., 0].numpy(), 128, 0)
    assert torch.equal(both.rgba[..., 3] == 1, (parsed.rgba[..., 3] == 1) & torch.from_numpy(kept == 1))
    assert "face kept by bisenet, background removed by alpha" in both.verdict
    nearly = torch.cat((photo[..., :3], torch.full_like(alpha, 0.99)), dim=-1)
    assert not crop_faces(nearly, FaceSettings(size=128, parser="none"), **HER).faces[0].cut_out


@pytest.mark.parametrize("mask, words", [
    (torch.zeros(64, 64), r"subject_mask must be of the picture's size, \[1, 512, 512\] .*, but is \[1, 64, 64\]"),
    (torch.full((512, 512), float("nan")), "the values of subject_mask must be finite")])
def test_masks_that_cannot_be_used(mask, words):
    with pytest.raises(UserError, match=words):
        faces.crop(faces.astronaut(), given={"subject_mask": mask})


def test_alpha_that_is_no_number():
    photo = torch.cat((faces.as_image(faces.astronaut()), torch.zeros(1, 512, 512, 1)), dim=-1)
    photo[0, 0, 0, 3] = float("nan")
    with pytest.raises(UserError, match="the values of image must be finite"):
        crop_faces(photo, FaceSettings())


def test_feather_fades_inwards():
    """Nothing of the background comes in, the middle stays, and about that many pixels lie between."""
    given = {**HER, "subject_mask": disc()}
    hard = faces.crop(faces.astronaut(), given=given, size=512).rgba[0, ..., 3]
    soft = faces.crop(faces.astronaut(), given=given, size=512, feather=16).rgba[0, ..., 3]
    assert bool((soft <= hard).all())
    row = soft[256]
    edge = int((hard[256] > 0).nonzero()[0])
    assert row[edge] < 0.1 and row[edge + 24] > 0.99 and 0.3 < row[edge + 6] < 0.9


def test_eyes_are_levelled():
    photo, points = faces.turned(faces.astronaut(), 25)
    seen = {"face_landmarks": faces.landmarks([(points, 1.0)])}
    tilted = faces.crop(photo, given=seen, size=256).faces[0].points
    level = faces.crop(photo, given=seen, size=256, level_eyes=True)
    assert pose(tilted)[0] == pytest.approx(25 + pose(faces.KEYPOINTS)[0], abs=0.1)
    assert pose(level.faces[0].points)[0] == pytest.approx(0, abs=0.01)
    assert "turned by 27.6°" in level.verdict
    # the pixels went with the points: the eyes of the level crop look like those of the upright photo
    upright = faces.crop(faces.astronaut(), given={"face_landmarks": faces.landmarks([(faces.KEYPOINTS, 1.0)])},
                         size=256, level_eyes=True)
    for crop in (level, upright):
        x, y = np.rint(crop.faces[0].points[0]).astype(int)
        pupil = crop.image[0, y - 2:y + 3, x - 2:x + 3].mean()
        around = crop.image[0, y - 24:y + 25, x - 24:x + 25].mean()
        assert pupil < 0.75 * around


def test_levelling_needs_key_points():
    with pytest.raises(UserError, match="level_eyes needs key points"):
        faces.crop(faces.astronaut(), level_eyes=True)


def test_colours_are_balanced():
    """A yellow, dark copy of the photo comes out nearer to the balanced photo than it was to the photo."""
    photo = faces.astronaut()
    cast = (photo * np.array([0.6, 0.55, 0.35])).astype(np.uint8)
    plain, balanced, poor, mended = (faces.crop(each, given=HER, balance_colors=balance, size=128).image
                                     for each in (photo, cast) for balance in (False, True))
    assert (mended - balanced).abs().mean() < 0.3 * (poor - plain).abs().mean()


def side_by_side():
    photo = faces.astronaut()
    small = cv2.resize(photo, (400, 400), interpolation=cv2.INTER_AREA)
    both = np.full((512, 912, 3), 255, np.uint8)
    both[:, :512], both[:400, 512:] = photo, small
    return both


def test_all_faces_come_as_a_batch():
    both = side_by_side()
    crop = faces.crop(both, which_face="all", size=128)
    assert crop.image.shape == (2, 128, 128, 3) and len(crop.faces) == 2
    assert crop.preview.shape == (1, 512, 912, 3)
    assert crop.verdict.count("by cascade") == 2
    for index in (0, 1):
        one = faces.crop(both, which_face="from left", face_index=index, size=128)
        assert torch.equal(one.image[0], crop.image[index])
    assert torch.equal(faces.crop(both, size=128).image[0], crop.image[0])


def test_a_batch_of_photos():
    photo = faces.astronaut()
    crop = faces.crop(photo, np.ascontiguousarray(photo[:, ::-1]), size=128)
    assert crop.image.shape == (2, 128, 128, 3) and crop.preview.shape[0] == 2
    assert torch.equal(crop.image[:1], faces.crop(photo, size=128).image)


BRICK = np.ascontiguousarray(np.broadcast_to(skimage.data.brick()[:100, :200, None], (100, 200, 3)))


@pytest.mark.parametrize("detector", ["cascade", "none"])
@pytest.mark.parametrize("background, value", [("white", 255), ("grey", 128), ("#202020", 32)])
def test_without_a_face_the_whole_image_is_padded(detector, background, value):
    crop = faces.crop(BRICK, detector=detector, no_face="whole image", size=64, background=background)
    assert "the whole image, padded to a square" in crop.verdict
    assert crop.faces[0].points is None and not crop.faces[0].measured
    assert torch.all(crop.image[0, :16] == value / 255)
    assert crop.rgba[0, :16, :, 3].sum() == 0 and crop.rgba[0, 16:48, :, 3].min() == 1


def test_who_looks_for_no_face_gets_the_whole_image():
    assert "no detector: the whole image" in faces.crop(BRICK, detector="none", size=64).verdict


def test_without_a_face_an_error():
    with pytest.raises(UserError, match="no face was found by cascade in photo 2 of 2"):
        crop_faces(faces.as_image(cv2.resize(faces.astronaut(), (200, 200)), cv2.resize(BRICK, (200, 200))),
                   FaceSettings())


@pytest.mark.parametrize("image, words", [
    (torch.zeros(0, 8, 8, 3), "none of them 0"),
    (torch.zeros(1, 0, 8, 3), "none of them 0"),
    (torch.full((1, 8, 8, 3), float("nan")), "must be finite"),
    (torch.full((1, 8, 8, 3), float("inf")), "must be finite"),
    (torch.zeros(8, 8, 3), "must have the shape .number, height, width, channels."),
    (torch.zeros(1, 8, 8, 2), "with 1, 3 or 4 channels")])
def test_images_that_are_none(image, words):
    with pytest.raises(UserError, match=words):
        crop_faces(image, FaceSettings())


@pytest.mark.parametrize("background", ["", "whiter", "#12"])
def test_a_background_that_is_no_colour(background):
    with pytest.raises(UserError, match="must be the name of a colour"):
        faces.crop(faces.astronaut(), background=background)


def test_a_single_pixel():
    crop = faces.crop(np.full((1, 1, 3), 77, np.uint8), no_face="whole image", size=64)
    assert torch.all(crop.image == 77 / 255)


def test_one_channel_is_grey():
    grey = cv2.cvtColor(faces.astronaut(), cv2.COLOR_RGB2GRAY)[..., None]
    found = crop_faces(torch.from_numpy(grey).float()[None] / 255, FaceSettings(size=64))
    assert torch.equal(found.image, faces.crop(np.repeat(grey, 3, axis=-1), size=64).image)


def test_8k():
    photo = np.zeros((4320, 7680, 3), np.uint8)
    photo[:, :4320] = cv2.resize(faces.astronaut(), (4320, 4320), interpolation=cv2.INTER_LINEAR)
    crop = faces.crop(photo, size=256)
    assert "by cascade: cropped 1.5x" in crop.verdict and crop.image.shape == (1, 256, 256, 3)
    assert max(crop.preview.shape) == 1024


def test_values_beyond_one_are_clamped():
    image = faces.as_image(faces.astronaut()) * 3 - 1
    assert torch.equal(crop_faces(image, FaceSettings(size=64)).image,
                       crop_faces(image.clamp(0, 1), FaceSettings(size=64)).image)


shapes = st.tuples(st.integers(1, 90), st.integers(1, 90), st.sampled_from((1, 3, 4)))


@given(shape=shapes, size=st.integers(64, 160), seed=st.integers(0, 9),
       preset=st.sampled_from([name for name in PRESETS if not PRESETS[name].aligned]),
       level=st.booleans(), balance=st.booleans(), feather=st.integers(0, 40),
       edges=st.tuples(*[st.integers(-30, 120)] * 4))
@examples("photos and landmarks into a face crop", 60, 1200)
def test_any_photo_and_box_give_a_square_of_the_size(shape, size, seed, preset, level, balance, feather, edges):
    height, width, channels = shape
    image = torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(seed))
    x, y, w, h = edges
    points = np.array([[x, y], [x + w, y + h / 9], [x + w / 2, y + h / 2], [x, y + h], [x + w, y + h]], np.float64)
    found = crop_faces(image, FaceSettings(preset=preset, size=size, parser="none", level_eyes=level,
                                           balance_colors=balance, feather=feather, no_face="whole image"),
                       face_landmarks=faces.landmarks([(points, 1.0)], size=(height, width)))
    assert found.image.shape == (1, size, size, 3) and found.rgba.shape == (1, size, size, 4)
    for values in (found.image, found.rgba, found.preview):
        assert bool(torch.isfinite(values).all()) and values.min() >= 0 and values.max() <= 1
    assert found.faces[0].points is None or np.isfinite(found.faces[0].points).all()


def test_warnings_come_with_their_numbers():
    photo = faces.astronaut()
    assert "warning" not in faces.crop(photo, given=HER, size=64).verdict
    far = np.full((2048, 2048, 3), 255, np.uint8)
    far[:512, :512] = photo
    assert "warning: the face is 5 % of the photo's height, less than 10 %" in faces.crop(far, given=HER).verdict
    blurred = faces.crop(cv2.GaussianBlur(photo, (0, 0), 3), given=HER, size=64).verdict
    assert "warning: the face is blurred or too small for detail (sharpness 6, below 20)" in blurred
    profile = faces.KEYPOINTS.copy()
    profile[2, 0] = profile[1, 0] + 3  # the nose beyond the far eye
    turned = faces.crop(photo, given={"face_landmarks": faces.landmarks([(profile, 1.0)])}, size=64).verdict
    assert "warning: the face is turned by about" in turned and f"more than {TURNED_DEGREES:.0f}°" in turned


@pytest.mark.parametrize("yaw", [-60, -30, 0, 30, 60])
@pytest.mark.parametrize("roll", [-40, 0, 15])
def test_pose_of_a_model_head(yaw, roll):
    """MediaPipe's canonical face, turned in space and seen from far away."""
    eyes_and_nose = np.array([[-3.15, 2.62, 3.47], [3.15, 2.62, 3.47], [0, -1.13, 7.48]])
    y, r = np.radians(yaw), np.radians(roll)
    about_up = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    seen = (eyes_and_nose @ about_up.T)[:, :2] * (1, -1)  # rows of a picture go down
    in_plane = np.array([[np.cos(r), -np.sin(r)], [np.sin(r), np.cos(r)]])
    points = np.vstack((seen @ in_plane.T, np.zeros((2, 2))))
    found_roll, found_yaw = pose(points)
    assert found_roll == pytest.approx(roll, abs=0.1)
    assert found_yaw == pytest.approx(yaw, abs=0.1)


def test_bars_of_the_warnings():
    """The photograph is well on the good side of each."""
    quality = assess(faces.astronaut(), Face(faces.FACE_BOX, 1.0, faces.KEYPOINTS))
    assert quality.share > 1.5 * SMALL_SHARE
    assert quality.sharpness > 5 * BLURRED
    assert abs(quality.yaw) < TURNED_DEGREES / 3
    assert quality.warnings() == []


def test_the_preview_numbers_the_faces_as_face_index_counts_them():
    """0 at the left face and 1 at the right one, whatever order they were found in."""
    photo = np.full((200, 400, 3), 90, np.uint8)
    boxes = [box(300, 60, 350, 120), box(40, 60, 90, 120)]
    given = {"face_box": boxes}
    preview = faces.as_uint8(faces.crop(photo, given=given, which_face="from left", face_index=1, parser="none",
                                        crop_scale=1.0, size=64).preview[0])
    digits = []
    for digit in "01":
        picture = np.full((24, 24), 255, np.uint8)
        cv2.putText(picture, digit, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 0, 1, cv2.LINE_AA)
        digits.append(picture[5:20, 5:17])
    at_faces = [cv2.cvtColor(preview[55:85, left - 5:left + 25], cv2.COLOR_RGB2GRAY) for left in (40, 300)]
    alike = [[cv2.matchTemplate(place, digit, cv2.TM_CCOEFF_NORMED).max() for digit in digits] for place in at_faces]
    assert alike[0][0] > 0.9 > alike[0][1] and alike[1][1] > 0.9 > alike[1][0]
    assert (preview[120, 60:80] > 200).all()  # white: the left face was not chosen
    assert (preview[120, 320:340, 0] < 100).all()  # green


def test_the_preview_shows_what_was_found_and_kept():
    photo = faces.astronaut()
    crop = faces.crop(photo, given={"face_landmarks": faces.landmarks([(faces.KEYPOINTS, 1.0)]),
                                    "subject_mask": disc()}, size=256)
    preview = faces.as_uint8(crop.preview[0])
    assert (preview[300:, 300:] < 0.4 * photo[300:, 300:] + 2).all()  # dropped
    x, y = 226, 110
    assert np.array_equal(preview[y, x], photo[y, x])  # kept
    nose = preview[int(faces.KEYPOINTS[2, 1]), int(faces.KEYPOINTS[2, 0])].astype(int)
    assert nose[0] > nose[1] + 100  # red
    greens = (preview.astype(int)[..., 1] - preview.astype(int)[..., 0] > 100).sum()
    assert greens > 200  # the outline of the box
