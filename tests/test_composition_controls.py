"""The controls and the cache modes of the identity beside what other nodes do to the sampling."""
import comfy.hooks
import comfy.ldm.wan.model
import comfy.ops
import comfy.sample
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from comfy_extras.nodes_wan import WanFunControlToVideo, WanVaceToVideo

import tiny
from standin_core.contracts import CACHE_MODES, StandInError
from tiny_models import TinyWan, random_weights, vae_weights
from tolerances import WHOLE_RUN, assert_close, relative_rms

HALF = torch.cat((torch.ones(1, 64, 48), torch.zeros(1, 64, 48)), dim=2)  # the left half of a 96x64 video
CONTROLS = {
    "a strength": {"strength": 0.4},
    "a schedule": {"schedule": ((0.0, 0.2), (1.0, 1.5))},
    "a region": {"region": HALF},
    "the positive pass": {"guidance": "positive pass"},
    "a scale of its own": {"guidance": "own scale", "guidance_scale": 2.0},
}


@pytest.fixture(scope="module")
def model():
    return tiny.load()


@pytest.fixture(scope="module")
def vae():
    return comfy.sd.VAE(sd=vae_weights())


@pytest.mark.parametrize("name", CONTROLS)
def test_an_override_and_a_control(model, name):
    """A SageAttention-style override knows no weights, so the video's self-attention leaves it, and it is said."""
    calls = []

    def override(func, q, k, v, heads, **kwargs):
        calls.append(k.shape[1] - q.shape[1])
        return func(q, k, v, heads=heads, **kwargs)

    patched = tiny.with_identity(model, **CONTROLS[name])
    expected = tiny.sample(patched)[0]
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    samples, (report,) = tiny.sample(patched)
    assert "so the video's self-attention leaves it" in report.refusals[0]
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
def test_a_region_for_each_frame_follows_overlapping_windows(model, frames):
    """As core's node sets it: windows overlap, and each but the first sees one frame more, before its own first.
    Everywhere in every frame is everywhere; nowhere is the base model."""
    def run(patched):
        return tiny.sample(windows(patched, context_overlap=4), latent=LONG)[0]

    assert_close(run(tiny.with_identity(model, region=torch.ones(frames, 64, 96))), run(tiny.with_identity(model)),
                 WHOLE_RUN)
    assert torch.equal(run(tiny.with_identity(model, region=torch.zeros(frames, 64, 96))), run(model.clone()))


def test_windows_along_the_width_are_refused_beside_a_region(model):
    patched = windows(tiny.with_identity(model, region=HALF))
    patched.model_options["context_handler"].dim = 4
    with pytest.raises(StandInError, match="cannot follow context windows along height or width"):
        tiny.sample(patched, latent=torch.zeros(1, 16, 3, 8, 24))


@pytest.mark.parametrize("mode", CACHE_MODES)
@pytest.mark.parametrize("node", [SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple], ids=lambda node: node.__name__)
def test_skip_layer_guidance(model, node, mode):
    """A block that another pass skips is not read there, and the blocks after it read what is theirs."""
    extra = {"scale": 3.0} if node is SkipLayerGuidanceDiT else {}
    def run(**controls):
        patched = node.execute(tiny.with_identity(model, **controls), double_layers="1", single_layers="",
                               start_percent=0.0, end_percent=1.0, **extra).args[0]
        return tiny.sample(patched)

    samples, (report,) = run(cache=mode)
    passes = 3 if node is SkipLayerGuidanceDiT else 2
    calls = report.identity_calls
    assert report.reads < calls * tiny.WAN.blocks
    assert calls >= (passes - 1) * tiny.STEPS
    reference = run(cache="resident")[0]
    if mode == "fp8":
        assert relative_rms(samples, reference) < 0.01
    else:
        assert torch.equal(samples, reference)
    assert relative_rms(samples, tiny.sample(tiny.with_identity(model))[0]) > 100 * WHOLE_RUN


def hooked(condition):
    """A LoRA on one condition, half as strong from the middle on."""
    hooks = comfy.hooks.create_hook_lora(tiny.lora(), 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for percent, factor in ((0.0, 1.0), (0.5, 0.5)):
        keyframes.add(comfy.hooks.HookKeyframe(strength=factor, start_percent=percent))
    hooks.set_keyframes_on_hooks(keyframes)
    return comfy.hooks.set_hooks_for_conditioning(condition, hooks)


@pytest.mark.parametrize("mode", ["offloaded", "streaming"])
def test_lora_hooks_with_keyframes_in_every_cache_mode(model, mode):
    """The identity of each prompt is computed with the weights of that prompt at that step."""
    def run(cache):
        return tiny.sample(tiny.with_identity(model, cache=cache), positive=hooked(tiny.prompt()), steps=6)[0]

    assert torch.equal(run(mode), run("resident"))


def vace(vae, strength, **extra):
    positive, negative, latent, _ = WanVaceToVideo.execute(
        tiny.prompt(), tiny.prompt(seed=3), vae, width=96, height=64, length=9, batch_size=1, strength=strength,
        **extra).args
    return {"latent": latent["samples"], "positive": positive, "negative": negative}


def test_vace_at_half_its_strength(vae):
    """With a reference picture. VACE's strength and the identity's are two things."""
    model = tiny.load(tiny.vace_weights())
    video, photo = torch.rand(9, 64, 96, 3), torch.rand(1, 64, 96, 3)

    def run(patched, strength):
        return tiny.sample(patched, **vace(vae, strength, control_video=video, reference_image=photo))

    samples, (report,) = run(tiny.with_identity(model), 0.5)
    assert report.video_grid == (4, 4, 6) and report.reads == tiny.WAN.blocks * report.model_calls
    for other in (run(tiny.with_identity(model), 1.0), run(model, 0.5)):
        assert relative_rms(samples, other[0]) > 100 * WHOLE_RUN


def test_a_region_beside_vace(vae):
    """One mask serves every frame, that of VACE's reference picture too; one for each frame cannot, and is refused."""
    model = tiny.load(tiny.vace_weights())
    settings = vace(vae, 0.5, control_video=torch.rand(9, 64, 96, 3), reference_image=torch.rand(1, 64, 96, 3))
    assert_close(tiny.sample(tiny.with_identity(model, region=torch.ones(1, 64, 96)), **settings)[0],
                 tiny.sample(tiny.with_identity(model), **settings)[0], WHOLE_RUN)
    with pytest.raises(StandInError, match="9 masks and the video 4 latent frames"):
        tiny.sample(tiny.with_identity(model, region=torch.ones(9, 64, 96)), **settings)


def test_fun_control(vae):
    """Wan Fun models take the control video's and a start picture's latents as 32 more channels."""
    weights = tiny.WAN.weights()
    more = tiny.random(tiny.WAN.dim, 32, 1, 2, 2) / 8
    weights["patch_embedding.weight"] = torch.cat((weights["patch_embedding.weight"], more), dim=1)
    model = tiny.load(weights)
    positive, negative, latent = WanFunControlToVideo.execute(
        tiny.prompt(), tiny.prompt(seed=3), vae, width=96, height=64, length=9, batch_size=1,
        control_video=torch.rand(9, 64, 96, 3)).args
    controlled = {"latent": latent["samples"], "positive": positive, "negative": negative}
    samples, (report,) = tiny.sample(tiny.with_identity(model), **controlled)
    assert report.reads == tiny.WAN.blocks * report.model_calls
    plain = tiny.sample(model, **controlled)[0]
    assert relative_rms(samples, plain) > 100 * WHOLE_RUN
    assert relative_rms(plain, tiny.sample(model, latent=latent["samples"])[0]) > 100 * WHOLE_RUN  # it does control
    assert torch.equal(tiny.sample(tiny.with_identity(model, strength=0.0), **controlled)[0], plain)


def ti2v_5b(dim, heads):
    """As ComfyUI detects it: 48 latent channels."""
    module = comfy.ldm.wan.model.WanModel(
        in_dim=48, out_dim=48, dim=dim, ffn_dim=2 * dim, num_heads=heads, num_layers=tiny.WAN.blocks,
        text_dim=tiny.WAN.text_dim, operations=comfy.ops.disable_weight_init)
    return comfy.sd.load_diffusion_model_state_dict(
        random_weights(module, 0), model_options={"dtype": torch.float32},
        metadata=TinyWan(heads=heads, text_dim=tiny.WAN.text_dim).metadata())


@pytest.mark.parametrize("dim, heads, words", [
    (64, 2, "the reference latent has 16 channels, this model's latents have 48"),
    (96, 2, "4 blocks and width 64, the model has 4 blocks and width 96")])
def test_ti2v_5b_is_refused(dim, heads, words):
    """Its latents are another VAE's, and it is narrower than the released adapters."""
    model = ti2v_5b(dim, heads)
    assert model.model.latent_format.latent_channels == 48
    with pytest.raises(StandInError, match=words):
        tiny.with_identity(model)
