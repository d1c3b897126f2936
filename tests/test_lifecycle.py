"""What an identity leaves behind: nothing, on the model, in memory or in the next run."""
import gc
import weakref

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP

import tiny
from standin_core.kv_cache import IdentityCache
from standin_core.run import KEY, remove_identity_branch


@pytest.fixture(scope="module")
def model():
    return tiny.load()


@pytest.fixture(scope="module")
def plain(model):
    return tiny.sample(model)[0]


@pytest.fixture
def built(monkeypatch):
    """Weak references to every identity K and V built in the test."""
    references = []
    layers = IdentityCache.layers

    def watched(self, key, build, synchronize):
        found = layers(self, key, build, synchronize)
        references.extend(weakref.ref(tensor) for layer in found for tensor in layer)
        return found

    monkeypatch.setattr(IdentityCache, "layers", watched)
    return references


def assert_nothing_left(model, built):
    gc.collect()
    assert built and all(reference() is None for reference in built)
    assert KEY not in model.model_options.get("transformer_options", {})
    for block in model.model.diffusion_model.blocks:
        assert type(block.self_attn).__name__ == "WanSelfAttention"
        assert not [name for name in vars(block.self_attn) if "identity" in name or "foreign" in name]


def test_a_run_leaves_nothing(model, plain, built):
    patched = tiny.with_identity(model)
    first, (report,) = tiny.sample(patched)
    assert not torch.equal(first, plain)
    assert (report.builds, report.identity_calls, report.reads) == (1, tiny.STEPS, tiny.STEPS * tiny.WAN.blocks)
    assert_nothing_left(patched, built)
    assert torch.equal(tiny.sample(model)[0], plain)
    assert torch.equal(tiny.sample(patched)[0], first)


def test_applied_twice_is_applied_once(model):
    once = tiny.with_identity(model, seed=5)
    twice = tiny.with_identity(tiny.with_identity(model, seed=4), seed=5)
    assert torch.equal(tiny.sample(twice)[0], tiny.sample(once)[0])
    assert len(tiny.sample(twice)[1]) == 1
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING, WrappersMP.APPLY_MODEL):
        assert len(twice.get_wrappers(kind, KEY)) == 1


def test_removed(model, plain):
    removed = remove_identity_branch(tiny.with_identity(model))
    samples, reports = tiny.sample(removed)
    assert torch.equal(samples, plain) and not reports


def test_clones_carry_it_and_the_original_does_not(model, plain):
    patched = tiny.with_identity(model)
    assert torch.equal(tiny.sample(patched.clone().clone())[0], tiny.sample(patched)[0])
    assert torch.equal(tiny.sample(model)[0], plain)


def test_two_identities_on_one_model_do_not_mix(model):
    one, two = tiny.with_identity(model, seed=1), tiny.with_identity(model, seed=2)
    first = tiny.sample(one)[0]
    assert not torch.equal(tiny.sample(two)[0], first)
    assert torch.equal(tiny.sample(one)[0], first)


def test_strength_zero_is_the_base_model_bit_for_bit(model, plain):
    samples, (report,) = tiny.sample(tiny.with_identity(model, strength=0.0))
    assert torch.equal(samples, plain)
    assert (report.builds, report.cache_bytes, report.identity_calls) == (0, 0, 0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt,
                                   comfy.model_management.InterruptProcessingException])
@pytest.mark.parametrize("step", range(tiny.STEPS))
def test_an_exception_in_mid_run_leaves_nothing(model, plain, built, error, step):
    def fail(index, *_):
        if index == step:
            raise error

    patched = tiny.with_identity(model)
    with pytest.raises(error):
        tiny.sample(patched, callback=fail)
    assert_nothing_left(patched, built)
    assert torch.equal(tiny.sample(model)[0], plain)


def test_an_exception_inside_the_model_leaves_nothing(model, built):
    """Raised while the attention of the blocks is exchanged."""
    patched = tiny.with_identity(model)

    def fail(args, extra):
        raise ValueError("in a block")

    patched.set_model_patch_replace(fail, "dit", "double_block", 2)
    with pytest.raises(ValueError, match="in a block"):
        tiny.sample(patched)
    assert_nothing_left(patched, built)


def test_the_users_interrupt_during_the_build(model, plain, monkeypatch):
    """ComfyUI's linears look for the interrupt themselves, in the identity stream as in the video's."""
    patched, calls = tiny.with_identity(model), []
    project = type(tiny.adapter().blocks[0].k).__call__

    def interrupting(self, x):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing(True)
        return project(self, x)

    monkeypatch.setattr(type(tiny.adapter().blocks[0].k), "__call__", interrupting)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(patched)
    monkeypatch.undo()
    assert len(calls) < 3 * tiny.WAN.blocks
    assert torch.equal(tiny.sample(model)[0], plain)


def test_reserved_memory_is_given_back(model):
    """The bytes are announced while ComfyUI loads the model, and only then."""
    reserved = comfy.model_management.EXTRA_RESERVED_VRAM
    seen = []
    patched = tiny.with_identity(model, attention="merge")
    patched.add_wrapper_with_key(
        WrappersMP.PREPARE_SAMPLING, "probe",
        lambda executor, *args, **kwargs: (seen.append(comfy.model_management.EXTRA_RESERVED_VRAM - reserved),
                                           executor(*args, **kwargs))[1])
    tiny.sample(patched)
    kv = 2 * tiny.WAN.blocks * 32 * tiny.WAN.dim * 4
    identity_output = 3 * 4 * 6 * tiny.WAN.dim * 4
    assert seen == [kv + identity_output]
    assert reserved == comfy.model_management.EXTRA_RESERVED_VRAM


def growth(model):
    """Tensors and objects that fifty runs leave alive."""
    def alive():
        gc.collect()
        things = gc.get_objects()
        return sum(isinstance(thing, torch.Tensor) for thing in things), len(things)

    tiny.sample(model, steps=1)
    tensors, objects = alive()
    for _ in range(50):
        tiny.sample(model, steps=1)
    tensors_after, objects_after = alive()
    return tensors_after - tensors, objects_after - objects


def test_fifty_runs_leak_nothing(model):
    """ComfyUI itself keeps a few objects for each run of a clone (LoadedModel and its finalizers); we add none."""
    tensors, objects = growth(tiny.with_identity(model))
    _, objects_of_comfyui = growth(model.clone())
    assert tensors == 0
    assert objects - objects_of_comfyui < 50  # less than one object a run
