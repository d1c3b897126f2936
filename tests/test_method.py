"""What an adapter was trained with is what a run does: positions and attention by name, from the file to the video."""
import dataclasses

import pytest
import safetensors.torch
import torch

import tiny
from standin_core.contracts import StandInError
from standin_core.stand_in.adapter import load_adapter
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.method import PAPER, Method
from standin_core.stand_in.parameters import as_adapter, new_adapter, parameters, save_adapter
from tiny_models import adapter_weights
from tolerances import WHOLE_RUN, relative_rms

METHODS = {"shared": Method(positions="shared"), "ordinary": Method(attention="ordinary"),
           "both": Method("shared", "ordinary")}


def applied(model, method, reference=None, **settings):
    adapter = dataclasses.replace(tiny.adapter(), method=method)
    return apply_identity_branch(model, adapter, tiny.random(1, 16, 1, 8, 16) if reference is None else reference,
                                 **settings)


@pytest.mark.parametrize("method", [PAPER, *METHODS.values()], ids=str)
def test_from_training_to_the_file_and_back(tmp_path, method):
    adapter = as_adapter(new_adapter(2, 32, 4, method=method))
    assert adapter.method == method
    save_adapter(parameters(adapter), tmp_path / "a.safetensors", method.metadata)
    assert load_adapter(tmp_path / "a.safetensors").method == method


def test_a_file_that_says_nothing_is_the_papers(tmp_path):
    torch.save(adapter_weights(), tmp_path / "a.ckpt")
    safetensors.torch.save_file(adapter_weights(), tmp_path / "a.safetensors")
    assert {load_adapter(tmp_path / name).method for name in ("a.ckpt", "a.safetensors")} == {PAPER}


def test_an_unknown_name_is_refused(tmp_path):
    file, said = tmp_path / "a.safetensors", {"stand_in_positions": "elsewhere"}
    safetensors.torch.save_file(adapter_weights(), file, metadata=said)
    with pytest.raises(StandInError, match="trained with is elsewhere, needed is one of conditional, shared: update"):
        load_adapter(file)


def test_every_method_gives_another_video(model, plain):
    found = [tiny.sample(applied(model, method))[0] for method in (PAPER, *METHODS.values())]
    for i, one in enumerate(found):
        for other in (plain, *found[:i]):
            assert relative_rms(one, other) > 100 * WHOLE_RUN


def test_ordinary_attention_is_computed_in_every_call(model, plain):
    patched = applied(model, METHODS["ordinary"])
    _, (report,) = tiny.sample(patched)
    assert (report.attention, report.cache) == ("concatenate", "streaming")
    assert (report.builds, report.identity_calls, report.reads) == (0, tiny.STEPS, tiny.STEPS * tiny.WAN.blocks)
    assert torch.equal(tiny.sample(applied(model, METHODS["ordinary"], strength=0.0))[0], plain)


@pytest.mark.parametrize("settings", [
    {"strength": 0.5}, {"region": torch.ones(1, 8, 12)}, {"guidance": "positive pass"}, {"first_block": 1},
    {"cache": "fp8"}, {"attention": "merge"}, {"reference": torch.zeros(2, 16, 1, 8, 16)}], ids=" ".join)
def test_what_ordinary_attention_cannot_do_is_refused(model, settings):
    with pytest.raises(StandInError, match="was trained with ordinary attention, which reads one photo of one person"):
        applied(model, METHODS["ordinary"], **settings)


@pytest.mark.parametrize("first, second", [("ordinary", "shared"), ("shared", "ordinary")])
def test_ordinary_attention_has_no_room_for_two(model, first, second):
    with pytest.raises(StandInError, match="was trained with ordinary attention"):
        applied(applied(model, METHODS[first]), METHODS[second])
