"""The identity beside everything else that people put on a Wan model."""
import dataclasses
import shutil
import types

import comfy.context_windows
import comfy.hooks
import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import attention_pytorch, attention_split, optimized_attention
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_rope import ScaleROPE
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from packed import pack_layers, scaled_fp8

import standin_core.attention.choice
import standin_core.host_attention
import tiny
from small_world.tiny_models import TinyWan, adapter_weights, lora_weights
from standin_core.attention.states import TILED
from standin_core.errors import UserError
from standin_core.stand_in.adapter import parse_adapter
from standin_core.stand_in.apply import apply_identity_branch
from tolerances import RELATIVE_RMS, WHOLE_RUN, assert_close, relative_rms


@pytest.fixture(scope="module")
def expected(model):
    return tiny.sample(tiny.with_identity(model))[0]


ORDERS = ["identity first", "identity last"]


def in_order(order, model, patch, **controls):
    """The model with the identity and with another patch, in either order."""
    if order == "identity first":
        return patch(tiny.with_identity(model, **controls))
    return tiny.with_identity(patch(model.clone()), **controls)


def test_paths_agree(model, expected):
    samples, (report,) = tiny.sample(tiny.with_identity(model, attention="concatenate"))
    assert report.attention == "concatenate"
    assert_close(samples, expected, WHOLE_RUN)


def test_strength_between_and_above(model, expected):
    """More strength, more distance from the base model; 1 is the paper."""
    base = tiny.sample(model)[0]
    distance = [relative_rms(tiny.sample(tiny.with_identity(model, strength=s))[0], base) for s in (0.1, 0.5, 1.0, 3.0)]
    assert distance == sorted(distance) and distance[0] > 100 * WHOLE_RUN
    assert torch.equal(tiny.sample(tiny.with_identity(model, strength=1.0))[0], expected)


@pytest.mark.parametrize("start, end, calls", [
    (0.0, 1.0, 4), (0.0, 0.5, 2), (0.5, 1.0, 2), (0.3, 0.6, 1), (0.9, 0.95, 0)])
def test_start_and_end_percent(model, start, end, calls):
    """Four steps begin at 0, 25, 50 and 75 percent; a range takes its start and leaves its end to the next range."""
    patched = tiny.with_identity(model, start_percent=start, end_percent=end)
    samples, (report,) = tiny.sample(patched, steps=4)
    assert (report.identity_calls, report.model_calls) == (calls, 4)
    assert torch.equal(samples, tiny.sample(model, steps=4)[0]) == (calls == 0)


def test_time_offset_changes_the_result(model, expected):
    assert relative_rms(tiny.sample(tiny.with_identity(model, time_offset=-25))[0], expected) > 100 * WHOLE_RUN


def test_batch_of_two(model, expected):
    """Each video of a batch gets what it gets alone."""
    latent = torch.zeros((2, *tiny.LATENT[1:]))
    samples, (report,) = tiny.sample(tiny.with_identity(model), latent=latent)
    alone = comfy.sample.prepare_noise(latent, 7)
    assert report.builds == 1
    assert_close(samples[:1], expected, WHOLE_RUN)
    assert relative_rms(alone[1], alone[0]) > 1 and relative_rms(samples[1], samples[0]) > 0.1


def test_prompts_of_unequal_length(model):
    """Positive and negative then go through the model in two calls; one build serves both."""
    _, (report,) = tiny.sample(tiny.with_identity(model), negative=tiny.prompt(length=9))
    assert report.builds == 1
    assert report.identity_calls in (tiny.STEPS, 2 * tiny.STEPS)


def test_area_conditioning(model):
    """Another size of video needs another rotation and no other build."""
    (whole,) = tiny.prompt()
    area = [whole[0], {"area": (4, 6, 2, 2), "strength": 1.0}]
    patched = tiny.with_identity(model)
    samples, (report,) = tiny.sample(patched, positive=[area, whole])
    assert report.builds == 1
    assert relative_rms(samples, tiny.sample(model, positive=[area, whole])[0]) > 100 * WHOLE_RUN
    everywhere = [whole[0], {"area": (8, 12, 0, 0), "strength": 1.0}]
    assert_close(tiny.sample(patched, positive=[everywhere])[0], tiny.sample(patched)[0], WHOLE_RUN)


@pytest.mark.parametrize("areas", ["positive", "negative", "both"])
def test_an_area_beside_the_positive_pass(model, areas):
    """ComfyUI gives the other prompt an area too, by a copy of the condition: it must not count as positive."""
    (positive,), (negative,) = tiny.prompt(), tiny.prompt(seed=3)
    area = {"area": (4, 6, 2, 2), "strength": 1.0}
    conds = {"positive": [[positive[0], area]] if areas in ("positive", "both") else [positive],
             "negative": [[negative[0], area]] if areas in ("negative", "both") else [negative]}

    def passes(patched):
        """What the first step's positive and negative pass give."""
        seen = []

        def look(args):
            seen.append([each.clone() for each in args["conds_out"]])
            return args["conds_out"]

        patched.set_model_sampler_pre_cfg_function(look)
        tiny.sample(patched, steps=1, **conds)
        return seen[0]

    plain, both, found = (passes(patched) for patched in (
        model.clone(), tiny.with_identity(model), tiny.with_identity(model, guidance="positive pass")))
    assert_close(found[0], both[0], WHOLE_RUN)
    assert_close(found[1], plain[1], WHOLE_RUN)
    assert all(relative_rms(*pair) > 100 * WHOLE_RUN for pair in zip(both, plain))


def test_an_area_beside_a_region_is_refused(model):
    """The model then sees a part of the video, and the region is drawn on all of it."""
    (whole,) = tiny.prompt()
    patched = tiny.with_identity(model, region=torch.ones(64, 96).tril())
    with pytest.raises(UserError, match="a region would not lie where it should"):
        tiny.sample(patched, positive=[[whole[0], {"area": (4, 6, 2, 2), "strength": 1.0}], whole])


def override(calls):
    """Another pack's attention function: the same arithmetic, and it is seen."""
    def attention(func, q, k, v, heads, **kwargs):
        calls.append(k.shape[1] - q.shape[1])
        return func(q, k, v, heads=heads, **kwargs)
    return attention


@pytest.mark.parametrize("order", ORDERS)
def test_another_packs_attention_override(model, expected, order):
    """It is kept, and sees the video's keys with the identity's 32 appended; the identity's own attention it does not
    see, because it may be made for the token counts of a video."""
    calls = []

    def patch(model):
        model.model_options["transformer_options"]["optimized_attention_override"] = override(calls)
        return model

    samples, (report,) = tiny.sample(in_order(order, model, patch))
    assert report.attention == "concatenate"
    assert "another node overrides" in report.refusals[0]
    video, text = 3 * 4 * 6, 5
    assert calls.count(32) == tiny.STEPS * tiny.WAN.blocks
    assert set(calls) == {32, text - video}
    assert_close(samples, expected, WHOLE_RUN)


def test_an_attention_that_is_not_pytorchs(model, expected, monkeypatch):
    """As with --use-split-cross-attention and the like: ComfyUI's function is kept."""
    monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", attention_split)
    samples, (report,) = tiny.sample(tiny.with_identity(model))
    assert report.attention == "concatenate"
    assert "ComfyUI runs an attention other than PyTorch's, which gives no log-sum-exp" in report.refusals[0]
    assert_close(samples, expected, WHOLE_RUN)


@pytest.mark.parametrize("name", ["SageAttention", "FlashAttention"])
def test_a_package_that_gives_states(model, monkeypatch, name):
    """As with --use-sage-attention and --use-flash-attention: the video's attention is the package's, and merged."""
    # this attention does not turn the smoothing of the keys off
    function, module = {"SageAttention": ("attention_sage", "SMOOTHED_SAGE"),
                        "FlashAttention": ("attention_flash", "FLASH_ATTN")}[name]
    plain = tiny.sample(tiny.with_identity(model, strength=0.5))[0]

    def attention(*args, **kwargs):
        return attention_pytorch(*args, **kwargs)

    attention.__name__ = function
    attention = comfy.ldm.modules.attention.wrap_attn(attention)
    monkeypatch.setattr(comfy.ldm.modules.attention, function, attention)
    monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", attention)
    _, (report,) = tiny.sample(tiny.with_identity(model, strength=0.5))
    assert report.refusals[0] == f"{name}: it runs on cuda, not on cpu"
    here = dataclasses.replace(getattr(standin_core.host_attention, module), device_type=None, package=None,
                               state=TILED.state)
    monkeypatch.setattr(standin_core.host_attention, module, here)
    samples, (report,) = tiny.sample(tiny.with_identity(model, strength=0.5))
    assert report.attention == f"merge, {name}"
    assert_close(samples, plain, WHOLE_RUN)


def test_a_device_without_states(model, monkeypatch):
    """A strength then comes from the fp32 attention in tiles."""
    expected = tiny.sample(tiny.with_identity(model, strength=0.5))[0]
    monkeypatch.setattr(standin_core.attention.choice, "FUSED", ())
    samples, (report,) = tiny.sample(tiny.with_identity(model, strength=0.5))
    assert report.attention == "merge, fp32 attention in tiles of queries"
    assert_close(samples, expected, WHOLE_RUN)


@pytest.mark.parametrize("order", ORDERS)
def test_a_shifted_rope(model, expected, order):
    """Core's ScaleROPE moves the video's positions; the identity keeps its place beside it, and RoPE is relative."""
    def patch(model):
        return ScaleROPE.execute(model, scale_x=1, shift_x=5, scale_y=1, shift_y=-3, scale_t=1, shift_t=2).args[0]

    assert_close(tiny.sample(in_order(order, model, patch))[0], expected, WHOLE_RUN)


def own_attention(self, x, freqs, transformer_options):
    """The shape of KJNodes' Enhance-A-Video: a self-attention of its own that calls ComfyUI's attention."""
    heads = (*x.shape[:2], self.num_heads, self.head_dim)
    q = apply_rope1(self.norm_q(self.q(x)).view(heads), freqs)
    k = apply_rope1(self.norm_k(self.k(x)).view(heads), freqs)
    return self.o(optimized_attention(q.flatten(2), k.flatten(2), self.v(x), heads=self.num_heads,
                                      transformer_options=transformer_options))


def bypassing_attention(self, x, freqs, transformer_options):
    """The shape of a memory-efficient Sage patch: calls its kernel directly."""
    return self.o(self.v(x))


def with_forward(forward):
    def patch(model):
        for i, block in enumerate(model.model.diffusion_model.blocks):
            model.add_object_patch(f"diffusion_model.blocks.{i}.self_attn.forward",
                                   types.MethodType(forward, block.self_attn))
        return model
    return patch


@pytest.mark.parametrize("order", ORDERS)
def test_another_nodes_self_attention(model, expected, order):
    samples, (report,) = tiny.sample(in_order(order, model, with_forward(own_attention)))
    assert report.reads == tiny.STEPS * tiny.WAN.blocks
    assert_close(samples, expected, WHOLE_RUN)
    assert torch.equal(tiny.sample(tiny.with_identity(model))[0], expected)


@pytest.mark.parametrize("order", ORDERS)
def test_a_self_attention_that_bypasses_comfyuis_is_an_error(model, order):
    with pytest.raises(UserError, match="does not call ComfyUI's attention"):
        tiny.sample(in_order(order, model, with_forward(bypassing_attention)))


def test_a_block_that_another_node_skips(model):
    """As skip-layer guidance does."""
    patched = tiny.with_identity(model)
    patched.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 2)
    _, (report,) = tiny.sample(patched)
    assert report.reads == tiny.STEPS * (tiny.WAN.blocks - 1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode], ids=lambda node: node.__name__)
def test_easy_cache(model, expected, node, order):
    """Skipped steps skip the identity with the model; the others read it. With nothing skipped, nothing changes."""
    def patch(threshold):
        return lambda model: node.execute(model, reuse_threshold=threshold, start_percent=0.0, end_percent=1.0,
                                          verbose=False).args[0]

    samples, (report,) = tiny.sample(in_order(order, model, patch(5.0)), steps=8)
    assert 0 < report.reads < 8 * tiny.WAN.blocks
    assert report.builds == 1
    assert torch.isfinite(samples).all()
    assert_close(tiny.sample(in_order(order, model, patch(0.0)))[0], expected, WHOLE_RUN)


def test_context_windows(model):
    """Every window reads the same identity, one frame before its own first, as if it were a video of its own."""
    patched = tiny.with_identity(model)
    patched.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("flat"), context_length=3, context_overlap=0,
        context_stride=1, closed_loop=False, dim=2, causal_window_fix=False)
    comfy.context_windows.create_prepare_sampling_wrapper(patched)
    latent = torch.zeros(1, 16, 6, 8, 12)
    noise = comfy.sample.prepare_noise(latent, 7)
    samples, (report,) = tiny.sample(patched, latent=latent)
    assert (report.builds, report.identity_calls, report.video_grid) == (1, 2 * tiny.STEPS, (3, 4, 6))
    windows = [tiny.sample(tiny.with_identity(model), noise=part)[0] for part in noise.split(3, dim=2)]
    assert_close(samples, torch.cat(windows, dim=2), WHOLE_RUN)


LORA_KEYS = [f"blocks.{block}.self_attn.{which}" for block in range(tiny.WAN.blocks) for which in "qkv"]


def with_lora(model):
    return comfy.sd.load_lora_for_models(model, None, lora_weights(), 1.0, 0.0)[0]


@pytest.fixture(scope="module")
def merged():
    """The LoRA merged into the weights beforehand."""
    weights = tiny.WAN.weights()
    for key in LORA_KEYS:
        up, down = (lora_weights()[f"diffusion_model.{key}.lora_{which}.weight"] for which in ("up", "down"))
        weights[f"{key}.weight"] = weights[f"{key}.weight"] + up @ down
    return tiny.load(weights)


@pytest.mark.parametrize("order", ORDERS)
def test_a_lora_on_qkv(model, expected, merged, order):
    """The identity stream sees it as the video does."""
    samples, _ = tiny.sample(in_order(order, model, with_lora))
    assert_close(samples, tiny.sample(tiny.with_identity(merged))[0], WHOLE_RUN)
    assert relative_rms(samples, expected) > 100 * WHOLE_RUN


def hooked(condition, strength=1.0, keyframes=()):
    """A condition that brings the LoRA with it, as core's hook nodes make them."""
    hooks = comfy.hooks.create_hook_lora(lora_weights(), strength, 0.0)
    if keyframes:
        group = comfy.hooks.HookKeyframeGroup()
        for percent, factor in keyframes:
            group.add(comfy.hooks.HookKeyframe(strength=factor, start_percent=percent))
        hooks.set_keyframes_on_hooks(group)
    return comfy.hooks.set_hooks_for_conditioning(condition, hooks)


def test_a_lora_on_one_prompt_only(model, merged):
    """Each prompt reads an identity built with its own weights; both are kept, and the bytes of both announced."""
    patched = tiny.with_identity(model)
    samples, (report,) = tiny.sample(patched, positive=hooked(tiny.prompt()))
    assert report.builds == 2
    assert report.cache_bytes == 2 * tiny.sample(patched)[1][0].cache_bytes
    x, velocities = comfy.sample.prepare_noise(torch.zeros(tiny.LATENT), 7), {}

    def probe(name):
        """One step of one prompt from x, as the run above makes it from both."""
        def run(model_k, x, sigmas, extra_args, callback, disable):
            velocities[name] = model_k(x, sigmas[:1], **extra_args)
            return x
        return comfy.samplers.KSAMPLER(run)

    for name, each, condition in (("positive", merged, tiny.prompt()), ("negative", model, tiny.prompt(seed=3))):
        comfy.sample.sample_custom(tiny.with_identity(each), x, 1.0, probe(name), torch.tensor([1.0, 0.0]), condition,
                                   condition, torch.zeros(tiny.LATENT), disable_pbar=True)
    one_step, _ = tiny.sample(patched, positive=hooked(tiny.prompt()), steps=1)
    denoised = velocities["negative"] + 4.0 * (velocities["positive"] - velocities["negative"])
    assert_close(one_step, model.model.process_latent_out(denoised), WHOLE_RUN)
    assert relative_rms(samples, tiny.sample(patched)[0]) > 100 * WHOLE_RUN


def test_a_lora_whose_strength_changes_in_mid_run(model):
    """Built anew at each keyframe, and never more held than announced."""
    keyframes = ((0.0, 1.0), (0.3, 0.5), (0.6, 0.0))
    patched = tiny.with_identity(model)
    condition = hooked(tiny.prompt(), keyframes=keyframes)
    _, (report,) = tiny.sample(patched, positive=condition, negative=condition, steps=6)
    assert report.builds == 3
    assert report.cache_bytes == tiny.sample(patched)[1][0].cache_bytes


def test_forced_lowvram(merged, nothing_fits):
    """LoRAs are applied to the weights as they are fetched."""
    patched = with_lora(tiny.with_identity(tiny.load()))
    samples, (report,) = tiny.sample(patched)
    assert patched.model.model_lowvram and patched.model.diffusion_model.blocks[0].self_attn.k.comfy_cast_weights
    assert report.reads == tiny.STEPS * tiny.WAN.blocks
    assert_close(samples, tiny.sample(tiny.with_identity(merged))[0], WHOLE_RUN)


def test_fp8_weights():
    """The same as fp32 weights of the same, rounded values, bit for bit."""
    rounded = {key: value.to(torch.float8_e4m3fn).float() for key, value in tiny.WAN.weights().items()}
    in_fp8 = tiny.load(rounded, dtype=torch.float8_e4m3fn)
    samples, _ = tiny.sample(tiny.with_identity(in_fp8))
    assert in_fp8.model.diffusion_model.blocks[0].self_attn.q.weight.dtype == torch.float8_e4m3fn
    assert torch.equal(samples, tiny.sample(tiny.with_identity(tiny.load(rounded)))[0])


def test_scaled_fp8_weights():
    """The same as fp32 weights of the values that they stand for."""
    file, values = scaled_fp8(tiny.WAN.weights())
    found = comfy.sd.load_diffusion_model_state_dict(file, metadata=tiny.WAN.metadata())
    samples, (report,) = tiny.sample(tiny.with_identity(found))
    assert report.reads == tiny.STEPS * tiny.WAN.blocks
    assert_close(samples, tiny.sample(tiny.with_identity(tiny.load(values)))[0], WHOLE_RUN)
    assert relative_rms(samples, tiny.sample(found)[0]) > 100 * WHOLE_RUN


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_paths_agree(dtype):
    model = tiny.load(dtype=dtype)
    merge = tiny.sample(tiny.with_identity(model, attention="merge"))[0]
    concatenate = tiny.sample(tiny.with_identity(model, attention="concatenate"))[0]
    base = tiny.sample(model)[0]
    assert relative_rms(merge, concatenate) < RELATIVE_RMS[dtype]
    assert relative_rms(merge, base) > 2 * RELATIVE_RMS[dtype]


class Graphs(list):
    """torch.compile's backend "eager", and every graph that it was given."""

    def __call__(self, graph, inputs, **_):
        self.append(graph)
        return graph.forward


WHOLE = ["diffusion_model"]
BLOCKS = [f"diffusion_model.blocks.{i}" for i in range(tiny.WAN.blocks)]


@pytest.mark.parametrize("keys", [WHOLE, BLOCKS], ids=["whole model", "each block"])
@pytest.mark.parametrize("guards", [None, skip_torch_compile_dict], ids=["all guards", "as core's node"])
def test_torch_compile(model, expected, guards, keys):
    """On, off, on and another reference, in one process: right each time, without a graph break, and compiled once."""
    torch.compiler.reset()
    compilations = Graphs()

    def compiled(model):
        set_torch_compile_wrapper(model, backend=compilations, keys=keys, fullgraph=True,
                                  options=None if guards is None else {"guard_filter_fn": guards})
        return tiny.sample(model)[0]

    plain = tiny.sample(model)[0]
    other = tiny.sample(tiny.with_identity(model, seed=9))[0]
    assert_close(compiled(tiny.with_identity(model)), expected, WHOLE_RUN)
    assert_close(compiled(model.clone()), plain, WHOLE_RUN)
    graphs = len(compilations)
    assert_close(compiled(tiny.with_identity(model)), expected, WHOLE_RUN)
    assert_close(compiled(tiny.with_identity(model, seed=9)), other, WHOLE_RUN)
    assert len(compilations) == graphs > 0


@pytest.fixture(scope="module")
def of_two_blocks():
    """A patched model, which is compiled in half the time."""
    wan = TinyWan(text_dim=tiny.WAN.text_dim, blocks=2)
    model = comfy.sd.load_diffusion_model_state_dict(
        wan.weights(), model_options={"dtype": torch.float32}, metadata=wan.metadata())
    return apply_identity_branch(model, parse_adapter(adapter_weights(blocks=2), "small"), tiny.random(1, 16, 1, 8, 16))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("keys", [WHOLE, BLOCKS[:2]], ids=["whole model", "each block"])
def test_torch_compile_to_machine_code(of_two_blocks, keys):
    """With inductor, TorchCompileModel's default backend."""
    torch.compiler.reset()
    patched = of_two_blocks.clone()
    expected, _ = tiny.sample(patched)
    set_torch_compile_wrapper(patched, backend="inductor", keys=keys, fullgraph=True,
                              options={"guard_filter_fn": skip_torch_compile_dict})
    samples, (report,) = tiny.sample(patched)
    assert_close(samples, expected, WHOLE_RUN)
    assert report.reads == tiny.STEPS * 2
    _, compiled = torch.compiler.save_cache_artifacts()
    assert compiled.inductor_artifacts


# to compile takes seconds, so each has several: a cache, and who reads where
CONTROLS = {
    "offloaded, some blocks, a region": {"cache": "offloaded", "first_block": 1, "last_block": 2,
                                         "region": torch.ones(1, 8, 12).tril()},
    "streaming, the positive pass": {"cache": "streaming", "guidance": "positive pass"},
    "fp8, a scale of its own": {"cache": "fp8", "guidance": "own scale", "guidance_scale": 2.0},
}


@pytest.mark.parametrize("keys", [WHOLE, BLOCKS], ids=["whole model", "each block"])
@pytest.mark.parametrize("name", CONTROLS)
def test_torch_compile_with_controls(model, name, keys):
    """The same as without compiling; what is fetched for each block may break the graph."""
    torch.compiler.reset()
    patched = tiny.with_identity(model, **CONTROLS[name])
    eager = tiny.sample(patched)[0]
    set_torch_compile_wrapper(patched, backend="eager", keys=keys, options={"guard_filter_fn": skip_torch_compile_dict})
    assert_close(tiny.sample(patched)[0], eager, WHOLE_RUN)


def test_torch_compile_follows_a_schedule(model):
    """Another strength at every step: a tensor, so that it is neither baked in nor compiled for anew."""
    torch.compiler.reset()
    compilations = Graphs()
    patched = tiny.with_identity(model, schedule=((0.0, 0.2), (1.0, 1.5)))
    eager = tiny.sample(patched)[0]
    set_torch_compile_wrapper(patched, backend=compilations, keys=WHOLE, fullgraph=True,
                              options={"guard_filter_fn": skip_torch_compile_dict})
    tiny.sample(patched, steps=2)
    graphs = len(compilations)
    assert_close(tiny.sample(patched)[0], eager, WHOLE_RUN)
    assert len(compilations) == graphs > 0


@pytest.mark.parametrize("order", ORDERS)
def test_model_sampling(model, order):
    """ModelSamplingSD3 after or before: the percents of start and end are of its schedule."""
    def shifted(patched):
        return ModelSamplingSD3().patch(patched, shift=12.0)[0]

    latents, (report,) = tiny.sample(in_order(order, model, shifted, end_percent=0.5), steps=8)
    assert torch.equal(latents, tiny.sample(in_order(ORDERS[0], model, shifted, end_percent=0.5), steps=8)[0])
    assert report.identity_calls == 4  # by the model's own schedule, of shift 8, it would be 5
    assert not torch.equal(latents, tiny.sample(shifted(model.clone()), steps=8)[0])


def test_packed_weights(expected):
    """Modules are called and never read: what their weight looks like is theirs."""
    model = tiny.load()
    pack_layers(model)
    assert_close(tiny.sample(tiny.with_identity(model))[0], expected, WHOLE_RUN)


def test_a_copy_for_another_device(tmp_path):
    """ComfyUI's multi-GPU loads the model anew and takes the wrappers over: the copy reads the identity by itself."""
    import comfy.sd
    import safetensors.torch

    path = tmp_path / "wan.safetensors"
    safetensors.torch.save_file(tiny.WAN.weights(), path, metadata=tiny.WAN.metadata())
    patched = tiny.with_identity(comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32}))
    wanted = tiny.sample(patched)[0]
    copy = patched.deepclone_multigpu(new_load_device=torch.device("cpu"))
    assert copy.model is not patched.model
    found, (report,) = tiny.sample(copy)
    assert torch.equal(found, wanted) and report.builds == 1
