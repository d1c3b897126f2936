"""From image or latent to the reference latent."""
import comfy.sd
import pytest
import torch

import sd15
import tiny
from small_world.tiny_models import TinyWan, vae_weights
from standin_core.clip_vision import hidden_states
from standin_core.errors import UserError
from standin_core.reference import encode_reference, reference_from
from standin_core.stand_in.apply import apply_identity_branch, apply_reference


@pytest.fixture(scope="module")
def vae():
    return comfy.sd.VAE(sd=vae_weights())


def test_image(vae):
    latent = reference_from(vae, torch.rand(1, 64, 96, 3), None)
    assert latent.shape == (1, 16, 1, 8, 12)


def test_alpha_is_left_out(vae):
    image = torch.rand(1, 64, 64, 4)
    assert torch.equal(reference_from(vae, image, None), reference_from(vae, image[..., :3], None))


@pytest.mark.parametrize("shape", [(1, 16, 8, 12), (1, 16, 1, 8, 12)])
def test_latent(shape):
    assert reference_from(None, None, {"samples": torch.rand(shape)}).shape == (1, 16, 1, 8, 12)


def test_several_photos_are_encoded_one_by_one(vae):
    """As a video they would share latent frames."""
    photos = torch.rand(3, 64, 96, 3)
    latent = reference_from(vae, photos, None)
    assert latent.shape == (3, 16, 1, 8, 12)
    for i in range(3):
        assert torch.equal(latent[i:i + 1], reference_from(vae, photos[i:i + 1], None))


NAN = "must be finite"


def test_encoders_that_make_nan():
    """As in half precision: no person is kept with it, and no model reads it."""
    vae = comfy.sd.VAE(sd={key: torch.full_like(value, torch.nan) for key, value in vae_weights().items()})
    with pytest.raises(UserError, match=f"^the values of the encoded reference image {NAN}"):
        encode_reference(vae, torch.rand(1, 64, 96, 3))
    encoder = sd15.clip_vision.__wrapped__()  # one of its own
    for parameter in encoder.model.parameters():
        parameter.detach().fill_(torch.nan)
    with pytest.raises(UserError, match=f"^the values of the output of clip_vision {NAN}"):
        hidden_states(encoder, torch.rand(1, 64, 64, 3))


class OtherVAE:
    first_stage_model = torch.nn.Identity()


IMAGE = torch.rand(1, 32, 32, 3)
REFUSED = {
    "nothing": ((None, None, None), "no reference came"),
    "both": ((None, IMAGE, {"samples": torch.rand(1, 16, 1, 4, 4)}),
             "only one of a reference image and a reference latent"),
    "no VAE": ((None, IMAGE, None), "came without a VAE"),
    "another VAE": ((OtherVAE, IMAGE, None), "the VAE must be Wan 2.1's, .*, but is Identity"),
    "an empty batch": (("vae", IMAGE[:0], None), r"reference_image must have the shape .*, but has \[0, 32, 32, 3\]"),
    "too small": (("vae", IMAGE[:, :8], None), "the reference image must be at least 16x16, but is 32x8"),
    "a video": ((None, None, {"samples": torch.rand(1, 16, 3, 4, 4)}), r"has shape \[1, 16, 3, 4, 4\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(vae, name):
    (vae_, image, latent), words = REFUSED[name]
    with pytest.raises(UserError, match=words):
        reference_from(vae if vae_ == "vae" else vae_, image, latent)


def test_a_model_that_does_not_fit_is_refused_before_the_vae_works():
    class Untouchable:
        def __getattr__(self, name):
            raise AssertionError("the VAE was touched")

    wider = tiny.load(TinyWan(dim=128, text_dim=tiny.WAN.text_dim).weights())
    with pytest.raises(UserError, match="is for a Wan of 4 blocks and width 64"):
        apply_reference(wider, tiny.adapter(), Untouchable(), IMAGE, None)


def test_channels_must_be_the_models():
    with pytest.raises(UserError, match="has 48 channels, this model's latents have 16"):
        apply_identity_branch(tiny.load(), tiny.adapter(), torch.rand(1, 48, 1, 4, 4))
