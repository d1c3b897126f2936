"""The rules for what comes in: whatever comes, it is in order afterwards or refused with a sentence."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from standin_core.checks import (
    MOST_IN_LATENT,
    check_choice,
    check_number,
    checked_latent,
    checked_masks,
    checked_pictures,
    checked_size,
)
from standin_core.errors import UserError
from standin_core.folders import LONGEST_NAME, plain_name
from standin_core.words import LONGEST, shown

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int64,
          torch.bool, torch.complex64)
NUMBERS = st.integers() | st.floats() | st.integers(min_value=10**400, max_value=10**5000)
ANYTHING = st.none() | st.booleans() | NUMBERS | st.text() | st.lists(st.integers(), max_size=3)


@st.composite
def tensors(draw):
    """Any shape, dtype and layout, with any value in one place."""
    shape = draw(st.lists(st.integers(0, 5), max_size=5) | st.sampled_from([[2, 4, 5, 3], [1, 3, 4], [3, 4]]))
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    values = values * draw(st.sampled_from([1.0, 1.3, 255.0, 1e30])) - draw(st.sampled_from([0.0, 0.2, 9.0]))
    if values.numel() and draw(st.booleans()):
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(st.floats(width=32))
    values = values.to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(["plain", "plain", "plain", "turned", "with gradients", "sparse", "without data"]))
    if layout == "turned" and values.ndim > 1:
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "with gradients" and values.is_floating_point():
        with torch.inference_mode(False):
            return values.clone().requires_grad_()
    if layout == "sparse" and values.dtype == torch.float32:
        return values.to_sparse()
    return values.to("meta") if layout == "without data" else values


def or_refused(check, *arguments):
    """What a rule returns, or None where it refuses in a sentence of bounded length."""
    try:
        return check(*arguments)
    except UserError as error:
        assert " must " in str(error) and len(str(error)) < 4 * LONGEST and str(error).isprintable()


def assert_in_unit_range(values):
    assert values.dtype == torch.float32 and values.numel() and not values.requires_grad
    assert values.min() >= 0 and values.max() <= 1


@given(tensors() | ANYTHING)
@examples("the rule for pictures", 300, 10_000)
def test_pictures(came):
    pictures = or_refused(checked_pictures, came, "image")
    if pictures is not None:
        assert_in_unit_range(pictures)
        assert pictures.shape[:3] == came.shape[:3] and pictures.shape[3] == max(3, came.shape[3])
        expected = came.detach().double().clamp(0, 1).expand(pictures.shape)
        assert torch.allclose(pictures.double(), expected, rtol=0, atol=1e-7)


@given(tensors() | ANYTHING, st.none() | st.tuples(*[st.integers(1, 5)] * 3))
@examples("the rule for masks", 300, 10_000)
def test_masks(came, of):
    masks = or_refused(checked_masks, came, "mask", of)
    if masks is not None:
        assert_in_unit_range(masks)
        assert masks.ndim == 3 and masks.shape[-2:] == came.shape[-2:]
        assert of is None or tuple(masks.shape) in (of, (1, *of[1:]))
        assert torch.allclose(masks.double().flatten(), came.detach().double().clamp(0, 1).flatten(), rtol=0, atol=1e-7)


@given(st.fixed_dictionaries({"samples": tensors() | ANYTHING}) | ANYTHING)
@examples("the rule for latents", 200, 5000)
def test_latents(came):
    samples = or_refused(checked_latent, came, "latent")
    if samples is not None:
        assert samples.numel() and bool((samples.double().abs() <= MOST_IN_LATENT).all())


@given(st.fixed_dictionaries({"samples": tensors() | ANYTHING}) | ANYTHING)
@examples("the rule for the size of a video", 100, 5000)
def test_sizes(came):
    size = or_refused(checked_size, came, "latent")
    if size is not None:
        assert size == tuple(came["samples"].shape[-2:]) and 0 not in size and came["samples"].ndim == 5


def test_good_inputs_pass():
    """Or a rule that refuses everything would do for the tests above."""
    assert checked_pictures(torch.rand(2, 4, 5, 3), "image").shape == (2, 4, 5, 3)
    assert checked_pictures(torch.rand(2, 4, 5, 1), "image").shape == (2, 4, 5, 3)
    assert checked_masks(torch.rand(4, 5), "mask", (2, 4, 5)).shape == (1, 4, 5)
    assert checked_masks(torch.rand(2, 1, 4, 5), "mask", (2, 4, 5)).shape == (2, 4, 5)
    assert checked_latent({"samples": torch.rand(1, 16, 1, 2, 2)}, "latent").shape == (1, 16, 1, 2, 2)
    assert checked_size({"samples": torch.rand(1, 16, 3, 2, 4)}, "latent") == (2, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(value):
    values = torch.rand(2, 4, 5, 3)
    values[1, 3, 4, 2] = value
    for check, came in ((checked_pictures, values), (checked_masks, values[..., 2]),
                        (checked_latent, {"samples": values})):
        with pytest.raises(UserError, match=r"^the values of it must be finite"):
            check(came, "it")
    with pytest.raises(UserError, match=r"^it must be a finite number.*, but is "):
        check_number(value, "it")


@pytest.mark.parametrize("check, shape", [
    (checked_pictures, (0, 4, 5, 3)), (checked_pictures, (1, 0, 5, 3)), (checked_pictures, (1, 4, 5, 2)),
    (checked_pictures, (4, 5, 3)), (checked_masks, (0, 4, 5)), (checked_masks, (1, 2, 4, 5)), (checked_masks, (5,))])
def test_shapes_that_are_refused(check, shape):
    with pytest.raises(UserError, match=r"^it must have the shape \[number, height, width.*, but has \["):
        check(torch.rand(shape), "it")


def test_what_has_no_values_is_no_latent():
    with pytest.raises(UserError, match=r"^it must hold .* but has dtype float32 and shape \[1, 16, 0, 2\]"):
        checked_latent({"samples": torch.rand(1, 16, 0, 2)}, "it")


@pytest.mark.parametrize("mask", [(3, 4, 5), (2, 4, 4), (1, 5, 4)])
def test_a_mask_of_other_pictures(mask):
    with pytest.raises(UserError, match=r"^it must be of the picture's size, \[2, 4, 5\] \(number.*\), but is \["):
        checked_masks(torch.rand(mask), "it", (2, 4, 5))


@pytest.mark.parametrize("value, taken", [(-0.9, 0.0), (1.9, 1.0), (-1.1, None), (2.1, None), (255.0, None)])
def test_values_beyond_the_unit_range(value, taken):
    values = torch.full((1, 4, 5, 3), 0.5)
    values[0, 0, 0, 0] = value
    for check, came in ((checked_pictures, values), (checked_masks, values[..., 0])):
        if taken is not None:
            assert float(check(came, "it").flatten()[0]) == taken
            continue
        with pytest.raises(UserError, match="the values of it must lie between 0 and 1"):
            check(came, "it")


@pytest.mark.parametrize("value", [7e4, -7e4])
def test_latents_that_fp16_does_not_hold(value):
    with pytest.raises(UserError, match="the values of it must lie between -65504 and 65504"):
        checked_latent({"samples": torch.full((1, 16, 1, 2, 2), value)}, "it")


@pytest.mark.parametrize("odd, change", [("sparse", torch.Tensor.to_sparse), ("complex", lambda values: values + 0j),
                                         ("without data", lambda values: values.to("meta"))])
def test_tensors_that_are_no_plain_numbers(odd, change):
    for check, shape in ((checked_pictures, (1, 4, 5, 3)), (checked_masks, (1, 4, 5))):
        with pytest.raises(UserError, match=f"it must be .* of plain numbers, but is a tensor that is {odd}"):
            check(change(torch.rand(shape)), "it")


@given(ANYTHING, NUMBERS, NUMBERS, st.booleans(), st.booleans())
@examples("the rule for numbers", 300, 5000)
def test_numbers(came, low, high, included, whole):
    limits = {"least": low, "most": high} if included else {"above": low, "below": high}
    taken = or_refused(lambda: check_number(came, "strength", **limits, whole=whole) is None)
    is_number = isinstance(came, int if whole else int | float) and not isinstance(came, bool)
    within = is_number and (low <= came <= high if included else low < came < high)
    assert bool(taken) == (within and came not in (math.inf, -math.inf))


@pytest.mark.parametrize("limits, words", [
    ({"least": 0, "most": 1}, " from 0 to 1"), ({"least": 0}, " of at least 0"), ({"most": 1}, " of at most 1"),
    ({"above": 0}, " of more than 0"), ({"least": 0, "below": 1}, " of at least 0 and less than 1"), ({}, "")])
def test_the_limits_are_told(limits, words):
    with pytest.raises(UserError, match=rf"^it must be a finite number{words}, but is nan: so much\.$"):
        check_number(math.nan, "it", **limits, hint="so much")


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(1), 1, 0.5])
def test_numbers_of_other_kinds(value):
    check_number(value, "strength", 0, 1)


@given(ANYTHING)
@examples("the rule for choices", 50, 2000)
def test_choices(came):
    assert bool(or_refused(lambda: check_choice(came, "cache", ["auto", "fp8"]) is None)) == (came in ("auto", "fp8"))
    check_choice("fp8", "cache", ["auto", "fp8"])


@given(st.text(st.characters(codec=None), max_size=2 * LONGEST))
@examples("foreign texts in a sentence", 100, 2000)
def test_foreign_texts_fit_into_a_sentence(text):
    assert shown(text).isprintable() and len(shown(text).encode()) <= 10 * LONGEST + 3
    assert not text.isprintable() or len(text) > LONGEST or shown(text) == text


def test_a_long_foreign_text_is_cut_off():
    assert shown("é" * 10_000) == "é" * LONGEST + "..."


@pytest.mark.parametrize("name", [
    "", ".", "..", "a/b", "a\\b", "/a", "a\0b", "a\nb", "\ud800", " ", "a ", " a", "a.", "x" * 300,
    "é" * (LONGEST_NAME // 2 + 1), "CON", "nul.txt", "Com1", "lpt9.a.b", "a:b", "a*", "a?", '"a"', "<a>", "a|b"])
def test_names_that_not_every_platform_takes(name):
    with pytest.raises(UserError, match="must be one for a file, without folders"):
        plain_name(name)


@pytest.mark.parametrize("name", ["my_stand_in", "名前", "a b", "v1.2", "console", "a.con", "x" * LONGEST_NAME])
def test_names_that_every_platform_takes(name):
    assert plain_name(name) == name


@given(st.text(st.characters(codec=None), max_size=LONGEST_NAME + 20))
@examples("names of files", 200, 5000)
def test_a_name_that_passes_is_a_file_of_its_own(tmp_path_factory, name):
    taken = or_refused(plain_name, name)
    if taken is not None:
        folder = tmp_path_factory.mktemp("names")
        file = folder / f"{taken}.safetensors.part"
        file.touch()
        assert [each.name for each in folder.iterdir()] == [file.name]
        file.unlink()
