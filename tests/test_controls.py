"""The user's controls, each against what it says: on the tiny Wan, by arithmetic where there is some."""
import comfy.memory_management
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy_aimdo.model_vbar
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_easycache import EasyCacheNode

import tiny
from standin_core.controls import MOST_STRENGTH, kept_tokens, parse_schedule, query_bias, region_weights, strength_at
from standin_core.errors import UserError
from standin_core.stand_in.applied import Identity
from standin_core.stand_in.apply import apply_identity_branch, apply_reference, remove_identity_branch
from standin_core.stand_in.budget import cache_spec
from standin_core.stand_in.choices import chosen_cache
from standin_core.stand_in.kv_cache import CACHE_MODES
from standin_core.stand_in.stream import identity_layers
from standin_core.wan import Wan
from tolerances import WHOLE_RUN, assert_close, relative_rms


@pytest.fixture(scope="module")
def paper(model):
    return tiny.sample(tiny.with_identity(model))[0]


def run(model, **controls):
    return tiny.sample(tiny.with_identity(model, **controls))


# what fp8 costs in a whole run on the tiny model, in relative RMS: measured 0.0010, where the identity makes 0.063
FP8 = 0.002


@pytest.fixture(scope="module", params=[1.0, 0.4])
def resident(request, model):
    """A strength, and the video of it with K and V resident."""
    return request.param, run(model, strength=request.param, cache="resident")[0]


@pytest.mark.parametrize("mode", CACHE_MODES)
def test_every_cache_mode_gives_the_same_video(model, mode, resident):
    strength, expected = resident
    found, (report,) = run(model, strength=strength, cache=mode)
    assert report.cache == ("resident" if mode == "auto" else mode)
    if mode == "fp8":
        assert 0 < relative_rms(found, expected) < FP8
    else:
        assert torch.equal(found, expected)
    assert report.reads == tiny.STEPS * tiny.WAN.blocks


@pytest.mark.parametrize("free, mode", [(2.0, "resident"), (1.99, "offloaded")])
def test_auto_takes_what_fits(model, free, mode):
    """Resident while half of the free memory holds it; no card is asked, the figures are."""
    spec = cache_spec(identity(), Wan(model.model), 1)
    needed = 2 * 32 * tiny.WAN.dim * 4 * tiny.WAN.blocks
    assert chosen_cache("auto", [spec], torch.device("cuda"), free * needed) == mode


@pytest.mark.parametrize("dynamic", [False, True])
def test_weights_that_may_go_are_free_memory(model, monkeypatch, dynamic):
    """With DynamicVRAM, ComfyUI gives the memory of weights to whoever needs it."""
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 1000)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", dynamic)
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbars_analyze", lambda *_: 234)
    monkeypatch.setattr(model.model, "current_patcher", model)
    assert Wan(model.model).free_memory(torch.device("cuda", 0)) == (1234 if dynamic else 1000)


def test_fp8_is_refused_where_the_device_knows_none(model):
    spec = cache_spec(identity(), Wan(model.model), 1)
    with pytest.raises(UserError, match="does not know: set it to auto or offloaded"):
        chosen_cache("fp8", [spec], torch.device("mps"), 0)


def test_blocks(model, paper, plain):
    """Only the blocks of the range read; all of them is the default."""
    some, (report,) = run(model, first_block=1, last_block=2)
    assert report.reads == 2 * tiny.STEPS
    assert not torch.equal(some, paper) and not torch.equal(some, plain)
    assert torch.equal(run(model, first_block=0, last_block=tiny.WAN.blocks - 1)[0], paper)
    assert torch.equal(run(model, last_block=99)[0], paper)
    with pytest.raises(UserError, match="the model has blocks 0 to 3, and 2 to 1 selects none of them"):
        tiny.with_identity(model, first_block=2, last_block=1)


SAMPLING = comfy.model_sampling.ModelSamplingDiscreteFlow()


def identity(**controls):
    return Identity(tiny.adapter(), tiny.random(1, 16, 1, 8, 16), **controls)


def test_schedule_is_linear_between_its_points():
    """On a schedule without shift, percent p is at sigma 1 - p."""
    scheduled = identity(strength=2.0, schedule=((0.2, 0.5), (0.6, 1.5)))
    for percent, factor in ((0.0, 0.5), (0.2, 0.5), (0.3, 0.75), (0.4, 1.0), (0.6, 1.5), (0.9, 1.5)):
        found = strength_at(scheduled, SAMPLING.percent_to_sigma, torch.tensor([1 - percent]))
        assert found == pytest.approx(2 * factor, rel=1e-5)


def test_schedule_within_start_and_end():
    scheduled = identity(schedule=((0.0, 0.5),), start_percent=0.3, end_percent=0.7)
    found = [strength_at(scheduled, SAMPLING.percent_to_sigma, torch.tensor([sigma])) for sigma in (0.9, 0.5, 0.1)]
    assert found == [0, 0.5, 0]


def test_a_constant_schedule_is_a_strength(model, paper):
    half = run(model, strength=0.5)[0]
    assert torch.equal(run(model, schedule=((0.0, 0.5), (1.0, 0.5)))[0], half)
    ramp = run(model, schedule=((0.0, 0.2), (1.0, 1.0)))[0]
    assert not torch.equal(ramp, half) and not torch.equal(ramp, paper)


def test_a_schedule_of_zeros_is_the_base_model(model, plain):
    found, (report,) = run(model, schedule=((0.0, 0.0),))
    assert torch.equal(found, plain) and report.identity_calls == 0


@pytest.mark.parametrize("text, points", [("", ()), ("0:0.5", ((0, 0.5),)), (" 0 : 0, 0.25:1 ,1:2", (
    (0, 0), (0.25, 1), (1, 2)))])
def test_parse_schedule(text, points):
    assert parse_schedule(text) == points


def test_the_most_of_strength_and_schedule_is_a_number(model):
    """Beyond it the product could be infinite, and the video NaN."""
    found, _ = run(model, strength=MOST_STRENGTH, schedule=((0.0, MOST_STRENGTH),))
    assert bool(torch.isfinite(found).all())
    with pytest.raises(UserError, match="strength must be a finite number from 0 to 1000, but is 1001"):
        identity(strength=1001.0)


@pytest.mark.parametrize("text", ["0.5", "a:1", "0:1:2", "0:"])
def test_a_schedule_that_cannot_be_read(text):
    with pytest.raises(UserError, match="must be percent:factor"):
        parse_schedule(text)


@pytest.mark.parametrize("schedule", [((0.5, 1), (0.2, 1)), ((0.5, 1), (0.5, 2)), ((0.0, -1),), ((0, 0), (20, 1)),
                                      ((0.0, float("nan")),), ((0.0, float("inf")),), ((0.0, 1e308),)])
def test_a_schedule_that_makes_no_sense(schedule):
    with pytest.raises(UserError, match="must be rising percents"):
        identity(schedule=schedule)


def one_step(model, positive, negative=None, cfg=1.0):
    """One step from pure noise to sigma 0 gives the guided prediction itself."""
    return tiny.sample(model, positive=positive, negative=negative, cfg=cfg, steps=1)[0]


POSITIVE, NEGATIVE = tiny.prompt(), tiny.prompt(seed=3)


@pytest.fixture(scope="module")
def predictions(model):
    """The prediction of each prompt, without and with the identity, one pass at a time."""
    patched = tiny.with_identity(model)
    return {(which, identity): one_step(patched if identity else model, prompt)
            for which, prompt in (("positive", POSITIVE), ("negative", NEGATIVE)) for identity in (False, True)}


def test_guidance_in_both_passes(model, predictions):
    """The paper: v = uncond + cfg (cond - uncond), the identity in both."""
    negative, positive = predictions["negative", True], predictions["positive", True]
    found = one_step(tiny.with_identity(model), POSITIVE, NEGATIVE, cfg=4.0)
    assert_close(found, negative + 4.0 * (positive - negative), WHOLE_RUN)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_guidance_in_the_positive_pass(model, predictions, strength):
    negative = predictions["negative", False]
    positive = one_step(tiny.with_identity(model, strength=strength), POSITIVE)
    found, both = (one_step(tiny.with_identity(model, guidance=guidance, strength=strength), POSITIVE, NEGATIVE, 4.0)
                   for guidance in ("positive pass", "both passes"))
    assert_close(found, negative + 4.0 * (positive - negative), WHOLE_RUN)
    assert relative_rms(found, both) > 0.01


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_of_its_own(model, predictions, scale, cfg):
    """D_0 + cfg (D_p - D_0) + s (D_i - D_p)."""
    negative, positive, identity = (predictions[key] for key in (("negative", False), ("positive", False),
                                                                  ("positive", True)))
    found = one_step(tiny.with_identity(model, guidance="own scale", guidance_scale=scale), POSITIVE, NEGATIVE, cfg=cfg)
    base = negative + cfg * (positive - negative)
    assert_close(found, base + scale * (identity - positive), WHOLE_RUN)


@pytest.mark.parametrize("controls", [{"strength": 0.0}, {"region": torch.zeros(1, 8, 12)}, {"end_percent": 0.01}],
                         ids=["strength 0", "no region", "one step"])
def test_a_scale_of_nothing_is_the_base_model(model, plain, controls):
    """Bit for bit where nothing reads, and without the pass that it would cost."""
    calls = []

    def counted(executor, *args, **kwargs):
        calls.append(len(args[0]))
        return executor(*args, **kwargs)

    patched = tiny.with_identity(model, guidance="own scale", guidance_scale=3.0, **controls)
    patched.add_wrapper_with_key("diffusion_model", "count", counted)
    found = tiny.sample(patched)[0]
    if "strength" in controls:
        assert torch.equal(found, plain) and len(calls) == tiny.STEPS
    elif "region" in controls:
        assert_close(found, plain, WHOLE_RUN)
    else:
        assert len(calls) == tiny.STEPS + 1


def test_guidance_of_its_own_beside_easy_cache(model):
    """EasyCache remembers by condition what it gave, and the pass without the identity is another condition to it. At a
    scale of cfg the result is the positive pass's, also in the steps that it skips.
    """
    def cached(**controls):
        patched = EasyCacheNode.execute(tiny.with_identity(model, **controls), 5.0, 0.15, 0.95, False).args[0]
        samples, (report,) = tiny.sample(patched, cfg=4.0, steps=8)
        assert 0 < report.reads < 8 * tiny.WAN.blocks
        return samples

    assert_close(cached(guidance="own scale", guidance_scale=4.0), cached(guidance="positive pass"), WHOLE_RUN)


@pytest.mark.parametrize("guidance", ["positive pass", "own scale"])
def test_a_guider_with_passes_of_its_own_is_refused(model, guidance):
    guider = Guider_DualCFG(tiny.with_identity(model, guidance=guidance))
    guider.set_conds(POSITIVE, POSITIVE, NEGATIVE)
    guider.set_cfg(4.0, 2.0)
    with pytest.raises(UserError, match="Guider_DualCFG makes other passes"):
        guider.sample(tiny.random(*tiny.LATENT), torch.zeros(tiny.LATENT), comfy.samplers.sampler_object("euler"),
                      torch.tensor([1.0, 0.0]))


def test_a_scale_of_its_own_needs_a_cfg(model):
    with pytest.raises(UserError, match="only with a cfg above 0"):
        one_step(tiny.with_identity(model, guidance="own scale"), POSITIVE, NEGATIVE, cfg=0.0)


def test_a_video_for_a_photo_is_refused(model):
    with pytest.raises(UserError, match="17 reference images came, at most 16"):
        apply_identity_branch(model, tiny.adapter(), torch.zeros(17, 16, 1, 4, 4))


def test_only_the_blocks_that_read_are_kept(model):
    expected, (report,) = run(model, first_block=1, last_block=2)
    assert report.cache_bytes == run(model)[1][0].cache_bytes * 2 // tiny.WAN.blocks
    for mode in ("offloaded", "streaming"):
        assert torch.equal(run(model, first_block=1, last_block=2, cache=mode)[0], expected)
    assert relative_rms(run(model, first_block=1, last_block=2, cache="fp8")[0], expected) < FP8


def test_the_guidance_function_goes_with_the_identity(model, plain):
    patched = tiny.with_identity(model, guidance="own scale", guidance_scale=2.0)
    twice = tiny.with_identity(patched, guidance="own scale", guidance_scale=2.0, seed=5)
    assert len(twice.model_options["sampler_pre_cfg_function"]) == 1
    assert torch.equal(tiny.sample(remove_identity_branch(patched))[0], plain)


def references(*seeds):
    return torch.cat([tiny.random(1, 16, 1, 8, 16, seed=seed) for seed in seeds])


def with_references(model, *seeds, **controls):
    return tiny.sample(apply_identity_branch(model, tiny.adapter(), references(*seeds), **controls))


def test_the_same_photo_twice_is_one(model, paper):
    """Normalised, their weights make one; not normalised, two."""
    found, (report,) = with_references(model, 1, 1, normalize_references=True)
    assert_close(found, paper, WHOLE_RUN)
    assert (report.identities[0].references, report.identities[0].tokens, report.builds) == (2, 64, 1)
    assert_close(with_references(model, 1, 1)[0], run(model, strength=2.0)[0], WHOLE_RUN)


def test_each_photo_goes_through_the_stream_alone(model):
    """K and V of every block are those of the photo by itself."""
    wan, (first, second) = Wan(model.model), (tiny.random(1, 16, 1, 8, 16, seed=seed) for seed in (1, 2))
    together = identity_layers(wan, torch.cat((first, second)), tiny.adapter())
    for (keys, values), *alone in zip(together, *(identity_layers(wan, each, tiny.adapter())
                                                  for each in (first, second)), strict=True):
        for index, (key, value) in enumerate(alone):
            assert_close(keys[index:index + 1], key)
            assert_close(values[index:index + 1], value)


def test_photos_do_not_see_each_other(model):
    """Their order does not matter, and another second photo gives another video."""
    one, other = (with_references(model, *seeds)[0] for seeds in ((1, 5), (5, 1)))
    assert_close(one, other, WHOLE_RUN)
    assert not torch.equal(one, with_references(model, 1, 6)[0])


def test_a_person_twice_at_half_the_strength_is_the_person(model, paper):
    half = tiny.with_identity(model, strength=0.5)
    found, (report,) = tiny.sample(tiny.with_identity(half, strength=0.5))
    assert_close(found, paper, WHOLE_RUN)
    assert len(report.identities) == 2 and report.builds == 2


def test_two_people(model, paper):
    """Both are read, in either order."""
    one = tiny.sample(tiny.with_identity(tiny.with_identity(model), seed=5))[0]
    other = tiny.sample(tiny.with_identity(tiny.with_identity(model, seed=5)))[0]
    assert_close(one, other, WHOLE_RUN)
    assert not torch.equal(one, paper) and not torch.equal(one, run(model, seed=5)[0])


@pytest.mark.parametrize("name, values", [("attention", ("merge", "auto")), ("cache", ("fp8", "resident")),
                                          ("guidance", ("positive pass", "both passes"))])
def test_what_a_run_has_once_must_agree(model, name, values):
    first, second = values
    with pytest.raises(UserError, match=f"{name} differs between the Apply Identity Branch nodes"):
        tiny.with_identity(tiny.with_identity(model, **{name: first}), **{name: second})


GRID = (3, 4, 6)  # of tiny.LATENT, in tokens


def test_region_weights_by_hand():
    region = torch.rand(9, 32, 48, generator=torch.Generator().manual_seed(0))
    found = region_weights(region, GRID).reshape(GRID)
    for t, frames in enumerate((slice(0, 1), slice(1, 5), slice(5, 9))):
        for y in range(4):
            for x in range(6):
                cell = region[frames, 8 * y:8 * y + 8, 8 * x:8 * x + 8].amax(dim=0)
                assert found[t, y, x] == pytest.approx(float(cell.mean()), rel=1e-5)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_numbers_of_masks(count):
    assert region_weights(torch.ones(count, 32, 48), GRID).tolist() == [1.0] * 72
    assert torch.equal(region_weights(torch.eye(48), GRID), region_weights(torch.eye(48)[None], GRID))


def test_another_number_of_masks():
    with pytest.raises(UserError, match=r"must have 1 mask, 3 \(one for each latent frame .* but has 5"):
        region_weights(torch.ones(5, 32, 48), GRID)


def test_a_region_of_everything_or_nothing(model, paper, plain):
    assert_close(run(model, region=torch.ones(1, 32, 48))[0], paper, WHOLE_RUN)
    assert torch.equal(run(model, region=torch.zeros(1, 32, 48))[0], plain)


def first_attention(model, **controls):
    """What the self-attention of the first block gives in the first call, [B, N, C]."""
    seen = []
    module = model.model.diffusion_model.blocks[0].self_attn
    handle = module.register_forward_hook(lambda *_: seen.append(_[-1].clone()))
    try:
        tiny.sample(tiny.with_identity(model, **controls), steps=1, cfg=1.0)
    finally:
        handle.remove()
    return seen[0]


def test_a_region_changes_nothing_outside_its_tokens(model):
    """In the first block, before anything can spread: bit for bit outside, the paper inside."""
    region = torch.zeros(1, 32, 48)
    region[:, 8:24, 16:40] = 1
    inside = region_weights(region, GRID).bool()
    base, everywhere, found = (first_attention(model, **controls) for controls in (
        {"strength": 0.0}, {"attention": "merge"}, {"region": region}))
    assert torch.equal(found[:, ~inside], base[:, ~inside])
    assert_close(found[:, inside], everywhere[:, inside], WHOLE_RUN)
    assert relative_rms(found[:, inside], base[:, inside]) > 0.01


def test_bias_of_everything_at_once():
    """Weights multiply: strength 2, half for each of two photos, a quarter of the region, and one of two passes."""
    both = Identity(tiny.adapter(), references(1, 2), normalize_references=True,
                          region=torch.full((1, 32, 48), 0.25))
    bias = query_bias(2.0, 2, region_weights(both.region, GRID), torch.tensor([True, False]), torch.device("cpu"))
    assert bias.shape == (2, 72)
    assert torch.allclose(bias[0].exp(), torch.tensor(0.25), rtol=1e-6)
    assert bool((bias[1] == -torch.inf).all())


@pytest.mark.parametrize("controls", [{"strength": 0.5}, {"schedule": ((0.0, 0.5),)}, {"region": torch.ones(1, 8, 8)},
                                      {"guidance": "positive pass"}], ids=str)
def test_concatenating_knows_one_weight(model, controls):
    with pytest.raises(UserError, match="attention is set to concatenate"):
        tiny.with_identity(model, attention="concatenate", **controls)


def test_kept_tokens_by_hand():
    """The reference has 4 x 8 tokens of 16 x 16 pixels; those that the mask touches at all."""
    mask = torch.zeros(64, 128)
    mask[20:40, 15:33] = 1
    expected = [y * 8 + x for y in (1, 2) for x in (0, 1, 2)]
    assert kept_tokens(mask, (4, 8)).tolist() == expected
    other = torch.zeros(64, 128)
    other[0, 127] = 1
    assert kept_tokens(torch.stack((mask, other)), (4, 8)).tolist() == [7, *expected]
    with pytest.raises(UserError, match="the reference mask is empty"):
        kept_tokens(torch.zeros(64, 128), (4, 8))


def test_tokens_that_are_left_out_are_as_never_there(model, paper, plain):
    """K and V of the first block are those of the kept tokens; all kept is the paper; and the report counts them."""
    wan, latent = Wan(model.model), model.model.process_latent_in(tiny.random(1, 16, 1, 8, 16, seed=1))
    kept = torch.tensor([3, 4, 9])
    (key, value), *_ = identity_layers(wan, latent, tiny.adapter())
    (some_key, some_value), *_ = identity_layers(wan, latent, tiny.adapter(), kept)
    assert_close(some_key, key[:, kept])
    assert_close(some_value, value[:, kept])
    latent = {"samples": tiny.random(1, 16, 1, 8, 16, seed=1)}
    masks = {name: torch.zeros(1, 64, 128) for name in ("all", "some")}
    masks["all"][:] = 1
    masks["some"][:, :20, :40] = 1
    found = {name: tiny.sample(apply_reference(model, tiny.adapter(), None, None, latent, mask))
             for name, mask in masks.items()}
    assert_close(found["all"][0], paper, WHOLE_RUN)
    some, (report,) = found["some"]
    assert report.identities[0].tokens == 2 * 3
    assert not torch.equal(some, paper) and not torch.equal(some, plain)
