"""The controls and the cache modes of the identity beside what other nodes do to the sampling."""
import comfy.hooks
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

import tiny
from small_world.tiny_models import lora_weights
from standin_core.errors import UserError
from standin_core.report import ReportSink
from standin_core.stand_in.kv_cache import CACHE_MODES
from standin_core.stand_in.run import StandInRun
from tolerances import WHOLE_RUN, assert_close, relative_rms

HALF = torch.cat((torch.ones(1, 64, 48), torch.zeros(1, 64, 48)), dim=2)  # the left half of a 96x64 video
CONTROLS = {
    "a strength": {"strength": 0.5},
    "a schedule": {"schedule": ((0.0, 0.2), (1.0, 1.5))},
    "a region": {"region": HALF},
    "the positive pass": {"guidance": "positive pass"},
    "a scale of its own": {"guidance": "own scale", "guidance_scale": 2.0},
}


@pytest.mark.parametrize("order", ["identity first", "identity last"])
@pytest.mark.parametrize("name", CONTROLS)
def test_an_override_and_a_control(model, name, order):
    """A SageAttention-style override knows no weights, so the video's self-attention leaves it, and it is said."""
    calls = []

    def override(func, q, k, v, heads, **kwargs):
        calls.append(k.shape[1] - q.shape[1])
        return func(q, k, v, heads=heads, **kwargs)

    expected = tiny.sample(tiny.with_identity(model, **CONTROLS[name]))[0]
    patched = model.clone()
    if order == "identity first":
        patched = tiny.with_identity(patched, **CONTROLS[name])
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    if order == "identity last":
        patched = tiny.with_identity(patched, **CONTROLS[name])
    samples, (report,) = tiny.sample(patched)
    assert "needs one, so the video's self-attention leaves it" in report.refusals[0]
    assert 32 not in calls
    assert_close(samples, expected, WHOLE_RUN)


def windows(model, **settings):
    """Core's node: windows of 9 frames, which are 3 latent frames, side by side."""
    defaults = {"context_length": 9, "context_overlap": 0, "context_schedule": "standard_static", "context_stride": 1,
                "closed_loop": False, "fuse_method": "flat", "freenoise": False}
    return WanContextWindowsManualNode.execute(model, **{**defaults, **settings}).args[0]


def without_anchor(model):
    """Each window for itself, without the frame before it."""
    patched = windows(model)
    patched.model_options["context_handler"].causal_window_fix = False
    return patched


LONG = torch.zeros(1, 16, 6, 8, 12)
NOISE = comfy.sample.prepare_noise(LONG, 7)


def alone(model, noise, **controls):
    return tiny.sample(tiny.with_identity(model, **controls), noise=noise)[0]


@pytest.mark.parametrize("name", CONTROLS)
def test_context_windows(model, name):
    """Every window reads the identity with the controls as if it were a video of its own, from one build."""
    samples, (report,) = tiny.sample(without_anchor(tiny.with_identity(model, **CONTROLS[name])), latent=LONG)
    assert (report.builds, report.video_grid) == (1, (3, 4, 6))
    expected = [alone(model, noise, **CONTROLS[name]) for noise in NOISE.split(3, dim=2)]
    assert_close(samples, torch.cat(expected, dim=2), WHOLE_RUN)


def test_context_windows_with_a_region_of_each_latent_frame(model):
    """A window has the masks of its own frames."""
    region = torch.rand(6, 64, 96, generator=torch.Generator().manual_seed(3))
    samples, _ = tiny.sample(without_anchor(tiny.with_identity(model, region=region)), latent=LONG)
    expected = [alone(model, noise, region=part) for noise, part in zip(NOISE.split(3, dim=2), region.split(3))]
    assert_close(samples, torch.cat(expected, dim=2), WHOLE_RUN)


@pytest.mark.parametrize("frames", [6, 21], ids=["latent frames", "frames"])
def test_a_region_for_each_frame_follows_overlapping_windows(model, frames, monkeypatch):
    """As core's node sets it: windows overlap, and each but the first sees one frame more, before its own first. Every
    call has the masks of just the frames that it has.
    """
    each = torch.arange(1, frames + 1).float()[:, None, None].expand(-1, 64, 96) / frames
    of_latent_frame = [1, 5, 9, 13, 17, 21] if frames == 21 else [1, 2, 3, 4, 5, 6]
    seen = []

    def note(self, index, grid, device, window=None):
        weights = region(self, index, grid, device, window)
        seen.append((window.index_list, [round(frames * float(frame[0])) for frame in weights.unflatten(0, (-1, 24))]))
        return weights

    region = StandInRun.region
    monkeypatch.setattr(StandInRun, "region", note)
    tiny.sample(windows(tiny.with_identity(model, region=each), context_overlap=4), latent=LONG, steps=1)
    assert len({tuple(indices) for indices, _ in seen}) > 2
    for indices, weights in seen:
        anchored = indices if indices[0] == 0 else [indices[0] - 1, *indices]
        assert weights == [of_latent_frame[index] for index in anchored]


def test_windows_along_the_width_are_refused_beside_a_region(model):
    patched = windows(tiny.with_identity(model, region=HALF))
    patched.model_options["context_handler"].dim = 4
    with pytest.raises(UserError, match="a region cannot follow context windows along height or width"):
        tiny.sample(patched, latent=torch.zeros(1, 16, 3, 8, 24))


@pytest.mark.parametrize("mode", CACHE_MODES)
def test_skip_layer_guidance(model, mode):
    """The pass that skips a block is the model without it, and the blocks after it read what is theirs."""
    scale, skipped = 3.0, 1
    x, sigmas = comfy.sample.prepare_noise(torch.zeros(tiny.LATENT), 7), torch.tensor([1.0, 0.0])

    def one_step(patched):
        return comfy.sample.sample_custom(patched, x, 1.0, comfy.samplers.sampler_object("euler"), sigmas,
                                          tiny.prompt(), tiny.prompt(), torch.zeros(tiny.LATENT), disable_pbar=True)

    sink = ReportSink()
    patched = SkipLayerGuidanceDiT.execute(
        tiny.with_identity(model, cache=mode), scale=scale, double_layers=str(skipped), single_layers="",
        start_percent=0.0, end_percent=1.0).args[0]
    sink.listen(patched)
    found = one_step(patched)
    (report,) = sink.reports
    assert report.reads == 2 * tiny.WAN.blocks - 1
    results = [one_step(tiny.with_identity(model, cache=mode))]
    without = tiny.with_identity(model, cache=mode)
    without.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", skipped)
    results.append(one_step(without))
    assert_close(found, results[0] + scale * (results[0] - results[1]), WHOLE_RUN)
    assert relative_rms(results[1], results[0]) > 100 * WHOLE_RUN


def hooked(condition):
    """A LoRA on one condition, half as strong from the middle on."""
    hooks = comfy.hooks.create_hook_lora(lora_weights(), 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for percent, factor in ((0.0, 1.0), (0.5, 0.5)):
        keyframes.add(comfy.hooks.HookKeyframe(strength=factor, start_percent=percent))
    hooks.set_keyframes_on_hooks(keyframes)
    return comfy.hooks.set_hooks_for_conditioning(condition, hooks)


@pytest.mark.parametrize("mode", ["offloaded", "streaming", "fp8"])
def test_lora_hooks_with_keyframes_in_a_cache_mode(model, mode):
    """The identity of each prompt is computed with the weights of that prompt at that step."""
    def run(positive, cache):
        return tiny.sample(tiny.with_identity(model, cache=cache), positive=positive, steps=6)[0]

    found, expected = run(hooked(tiny.prompt()), mode), run(hooked(tiny.prompt()), "resident")
    if mode == "fp8":
        assert relative_rms(found, expected) < 0.05 * relative_rms(expected, tiny.sample(model, steps=6)[0])
    else:
        assert torch.equal(found, expected)
    assert relative_rms(found, run(tiny.prompt(), mode)) > 100 * WHOLE_RUN
