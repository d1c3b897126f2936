"""What is announced to ComfyUI's memory manager before a run, against what the run takes."""
import comfy.sd
import pytest
import torch

import tiny
from small_world.tiny_models import TinyWan, adapter_weights
from standin_core.attention import restricted_attention
from standin_core.attention.choice import AttentionChoice
from standin_core.attention.states import FUSED, TILED
from standin_core.stand_in.adapter import parse_adapter
from standin_core.stand_in.applied import Applied, Identity, RunSettings
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.budget import extra_bytes
from standin_core.stand_in.kv_cache import CACHE_MODES, IdentityCacheSpec
from standin_core.stand_in.wrappers import installed
from support.peak_memory import allocated_peak

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_bytes_of_a_mode_are_announced():
    model = tiny.load()
    identities = (Identity(tiny.adapter(), tiny.random(1, 16, 1, 8, 16)),)
    announced = {mode: extra_bytes(model, Applied(identities, RunSettings(cache=mode)), tiny.LATENT, 1, {})
                 for mode in CACHE_MODES}
    held = {mode: tiny.sample(tiny.with_identity(model, cache=mode))[1][0].cache_bytes for mode in CACHE_MODES}
    path = announced["resident"] - held["resident"]  # what the attention holds is the same for all
    layer = held["resident"] // tiny.WAN.blocks
    assert announced["auto"] == announced["resident"]
    assert announced["offloaded"] - path == held["offloaded"] == 2 * layer
    assert announced["streaming"] - path == held["streaming"] == 2 * layer
    assert announced["fp8"] - path == held["fp8"] + layer < 0.6 * held["resident"]


def host(q, k, v, heads):
    """The attention that a model calls, by PyTorch."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


# identity tokens, as many as the buffers of PyTorch's attention hold for the video's keys; the least share of what is
# announced that is taken: the tiles hold the video's keys and then the identity's, never both, and are rid of the
# buffers that the plain attention has (measured: 0.87)
PATHS = {
    "merging": (AttentionChoice("merge", FUSED[0], ()), 500, 0.98),
    "merging tiles": (AttentionChoice("merge", TILED, ()), 20, 0.85),
    "concatenating": (AttentionChoice("concatenate", None, ()), 500, 0.98),
}


@pytest.mark.parametrize("name", PATHS)
def test_the_peak_of_a_path_is_what_it_says(name, tmp_path):
    """Beside the peak of the plain attention."""
    choice, tokens, least = PATHS[name]
    heads, video = 4, 2000
    q, k, v = (tiny.random(1, video, heads * 64, seed=seed).bfloat16() for seed in range(3))
    key, value = (tiny.random(1, tokens, heads * 64, seed=seed).bfloat16() for seed in range(3, 5))
    attend = restricted_attention(choice)
    peak, plain = (allocated_peak(call, tmp_path) for call in (
        lambda: attend(host, q, k, v, [(key, value, torch.zeros(1, 1))], heads=heads), lambda: host(q, k, v, heads)))
    announced = choice.working_bytes(1, video, tokens, heads, 64, itemsize=2)
    assert least * announced <= peak - plain <= 1.02 * announced


@pytest.fixture(scope="module")
def deep_model():
    """A model of many blocks, so that the identity K/V weigh.

    Its feed-forward is narrow, so that the model's peak is in the self-attention, where all that was announced is held
    at a time.
    """
    wan = TinyWan(dim=256, ffn_dim=256, blocks=20, text_dim=tiny.WAN.text_dim)
    model = comfy.sd.load_diffusion_model_state_dict(wan.weights(), model_options={"dtype": torch.float32},
                                                     metadata=wan.metadata())
    return model, parse_adapter(adapter_weights(wan.dim, wan.blocks, 16), "deep")


DEEP_LATENT = 1, 16, 4, 32, 16


@pytest.fixture(scope="module")
def plain_peak(deep_model, tmp_path_factory):
    model, _ = deep_model
    tiny.sample(model, latent=torch.zeros(DEEP_LATENT), steps=1)  # what PyTorch and ComfyUI keep from the first run on
    return allocated_peak(lambda: tiny.sample(model, latent=torch.zeros(DEEP_LATENT), steps=1),
                          tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("mode", ["resident", "offloaded", "streaming", "fp8"])
def test_the_peak_of_a_run_is_what_was_announced(deep_model, plain_peak, mode, tmp_path):
    """Beside the peak of the plain model; within 5 %."""
    model, adapter = deep_model
    patched = apply_identity_branch(model, adapter, tiny.random(1, 16, 1, 8, 16), cache=mode)
    peak = allocated_peak(lambda: tiny.sample(patched, latent=torch.zeros(DEEP_LATENT), steps=1), tmp_path)
    announced = extra_bytes(model, installed(patched), DEEP_LATENT, 1, {})
    if mode == "offloaded":  # the host's memory is the device's here, and holds all blocks
        spec = IdentityCacheSpec(blocks=20, tokens=4 * 8, dim=256, heads=TinyWan().heads, dtype=torch.float32)
        announced += spec.device_bytes("resident") - spec.device_bytes("offloaded")
    assert abs(peak - plain_peak - announced) < 0.05 * announced
