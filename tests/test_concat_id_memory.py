"""What a reference is announced to take, against what a run then takes."""
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from concat_id import with_reference

import tiny
from small_world.tiny_models import TinyWan, concat_id_weights
from standin_core.concat_id.applied import AppendedReference
from standin_core.concat_id.apply import apply_concat_id
from standin_core.concat_id.model import parse_concat_id
from standin_core.concat_id.run import extra_bytes, own_bytes
from standin_core.wan import Wan
from support.peak_memory import allocated_peak

pytestmark = pytest.mark.usefixtures("one_thread")

LATENT = 1, 16, 3, 32, 24


@pytest.fixture(scope="module")
def model():
    """With a feed-forward as wide as Wan 1.3B's, 35/6 of its own width."""
    wan = TinyWan(dim=192, ffn_dim=1120, heads=4, blocks=2, text_dim=tiny.WAN.text_dim)
    return wan, comfy.sd.load_diffusion_model_state_dict(wan.weights(), model_options={"dtype": torch.float32},
                                                         metadata=wan.metadata())


@pytest.mark.parametrize("adaln", [False, True], ids=["first stage", "AdaLN"])
@pytest.mark.parametrize("frames", [3, 6])
def test_the_peak_of_a_run_is_what_was_announced(model, tmp_path, adaln, frames):
    """Beside the peak of the plain model; within 5 %."""
    wan, patcher = model
    shape = (*LATENT[:2], frames, *LATENT[3:])
    _, record = parse_concat_id(concat_id_weights(wan, adaln), "wide")
    patched = apply_concat_id(patcher, record, {"samples": torch.zeros(shape)},
                              latent={"samples": tiny.random(1, 16, 1, *shape[3:])})

    def run(each):
        return lambda: tiny.sample(each, latent=torch.zeros(shape), steps=1)

    run(patcher)()  # what PyTorch and ComfyUI keep from the first run on
    plain, peak = (allocated_peak(run(each), tmp_path) for each in (patcher, patched))
    applied = AppendedReference(concat_id=record, latent=torch.zeros(1, 16, 1, *shape[3:]))
    announced = extra_bytes(applied, Wan(patcher.model), shape)
    held = 0 if record.own is None else own_bytes(record.own, torch.float32)  # here the device's memory is the file's
    assert abs(peak - plain - (announced - held)) < 0.05 * announced


def test_the_bytes_are_announced_while_the_model_loads():
    reserved, seen = comfy.model_management.EXTRA_RESERVED_VRAM, []

    def probe(executor, *args, **kwargs):
        seen.append(comfy.model_management.EXTRA_RESERVED_VRAM - reserved)
        return executor(*args, **kwargs)

    patched = with_reference(tiny.load())
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "probe", probe)
    _, (report,) = tiny.sample(patched)
    tokens = 2 * 4 * 6  # of both prompts
    assert seen == [tokens * (4 * 64 + 2 * 128) * 4 + report.own_bytes]
    assert reserved == comfy.model_management.EXTRA_RESERVED_VRAM
