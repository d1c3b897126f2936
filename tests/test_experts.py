"""The adapters of Wan 2.2's experts, told apart by the names of their files."""
import pytest

import tiny
from standin_core.errors import UserError
from standin_core.stand_in.adapter import parse_adapter
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.experts import refuse_swapped_adapters

HIGH, LOW = "Stand-In_wan2.2_T2V_A14B_high.ckpt", "Stand-In_wan2.2_T2V_A14B_low.ckpt"


def with_adapter(model, name):
    return apply_identity_branch(model, parse_adapter(tiny.adapter_weights(), name), tiny.random(1, 16, 1, 8, 8))


@pytest.mark.parametrize("high, low", [(LOW, HIGH), ("WAN22_LOW_fp16.safetensors", "WAN22_HIGH_fp16.safetensors")])
def test_swapped_adapters_are_refused(model, high, low):
    with pytest.raises(UserError, match=f"swapped: the high-noise model reads {high} and the low-noise model {low}"):
        refuse_swapped_adapters(with_adapter(model, high), with_adapter(model, low))


@pytest.mark.parametrize("high, low", [
    (HIGH, LOW), (HIGH, HIGH), (LOW, LOW), ("mine.safetensors", HIGH), ("slow.safetensors", HIGH),
    ("high_to_low.safetensors", HIGH)])
def test_what_the_names_do_not_say_runs(model, high, low):
    refuse_swapped_adapters(with_adapter(model, high), with_adapter(model, low))


def test_one_model_and_models_without_identity_run(model):
    refuse_swapped_adapters(with_adapter(model, LOW), None)
    refuse_swapped_adapters(model, with_adapter(model, HIGH))
