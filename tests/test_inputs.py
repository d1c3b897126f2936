"""Whatever comes into a node: results in order, or one sentence; never an error of a library, never nonsense."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_api.latest import io
from hypothesis import given
from hypothesis import strategies as st

import tiny
from examples import examples
from standin_core.controls import MOST_STRENGTH, Controls, parse_schedule, strength_at
from standin_core.errors import UserError
from standin_core.face import FaceSettings, crop_faces
from standin_core.face_swap import COLOR_REGIONS, composite_swap
from standin_core.person import PersonSettings, make_person
from standin_core.stand_in.apply import apply_reference
from standin_core.stand_in.attention_map import AttentionMap, show_map
from standin_core.stand_in.wrappers import installed
from support import pack

NUMBERS = (io.Int.Input, io.Float.Input)
LONGEST_SENTENCE = 1500


def widgets():
    """Every widget of every node: (node, whether it takes lists, input)."""
    for node in pack.node_classes().values():
        schema = node.GET_SCHEMA()
        for each in schema.inputs:
            # the file of a Load node is looked up instead
            if isinstance(each, (*NUMBERS, io.String.Input, io.Boolean.Input)) or type(each) is io.Combo.Input:
                yield node, schema.is_input_list, each


@pytest.fixture(scope="module")
def all_widgets():
    """Loaded before an example's time is taken."""
    return list(widgets())


def test_every_number_has_both_ends(all_widgets):
    for node, _, each in all_widgets:
        assert not isinstance(each, NUMBERS) or None not in (each.min, each.max), (node, each.id)


def beyond(widget):
    """Values that the widget itself would not let a user type."""
    nothing = st.nothing() if widget.optional else st.none()
    if not isinstance(widget, NUMBERS):
        return nothing | st.integers() | st.just(["auto"]) | (
            st.text().filter(lambda text: text not in widget.options) if isinstance(widget, io.Combo.Input)
            else st.floats())
    above = st.integers(min_value=math.floor(widget.max) + 1) | st.just(math.inf)
    below = st.integers(max_value=math.ceil(widget.min) - 1) | st.just(-math.inf)
    return nothing | above | below | st.just(math.nan) | st.text() | st.booleans()


def test_numbers_of_numpy_become_pythons():
    """JSON has no others, so a run's report would end in an error after the last step."""
    class Numbers(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Numbers", inputs=[io.Int.Input("count", min=0, max=9),
                                                        io.Float.Input("share", min=0.0, max=1.0)])

        @classmethod
        @pack.module("nodes.shared").checked
        def execute(cls, **inputs):
            return json.dumps(inputs)

    assert Numbers.execute(count=np.int64(3), share=np.float32(0.5)) == '{"count": 3, "share": 0.5}'


@given(st.data())
@examples("widgets beyond their ends", 200, 10_000)
def test_no_bound_is_only_in_the_widget(all_widgets, data):
    """What comes through a link passes the widget by. The value is refused before any other input is asked for."""
    node, takes_lists, widget = data.draw(st.sampled_from(all_widgets))
    value = data.draw(beyond(widget))
    of_the_pack = pack.module("standin_core.errors").UserError  # which ComfyUI loads under another name
    with pytest.raises(of_the_pack, match=f"^{widget.id} must be .*, but is") as error:
        node.execute(**{widget.id: [value] if takes_lists else value})
    assert len(str(error.value)) < LONGEST_SENTENCE


@pytest.mark.parametrize("value", [5, None, ["a.safetensors"], b"a.safetensors"], ids=str)
def test_a_file_is_named_by_a_text(value):
    """Anything may come through a link."""
    of_the_pack, found = pack.module("standin_core.errors").UserError, 0
    for node in pack.node_classes().values():
        for widget in node.GET_SCHEMA().inputs:
            if isinstance(widget, io.Combo.Input) and type(widget) is not io.Combo.Input:
                with pytest.raises(of_the_pack, match=f"^{widget.id} must be a text, but is of type "
                                                      f"{type(value).__name__}"):
                    node.execute(**{widget.id: value})
                found += 1
    assert found >= 4


FOREIGN = [None, {}, [{}], "a text", 1.0, torch.zeros(1), Path("data"), object()]


def test_what_another_pack_puts_into_a_socket_of_ours():
    """ComfyUI compares the names of types alone, and any node may claim to make one."""
    of_comfyui = {each.io_type for each in vars(io).values() if hasattr(each, "io_type")}
    schemas = [(node, node.GET_SCHEMA()) for node in pack.node_classes().values()]
    makers = {}
    for _, schema in schemas:
        for output in schema.outputs:
            if output.get_io_type() not in of_comfyui:
                makers.setdefault(output.get_io_type(), []).append((output.id, schema.display_name))
    refused = set()
    for node, schema in schemas:
        for socket in schema.inputs:
            for value in FOREIGN if socket.get_io_type() in makers else ():
                if socket.optional and value is None:
                    continue
                with pytest.raises(pack.module("standin_core.errors").UserError) as error:
                    node.execute(**{socket.id: value})
                assert str(error.value).startswith(f"{socket.id} must be the output ")
                assert f"but is of type {type(value).__name__}" in str(error.value)
                for output, name in makers[socket.get_io_type()]:
                    assert name in str(error.value) and output in str(error.value)
                refused.add(socket.get_io_type())
    assert refused == set(makers) and len(refused) == 8


def test_best_of_n_takes_one_of_what_is_single(all_widgets):
    """It takes lists for the sake of the videos."""
    node, picture = pack.node_classes()["BestOfN"], torch.rand(1, 32, 32, 3)
    given = {"images": [picture], "reference_image": [picture], "clip_vision": [None]}
    given |= {each.id: [each.options[0] if isinstance(each, io.Combo.Input) else each.default]
              for found, _, each in all_widgets if found is node and each.id != "seeds"}
    of_the_pack = pack.module("standin_core.errors").UserError
    for name in given.keys() - {"images"}:
        with pytest.raises(of_the_pack, match=f"^{name} must be one value, but 2 came"):
            node.execute(**{**given, name: 2 * given[name]})


SIDES = st.sampled_from([0, 1, 2, 15, 16, 17, 32, 48])
VALUES = st.sampled_from(["photo", "photo", "photo", "plain", "nan", "inf", "of 255", "overshooting"])


@st.composite
def pictures(draw, channels=(3, 3, 3, 4, 1, 0, 2, 5), sides=SIDES):
    return filled(draw, [draw(st.integers(0, 3)), draw(sides), draw(sides), draw(st.sampled_from(channels))])


@st.composite
def masks(draw):
    shape = [draw(st.integers(0, 3)), draw(SIDES), draw(SIDES)]
    return filled(draw, draw(st.sampled_from([shape, shape, shape[1:], [shape[0], 1, *shape[1:]], [5], []])))


def filled(draw, shape):
    values, what = torch.rand(shape, generator=torch.Generator().manual_seed(0)), draw(VALUES)
    if what == "plain":
        values.fill_(0.5)
    elif what in ("nan", "inf") and values.numel():
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = float(what)
    elif what in ("of 255", "overshooting"):
        values = values * (255 if what == "of 255" else 1.2) - 0.1
    return values.to(draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.float64, torch.bool])))


SIDE = st.integers(-100, 100) | st.floats() | st.none() | st.sampled_from([10**9, 10**400, -10**400])
BOX = st.fixed_dictionaries({"x": SIDE, "y": SIDE, "width": SIDE, "height": SIDE}, optional={"score": SIDE}) | (
    st.fixed_dictionaries({"x": st.integers(0, 20), "y": st.integers(0, 20), "width": st.integers(1, 40),
                           "height": st.integers(1, 40)}))
BOXES = BOX | st.lists(BOX, max_size=2) | st.lists(st.lists(BOX, max_size=2), max_size=3) | st.text() | st.integers()
GIVEN = (st.just({}) | st.fixed_dictionaries({"face_box": BOXES}) | st.fixed_dictionaries({"face_mask": masks()})
         | st.fixed_dictionaries({"subject_mask": masks()}))


def or_refused(work):
    """What it returns, or None where it refuses in a sentence."""
    try:
        return work()
    except UserError as error:
        assert len(str(error)) < LONGEST_SENTENCE and str(error).isprintable()


def assert_pictures(*found):
    for each in found:
        assert each.numel() and bool(torch.isfinite(each).all()) and each.min() >= 0 and each.max() <= 1


@given(pictures(), GIVEN, st.sampled_from(["Stand-In inference", "Concat-ID"]), st.booleans(),
       st.sampled_from(["white", "rgb(300,300,300)", "#12", "hsl(1e9,5%,5%)", "preset"]))
@examples("photos into a face crop", 100, 10_000)
def test_photos(image, given_faces, preset, balance, background):
    crop = or_refused(lambda: crop_faces(image, FaceSettings(
        preset=preset, detector="none", parser="none", no_face="whole image", size=64, balance_colors=balance,
        background=background), **given_faces))
    if crop is not None:
        assert_pictures(crop.image, crop.rgba, crop.preview)
        assert "nan" not in crop.verdict


SOMETHING = st.none() | st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=3)
NUMBER = st.integers(-100, 100) | st.floats() | st.sampled_from([1e308, -1e308, 10**400])
MESH = SOMETHING | st.builds(lambda count, number: [[number, 5]] * count, st.sampled_from([3, 400, 478]), NUMBER)
FOUND = SOMETHING | st.fixed_dictionaries(
    {}, optional={"landmarks_xy": MESH, "bbox_xyxy": SOMETHING | st.lists(NUMBER, min_size=4, max_size=4),
                  "score": SOMETHING | NUMBER}) | st.fixed_dictionaries(
    {"landmarks_xy": MESH, "bbox_xyxy": st.just([2, 2, 30, 30]), "score": NUMBER})
LANDMARKS = SOMETHING | st.fixed_dictionaries({
    "frames": SOMETHING | st.lists(SOMETHING | st.lists(FOUND, max_size=2), max_size=2),
    "image_size": st.just((32, 48)) | st.just((32, 48)) | SOMETHING | st.tuples(SOMETHING, SOMETHING)})


@given(LANDMARKS.filter(lambda landmarks: landmarks is not None), st.sampled_from(["Stand-In inference", "Concat-ID"]),
       st.booleans())
@examples("landmarks of any kind into a face crop", 60, 2000)
def test_landmarks(landmarks, preset, level):
    crop = or_refused(lambda: crop_faces(torch.rand(1, 32, 48, 3), FaceSettings(
        preset=preset, parser="none", no_face="whole image", size=64,
        level_eyes=level and preset == "Stand-In inference"), face_landmarks=landmarks))
    if crop is not None:
        assert_pictures(crop.image, crop.rgba, crop.preview)
        assert "nan" not in crop.verdict


POINT = st.tuples(st.floats(0, 1) | NUMBER, st.floats(0, 2) | NUMBER)
POINTS = st.text() | st.lists(POINT, max_size=4).map(
    lambda points: ", ".join(f"{percent}:{factor}" for percent, factor in sorted(points)))


@given(POINTS, st.sampled_from([0.0, 0.05, 1.0, 10.0]), st.floats(0, 1))
@examples("schedules of the strength", 300, 10_000)
def test_schedules(text, strength, sigma):
    controls = or_refused(lambda: Controls(strength=strength, schedule=parse_schedule(text)))
    if controls is not None:
        found = strength_at(controls, lambda percent: 1 - percent, torch.tensor([sigma]))
        assert 0 <= found <= strength * MOST_STRENGTH * (1 + 1e-9)


@pytest.mark.parametrize("shape", [[], [16], [1, 16, 8, 8], [1, 16, 1, 0, 8]])
def test_a_person_for_a_video_that_is_none(shape):
    """Refused before the photo, in which there is nobody."""
    with pytest.raises(UserError, match=r"^latent must (have the shape of a video|hold .* no side of 0)"):
        make_person("anna", torch.zeros(1, 64, 64, 3), PersonSettings(detector="cascade"), vae=tiny,
                    video={"samples": torch.zeros(shape)})


@given(pictures(), pictures(), masks(), st.integers(0, 20), st.sampled_from([0.0, 0.5, 1.0]),
       st.sampled_from(COLOR_REGIONS), st.booleans())
@examples("frames into a composite", 100, 5000)
def test_composites(source, images, mask, feather, color_match, region, fitting):
    if fitting:  # or few would get beyond the sizes
        source, mask = source.expand(3, -1, -1, -1) if len(source) == 1 else source, mask.new_ones(images.shape[:3])
        images = source[:, 1:-1, 1:-1] if min(source.shape[:3]) > 2 else source
        mask = torch.ones(images.shape[:3])
    found = or_refused(lambda: composite_swap(source, images, mask, feather, color_match, region))
    if found is not None:
        assert_pictures(found)


@given(pictures(), st.integers(0, 1), st.floats(0, 1), st.integers(0, 3))
@examples("frames into an attention map", 50, 2000)
def test_attention_maps(images, person, opacity, trim_latent):
    maps = [AttentionMap(torch.rand(1, 4, 2, 3, 4), 2)]
    found = or_refused(lambda: show_map(images, maps, opacity, person, trim_latent=trim_latent))
    if found is not None:
        assert_pictures(*found[:2])


@given(st.sampled_from([[1, 16, 1, 8, 8], [1, 16, 1, 8, 8], [2, 16, 4, 6], [0, 16, 1, 8, 8], [1, 16, 2, 8, 8],
                        [1, 48, 1, 8, 8], [1, 16, 1, 1, 1], [16], []]), st.none() | masks(), st.none() | masks(),
       st.data())
@examples("references of a model", 60, 2000)
def test_references(model, shape, mask, region, data):
    latent = {"samples": filled(data.draw, shape)}
    found = or_refused(lambda: apply_reference(model, tiny.adapter(), None, None, latent, mask, region=region))
    if found is not None:
        (identity,) = installed(found).identities
        assert bool(torch.isfinite(identity.reference_latent).all())
        assert identity.region is None or identity.region.ndim == 3
