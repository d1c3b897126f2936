"""The identity on the kinds of Wan models that there are: with VACE, with more input channels, and what is refused."""
import comfy.ldm.wan.model
import comfy.ops
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_wan import WanFunControlToVideo, WanVaceToVideo

import tiny
from small_world.tiny_models import TinyWan, random_weights, vae_weights
from standin_core.errors import UserError
from standin_core.stand_in.stream import identity_layers
from standin_core.wan import Wan
from tolerances import WHOLE_RUN, assert_close, relative_rms


@pytest.fixture(scope="module")
def vae():
    return comfy.sd.VAE(sd=vae_weights())


def pictures(count):
    return torch.rand(count, 64, 96, 3, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def vace_model():
    return tiny.load(tiny.WAN.vace_weights())


def vace(vae, strength):
    """A control video and a reference picture, which takes a latent frame, through core's node."""
    positive, negative, latent, _ = WanVaceToVideo.execute(
        tiny.prompt(), tiny.prompt(seed=3), vae, width=96, height=64, length=9, batch_size=1, strength=strength,
        control_video=pictures(9), reference_image=pictures(1)).args
    return {"latent": latent["samples"], "positive": positive, "negative": negative}


@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_vace(vace_model, vae, strength):
    """The authors' strengths of VACE; its blocks do not see the identity."""
    model, controlled, lengths = vace_model, vace(vae, strength), []

    def watch(func, q, k, v, heads, **kwargs):
        lengths.append(k.shape[1] - q.shape[1])
        return func(q, k, v, heads=heads, **kwargs)

    patched = tiny.with_identity(model)
    patched.model_options["transformer_options"]["optimized_attention_override"] = watch
    samples, (report,) = tiny.sample(patched, **controlled)
    assert report.video_grid == (4, 4, 6)
    assert lengths.count(32) == report.reads == tiny.WAN.blocks * report.model_calls
    assert lengths.count(0) == 2 * report.model_calls  # two VACE blocks
    others = (tiny.sample(model, **controlled)[0], tiny.sample(tiny.with_identity(model), **vace(vae, 1.0))[0])
    assert all(relative_rms(samples, other) > 100 * WHOLE_RUN for other in others)


def test_a_region_beside_vace(vace_model, vae):
    """One mask serves every frame, that of VACE's reference picture too; one for each frame cannot, and is refused."""
    settings = vace(vae, 0.5)
    assert_close(tiny.sample(tiny.with_identity(vace_model, region=torch.ones(1, 64, 96)), **settings)[0],
                 tiny.sample(tiny.with_identity(vace_model), **settings)[0], WHOLE_RUN)
    with pytest.raises(UserError, match=r"must have 1 mask, 4 .* or 13 .*, but has 9"):
        tiny.sample(tiny.with_identity(vace_model, region=torch.ones(9, 64, 96)), **settings)


def test_image_to_video_channels():
    """Wan 2.2's image-to-video models take 36 channels; the reference has 16, and the rest counts as zero."""
    model, weights = tiny.load(), tiny.WAN.weights()
    more = tiny.random(tiny.WAN.dim, 20, 1, 2, 2)
    weights["patch_embedding.weight"] = torch.cat((weights["patch_embedding.weight"], more), dim=1)
    wide = tiny.load(weights)
    assert wide.model.diffusion_model.in_dim == 36
    latent = tiny.random(1, 16, 1, 8, 16)
    pairs = zip(identity_layers(Wan(wide.model), latent, tiny.adapter()),
                identity_layers(Wan(model.model), latent, tiny.adapter()), strict=True)
    for (key, value), (expected_key, expected_value) in pairs:
        assert_close(key, expected_key)
        assert_close(value, expected_value)
    samples, (report,) = tiny.sample(tiny.with_identity(wide))
    assert report.reads == tiny.STEPS * tiny.WAN.blocks
    assert relative_rms(samples, tiny.sample(wide)[0]) > 100 * WHOLE_RUN


def test_fun_control(vae):
    """Wan Fun models take the control video's and a start picture's latents as 32 more channels."""
    weights = tiny.WAN.weights()
    more = tiny.random(tiny.WAN.dim, 32, 1, 2, 2) / 8
    weights["patch_embedding.weight"] = torch.cat((weights["patch_embedding.weight"], more), dim=1)
    model = tiny.load(weights)
    positive, negative, latent = WanFunControlToVideo.execute(
        tiny.prompt(), tiny.prompt(seed=3), vae, width=96, height=64, length=9, batch_size=1,
        control_video=pictures(9)).args
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
    with pytest.raises(UserError, match=words):
        tiny.with_identity(model)
