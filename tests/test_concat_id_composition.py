"""A reference of Concat-ID beside everything else that people put on a Wan model."""
import dataclasses
import shutil

import comfy.context_windows
import comfy.sample
import comfy.sd
import concat_id
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_rope import ScaleROPE
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

import tiny
from small_world.tiny_models import lora_weights
from standin_core.errors import UserError
from standin_core.report import ReportSink
from tolerances import RELATIVE_RMS, WHOLE_RUN, assert_close, relative_rms

ORDERS = ["reference first", "reference last"]
TOKENS, VIDEO = 24, 72  # of the reference and of tiny.LATENT


@pytest.fixture(scope="module")
def expected(model):
    return tiny.sample(concat_id.with_reference(model))[0]


def in_order(order, model, patch, **settings):
    """The model with the reference and with another patch, in either order."""
    if order == "reference first":
        return patch(concat_id.with_reference(model, **settings))
    return concat_id.with_reference(patch(model.clone()), **settings)


def with_lora(model):
    return comfy.sd.load_lora_for_models(model, None, lora_weights(), 1.0, 0.0)[0]


@pytest.mark.parametrize("order", ORDERS)
def test_a_lora(model, expected, order):
    """As merged into the weights beforehand."""
    weights = tiny.WAN.weights()
    for key in {key.rpartition(".lora_")[0] for key in lora_weights()}:
        up, down = (lora_weights()[f"{key}.lora_{which}.weight"] for which in ("up", "down"))
        weights[key.removeprefix("diffusion_model.") + ".weight"] += up @ down
    samples, _ = tiny.sample(in_order(order, model, with_lora))
    assert_close(samples, tiny.sample(concat_id.with_reference(tiny.load(weights)))[0], WHOLE_RUN)
    assert relative_rms(samples, expected) > 100 * WHOLE_RUN


@pytest.mark.parametrize("order", ORDERS)
def test_another_packs_attention_override(model, expected, order):
    """It computes the attention of the video and the reference together."""
    calls = []

    def override(func, q, k, v, heads, **kwargs):
        calls.append((q.shape[1], k.shape[1]))
        return func(q, k, v, heads=heads, **kwargs)

    def patch(model):
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return model

    samples, _ = tiny.sample(in_order(order, model, patch))
    assert torch.equal(samples, expected)
    assert set(calls) == {(VIDEO + TOKENS, VIDEO + TOKENS), (VIDEO, 5)}  # itself, and the text for the video alone


def test_a_patch_on_the_text_sees_the_video_alone(model, expected):
    """ComfyUI's attn2_patch, by which other nodes add to the cross-attention."""
    patched, seen = concat_id.with_reference(model), []

    def patch(args):
        seen.append(args["x"].shape[1])
        return 1.5 * args["x"]

    patched.set_model_attn2_patch(patch)
    found = tiny.sample(patched)[0]
    assert set(seen) == {VIDEO} and relative_rms(found, expected) > 100 * WHOLE_RUN


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode], ids=lambda node: node.__name__)
def test_easy_cache(model, expected, node, order):
    """It sees the video alone: it skips the same steps in either order, and with nothing skipped nothing changes."""
    def patch(threshold):
        return lambda model: node.execute(model, reuse_threshold=threshold, start_percent=0.0, end_percent=1.0,
                                          verbose=False).args[0]

    calls = []

    def count(model):
        model.set_model_patch_replace(lambda args, extra: calls.append(1) or extra["original_block"](args), "dit",
                                      "double_block", 0)
        return model

    samples, _ = tiny.sample(in_order(order, count(model.clone()), patch(5.0)), steps=8)
    assert 0 < len(calls) < 8 and torch.isfinite(samples).all()
    assert_close(tiny.sample(in_order(order, model, patch(0.0)))[0], expected, WHOLE_RUN)


def windowed(model, dim=2, length=3):
    model = model.clone()
    model.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("flat"), context_length=length, context_overlap=0,
        context_stride=1, closed_loop=False, dim=dim, causal_window_fix=False)
    comfy.context_windows.create_prepare_sampling_wrapper(model)
    return model


@pytest.mark.parametrize("order", ORDERS)
def test_context_windows(model, order):
    """Every window has the reference behind its own last frame, as if it were a video of its own."""
    latent = torch.zeros(1, 16, 6, 8, 12)
    noise = comfy.sample.prepare_noise(latent, 7)
    samples, (report,) = tiny.sample(in_order(order, model, windowed), latent=latent)
    assert (report.identity_calls, report.video_grid) == (2 * tiny.STEPS, (3, 4, 6))
    windows = [tiny.sample(concat_id.with_reference(model), noise=part)[0] for part in noise.split(3, dim=2)]
    assert_close(samples, torch.cat(windows, dim=2), WHOLE_RUN)


@pytest.mark.parametrize("dim", [3, 4])
def test_context_windows_over_the_picture_are_refused(model, dim):
    with pytest.raises(UserError, match="context windows along height or width show it a part: set their dim to 2"):
        tiny.sample(windowed(concat_id.with_reference(model), dim, 4))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guidance", ["both passes", "positive pass"])
def test_stand_in_on_the_same_model(model, expected, order, guidance):
    """In any order the same; both read, each run with a report of its own."""
    samples, reports = tiny.sample(in_order(order, model, tiny.with_identity, guidance=guidance))
    other = ORDERS[1 - ORDERS.index(order)]
    assert_close(samples, tiny.sample(in_order(other, model, tiny.with_identity, guidance=guidance))[0], WHOLE_RUN)
    assert {type(report).__name__ for report in reports} == {"StandInReport", "ConcatIDReport"}
    assert all(report.identity_calls == tiny.STEPS for report in reports)
    assert relative_rms(samples, expected) > 100 * WHOLE_RUN
    assert relative_rms(samples, tiny.sample(tiny.with_identity(model))[0]) > 100 * WHOLE_RUN


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("wanted, words", [
    ("a region", "the region has weights for 72 video tokens and this model has 96, because another node adds tokens"),
    ("a map", "the attention map has 72 places and this model 96 video tokens, because another node adds some")])
def test_what_stand_in_cannot_do_beside_it(model, order, wanted, words):
    left_half = torch.zeros(1, 64, 96)
    left_half[..., :48] = 1

    def patch(model):
        return tiny.with_identity(model, region=left_half if wanted == "a region" else None)

    patched = in_order(order, model, patch)
    ReportSink(maps_attention=wanted == "a map").listen(patched)
    with pytest.raises(UserError, match=words):
        comfy.sample.sample(patched, comfy.sample.prepare_noise(torch.zeros(tiny.LATENT), 7), 1, 4.0, "euler", "simple",
                            tiny.prompt(), tiny.prompt(seed=3), torch.zeros(tiny.LATENT), disable_pbar=True)


@pytest.mark.parametrize("order", ORDERS)
def test_two_scales_of_their_own_are_refused(model, order):
    own = {"guidance": "own scale", "guidance_scale": 2.0}
    with pytest.raises(UserError, match="two methods on this model use guidance own scale"):
        tiny.sample(in_order(order, model, lambda model: tiny.with_identity(model, **own), **own))


@pytest.mark.parametrize("order", ORDERS)
def test_a_shifted_rope(model, expected, order):
    """RoPE is relative: with the video and the reference shifted together nothing changes."""
    def patch(model):
        return ScaleROPE.execute(model, scale_x=1, shift_x=5, scale_y=1, shift_y=-3, scale_t=1, shift_t=2).args[0]

    assert_close(tiny.sample(in_order(order, model, patch))[0], expected, WHOLE_RUN)


def test_a_scaled_rope(model, expected):
    """The reference's steps are the video's: with half of both, it is what a rotation of half the places gives."""
    def scaled(model):
        return ScaleROPE.execute(model, scale_x=0.5, shift_x=0, scale_y=0.5, shift_y=0, scale_t=0.5,
                                 shift_t=0).args[0]

    found, _ = tiny.sample(scaled(concat_id.with_reference(model)))
    patched, embedder = concat_id.with_reference(model), model.model.diffusion_model.rope_embedder

    class Halved(torch.nn.Module):
        def forward(self, positions):
            return embedder(positions * 0.5)

    patched.add_object_patch("diffusion_model.rope_embedder", Halved())
    assert_close(found, tiny.sample(patched)[0], WHOLE_RUN)
    assert relative_rms(found, expected) > 100 * WHOLE_RUN


@pytest.mark.parametrize("order", ORDERS)
def test_model_sampling(model, order):
    """The percents of start and end are those of the schedule in use, whichever node sets it."""
    def shifted(patched):
        return ModelSamplingSD3().patch(patched, shift=12.0)[0]

    latents, (report,) = tiny.sample(in_order(order, model, shifted, end_percent=0.5), steps=8)
    assert torch.equal(latents, tiny.sample(in_order(ORDERS[0], model, shifted, end_percent=0.5), steps=8)[0])
    assert report.identity_calls == 4  # by the model's own schedule, of shift 8, it would be 5


def test_a_block_that_another_node_skips(model, expected):
    """As skip-layer guidance does."""
    patched = concat_id.with_reference(model)
    patched.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 2)
    found, (report,) = tiny.sample(patched)
    assert report.identity_calls == tiny.STEPS and relative_rms(found, expected) > 100 * WHOLE_RUN


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(expected, dtype):
    """As far from fp32 as the plain model is."""
    model = tiny.load(dtype=dtype)
    found = tiny.sample(concat_id.with_reference(model))[0]
    plain = relative_rms(tiny.sample(model)[0], tiny.sample(tiny.load())[0])
    assert RELATIVE_RMS[dtype] / 8 < relative_rms(found, expected) < 1.5 * plain


def test_fp8_weights():
    """The same as fp32 weights of the same, rounded values."""
    rounded = {key: value.to(torch.float8_e4m3fn).float() for key, value in tiny.WAN.weights().items()}
    in_fp8, as_fp32 = tiny.load(rounded, dtype=torch.float8_e4m3fn), tiny.load()
    applied = concat_id.with_reference(as_fp32)
    for name, parameter in as_fp32.model.diffusion_model.named_parameters():
        parameter.data.copy_(rounded[name])
    found, _ = tiny.sample(concat_id.with_reference(in_fp8))
    assert torch.equal(found, tiny.sample(applied)[0])


class Graphs(list):
    """torch.compile's backend "eager", and every graph that it was given."""

    def __call__(self, graph, inputs, **_):
        self.append(graph)
        return graph.forward


WHOLE = ["diffusion_model"]
BLOCKS = [f"diffusion_model.blocks.{i}" for i in range(2)]
KEYS = pytest.mark.parametrize("keys", [WHOLE, BLOCKS], ids=["whole model", "each block"])


@pytest.fixture(scope="module")
def of_two_blocks():
    """A model that is compiled in half the time."""
    return tiny.load(dataclasses.replace(tiny.WAN, blocks=2).weights())


@KEYS
@pytest.mark.parametrize("guards", [None, skip_torch_compile_dict], ids=["all guards", "as core's node"])
def test_torch_compile(of_two_blocks, guards, keys):
    """On, off, on, off and another reference for half of the steps, in one process: right each time, without a graph
    break, and compiled once, though the modulations change with every step."""
    torch.compiler.reset()
    compilations = Graphs()

    def check(patched):
        """The same as without compiling; compilations grows where a graph is made anew."""
        expected = tiny.sample(patched)[0]
        set_torch_compile_wrapper(patched, backend=compilations, keys=keys, fullgraph=True,
                                  options=None if guards is None else {"guard_filter_fn": guards})
        assert_close(tiny.sample(patched)[0], expected, WHOLE_RUN)

    check(concat_id.with_reference(of_two_blocks))
    check(of_two_blocks.clone())
    graphs = len(compilations)
    check(concat_id.with_reference(of_two_blocks))
    check(of_two_blocks.clone())
    check(concat_id.with_reference(of_two_blocks, seed=9, end_percent=0.5))
    assert len(compilations) == graphs > 0


@KEYS
def test_compiled_before_the_reference(of_two_blocks, keys):
    torch.compiler.reset()
    expected = tiny.sample(concat_id.with_reference(of_two_blocks))[0]
    patched = of_two_blocks.clone()
    set_torch_compile_wrapper(patched, backend="eager", keys=keys, fullgraph=True,
                              options={"guard_filter_fn": skip_torch_compile_dict})
    assert_close(tiny.sample(concat_id.with_reference(patched))[0], expected, WHOLE_RUN)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_torch_compile_to_machine_code(of_two_blocks):
    """With inductor, TorchCompileModel's default backend: what it makes of a block is right. That nothing is compiled
    twice is seen above, where it takes less long.
    """
    torch.compiler.reset()
    patched = concat_id.with_reference(of_two_blocks)
    expected = tiny.sample(patched, steps=1, cfg=1.0)[0]
    set_torch_compile_wrapper(patched, backend="inductor", keys=BLOCKS[:1], fullgraph=True,
                              options={"guard_filter_fn": skip_torch_compile_dict})
    assert_close(tiny.sample(patched, steps=1, cfg=1.0)[0], expected, WHOLE_RUN)
    _, compiled = torch.compiler.save_cache_artifacts()
    assert compiled.inductor_artifacts
