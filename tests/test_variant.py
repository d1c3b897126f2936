"""What an adapter was trained with is what a run does: positions and attention by name, from the file to the video."""
import dataclasses

import comfy.sample
import pytest
import safetensors.torch
import torch
from comfy.ldm.modules.attention import optimized_attention

import tiny
from small_world.tiny_models import adapter_weights
from standin_core.attention import split_heads
from standin_core.errors import UserError
from standin_core.report import ReportSink
from standin_core.stand_in.adapter import load_adapter
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.parameters import as_adapter, new_adapter, parameters, save_adapter
from standin_core.stand_in.positions import conditional_positions
from standin_core.stand_in.stream import joint_stream
from standin_core.stand_in.variant import PAPER, Variant
from standin_core.wan import Wan
from tolerances import WHOLE_RUN, assert_close, relative_rms

VARIANTS = {"shared": Variant(positions="shared"), "ordinary": Variant(self_attention="ordinary"),
           "both": Variant("shared", "ordinary")}


def applied(model, variant, reference=None, **settings):
    adapter = dataclasses.replace(tiny.adapter(), variant=variant)
    return apply_identity_branch(model, adapter, tiny.random(1, 16, 1, 8, 16) if reference is None else reference,
                                 **settings)


@pytest.mark.parametrize("variant", [PAPER, *VARIANTS.values()], ids=str)
def test_from_training_to_the_file_and_back(tmp_path, variant):
    adapter = as_adapter(new_adapter(2, 32, 4, variant=variant))
    assert adapter.variant == variant
    save_adapter(parameters(adapter), tmp_path / "a.safetensors", variant.metadata)
    assert load_adapter(tmp_path / "a.safetensors").variant == variant


def test_a_file_that_says_nothing_is_the_papers(tmp_path):
    torch.save(adapter_weights(), tmp_path / "a.ckpt")
    safetensors.torch.save_file(adapter_weights(), tmp_path / "a.safetensors")
    assert {load_adapter(tmp_path / name).variant for name in ("a.ckpt", "a.safetensors")} == {PAPER}


def test_what_files_say(tmp_path):
    """The keys are in files that exist: they stay."""
    file, said = tmp_path / "a.safetensors", {"stand_in_positions": "shared", "stand_in_attention": "ordinary"}
    safetensors.torch.save_file(adapter_weights(), file, metadata=said)
    assert load_adapter(file).variant == VARIANTS["both"]


def test_an_unknown_name_is_refused(tmp_path):
    file, said = tmp_path / "a.safetensors", {"stand_in_positions": "elsewhere"}
    safetensors.torch.save_file(adapter_weights(), file, metadata=said)
    with pytest.raises(UserError, match="says stand_in_positions elsewhere, but this pack knows conditional, shared:"):
        load_adapter(file)


def test_every_variant_gives_another_video(model, plain):
    found = [tiny.sample(applied(model, variant))[0] for variant in (PAPER, *VARIANTS.values())]
    for i, one in enumerate(found):
        for other in (plain, *found[:i]):
            assert relative_rms(one, other) > 100 * WHOLE_RUN


def test_ordinary_attention_is_computed_in_every_call(model, plain):
    patched = applied(model, VARIANTS["ordinary"])
    _, (report,) = tiny.sample(patched)
    assert (report.attention, report.cache) == ("concatenate", "streaming")
    assert (report.builds, report.identity_calls, report.reads) == (0, tiny.STEPS, tiny.STEPS * tiny.WAN.blocks)
    assert torch.equal(tiny.sample(applied(model, VARIANTS["ordinary"], strength=0.0))[0], plain)


@pytest.mark.parametrize("settings", [
    {"strength": 0.5}, {"region": torch.ones(1, 8, 12)}, {"guidance": "positive pass"}, {"first_block": 1},
    {"cache": "fp8"}, {"attention": "merge"}, {"reference": torch.zeros(2, 16, 1, 8, 16)}], ids=" ".join)
def test_what_ordinary_attention_cannot_do_is_refused(model, settings):
    with pytest.raises(UserError, match="was trained with ordinary attention, which reads one photo of one person"):
        applied(model, VARIANTS["ordinary"], **settings)


@pytest.mark.parametrize("first, second", [("ordinary", "shared"), ("shared", "ordinary")])
def test_ordinary_attention_has_no_room_for_two(model, first, second):
    with pytest.raises(UserError, match="was trained with ordinary attention"):
        applied(applied(model, VARIANTS[first]), VARIANTS[second])


def test_an_attention_map_of_ordinary_attention_is_refused(model):
    patched = applied(model, VARIANTS["ordinary"])
    ReportSink(maps_attention=True).listen(patched)
    with pytest.raises(UserError, match="trained with ordinary attention gives none: switch attention_map off"):
        comfy.sample.sample(patched, torch.zeros(tiny.LATENT), 1, 1.0, "euler", "simple", tiny.prompt(), tiny.prompt(),
                            torch.zeros(tiny.LATENT), disable_pbar=True)


def test_ordinary_attention_takes_heads_apart_or_together(model):
    """As ComfyUI's attention does: [B, N, C], or [B, H, N, D] with skip_reshape; the same comes out."""
    wan, heads = Wan(model.model), tiny.WAN.heads
    latent = tiny.random(1, 16, 1, 8, 16)
    rotation = wan.rotation(conditional_positions((4, 6), (4, 8), -1))
    q, k, v = (tiny.random(1, 72, tiny.WAN.dim, seed=seed) for seed in range(3))
    found = []
    for apart in (False, True):
        stream = joint_stream(wan, latent, tiny.adapter(), rotation)
        key, value = stream[0]
        given = [split_heads(x, heads) for x in (q, k, v)] if apart else [q, k, v]
        out = stream.attend(optimized_attention, *given, [(key, value, None)], heads, skip_reshape=apart)
        found.append((out, stream.tokens))
    for together, apart in zip(*found):
        assert_close(apart, together)


def test_ordinary_attention_refuses_a_mask(model):
    wan = Wan(model.model)
    stream = joint_stream(wan, tiny.random(1, 16, 1, 8, 16), tiny.adapter(),
                          wan.rotation(conditional_positions((4, 6), (4, 8), -1)))
    with pytest.raises(UserError, match="comes with a mask, which the identity cannot be read beside"):
        key, value = stream[0]
        stream.attend(optimized_attention, key, key, value, [(key, value, None)], tiny.WAN.heads, mask=torch.ones(1))
