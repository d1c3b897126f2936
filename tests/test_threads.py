"""Runs at the same time, in two threads: results are those of one after the other, and the model stays as it was.

ComfyUI runs one prompt at a time. Where it has no identity to think of, two runs on one model may end with an error of
its own, because the one that ends first takes the model from the other; so may a plain run beside one with an identity.
"""
import functools
import sys
import threading

import comfy.model_management
import comfy.sample
import concat_id
import pytest
import torch

import tiny
from random_cases import run_cases
from small_world.tiny_models import TinyWan
from standin_core.errors import UserError

pytestmark = pytest.mark.nightly


@pytest.fixture(autouse=True)
def quick_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def together(*models):
    """What sampling each gives, all begun at once: a latent or an exception."""
    results, begin = [None] * len(models), threading.Barrier(len(models))
    # ComfyUI draws it from PyTorch's one generator, which two threads would seed at the same time
    noise = comfy.sample.prepare_noise(torch.zeros(tiny.LATENT), seed=7)

    def work(index, patched):
        try:
            with torch.inference_mode():
                begin.wait()
                results[index] = tiny.sample(patched, noise=noise)[0]
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(models)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    return results


def state_of(model):
    return [(type(module), sorted(vars(module))) for block in model.model.diffusion_model.blocks
            for module in (block, block.self_attn)]


@pytest.mark.parametrize("what, other", [
    ("two identities on one model at once", functools.partial(tiny.with_identity, seed=3, cache="fp8")),
    ("Stand-In and Concat-ID on one model at once", concat_id.with_reference)], ids=["Stand-In", "Concat-ID"])
def test_two_identities_on_one_model_wait_for_each_other(model, what, other):
    one, two = tiny.with_identity(model, seed=1), other(model)
    expected, before = [tiny.sample(each)[0] for each in (one, two)], state_of(model)
    reserved = comfy.model_management.EXTRA_RESERVED_VRAM

    def case(_):
        for found, right in zip(together(one, two), expected, strict=True):
            assert torch.equal(found, right)
        assert state_of(model) == before and reserved == comfy.model_management.EXTRA_RESERVED_VRAM

    run_cases(what, few=3, many=100, case=case)


def test_a_plain_run_beside_an_identity_reads_none(model, plain):
    patched, before = tiny.with_identity(model), state_of(model)
    expected = tiny.sample(patched)[0]

    def case(_):
        with_identity, without = together(patched, model.clone())
        for found, right, kind in ((with_identity, expected, UserError), (without, plain, AttributeError)):
            if isinstance(found, Exception):
                assert isinstance(found, kind), repr(found)
                assert "another run on this model" in str(found) or "NoneType" in str(found)
            else:
                assert torch.equal(found, right)
        assert state_of(model) == before

    run_cases("a plain run beside one with an identity", few=3, many=100, case=case)
    assert torch.equal(tiny.sample(model)[0], plain) and torch.equal(tiny.sample(patched)[0], expected)


def test_another_thread_calls_the_model_while_it_is_exchanged(model):
    """In mid-call of a run with an identity, the whole model is called from another thread, without one."""
    inputs = tiny.random(*tiny.LATENT), torch.tensor([1000.0]), tiny.prompt()[0][0]
    found = []

    def call():
        with torch.inference_mode():
            found.append(model.model.diffusion_model(*inputs, transformer_options={}))

    def look(args, extra):
        if len(found) == 1:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        return extra["original_block"](args)

    call()
    patched = tiny.with_identity(model)
    patched.set_model_patch_replace(look, "dit", "double_block", 1)
    tiny.sample(patched)
    expected, beside = found
    assert torch.equal(beside, expected)


def test_two_models_run_at_the_same_time(model):
    """Neither waits for the other: each run begins before the other has ended."""
    other = tiny.load(TinyWan(text_dim=tiny.WAN.text_dim, seed=11).weights())
    one, two = tiny.with_identity(model), tiny.with_identity(other, cache="streaming")
    expected = [tiny.sample(each)[0] for each in (one, two)]
    both = threading.Barrier(2, timeout=60)
    for each in (one, two):
        each.set_model_patch_replace(lambda args, extra: (both.wait(), extra["original_block"](args))[1],
                                     "dit", "double_block", 0)
    for found, right in zip(together(one, two), expected, strict=True):
        assert torch.equal(found, right)
