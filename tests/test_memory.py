"""What is announced to ComfyUI's memory manager before a run, against what the run takes."""
import json

import comfy.sd
import pytest
import torch

import tiny
from standin_core.stand_in.adapter import parse_adapter
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.budget import cache_spec, extra_bytes
from standin_core.stand_in.kv_cache import CACHE_MODES
from standin_core.stand_in.settings import Applied, Identity, RunSettings
from standin_core.stand_in.wrappers import installed
from standin_core.wan import Wan
from tiny_models import TinyWan, adapter_weights


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    """PyTorch's attention on a CPU holds a buffer for each thread, which is a tenth of what a tiny model streams."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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


def peak_bytes(call, folder) -> int:
    """The most that PyTorch's CPU allocator gives out during a call, beside what it had before, by its own count."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True,
                                acc_events=True) as profiler:
        call()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    before = events[0]["args"]["Total Allocated"] - events[0]["args"]["Bytes"]
    return max(event["args"]["Total Allocated"] for event in events) - before


@pytest.fixture(scope="module")
def deep_model():
    """Of many blocks, so that the identity K/V weigh; its feed-forward is narrow, so that the model's peak is in the
    self-attention, where all that was announced is held at a time.
    """
    wan = TinyWan(dim=256, ffn_dim=256, blocks=40, text_dim=tiny.WAN.text_dim)
    model = comfy.sd.load_diffusion_model_state_dict(wan.weights(), model_options={"dtype": torch.float32},
                                                     metadata=wan.metadata())
    return model, parse_adapter(adapter_weights(wan.dim, wan.blocks, 16), "deep")


@pytest.mark.parametrize("mode", ["resident", "offloaded", "streaming", "fp8"])
def test_the_peak_of_a_run_is_what_was_announced(deep_model, mode, tmp_path):
    """Beside the peak of the plain model; within 5 %."""
    model, adapter = deep_model
    latent, reference = torch.zeros(1, 16, 4, 16, 16), tiny.random(1, 16, 1, 8, 16)
    patched = apply_identity_branch(model, adapter, reference, cache=mode)
    tiny.sample(model, latent=latent, steps=1)  # what PyTorch and ComfyUI keep from the first run on
    peak = peak_bytes(lambda: tiny.sample(patched, latent=latent, steps=1), tmp_path)
    plain = peak_bytes(lambda: tiny.sample(model, latent=latent, steps=1), tmp_path)
    applied = installed(patched)
    announced = extra_bytes(model, applied, latent.shape, 1, {})
    if mode == "offloaded":  # the host's memory is the device's here, and holds all blocks
        spec = cache_spec(applied.identities[0], Wan(model.model), 1)
        announced += spec.device_bytes("resident") - spec.device_bytes("offloaded")
    assert abs(peak - plain - announced) < 0.05 * announced
