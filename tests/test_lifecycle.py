"""What an identity leaves behind: nothing, on the model, in memory or in the next run."""
import copy
import gc
import itertools
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import comfy.model_management
import comfy.sample
import pytest
import torch
from comfy.patcher_extension import WrappersMP

import tiny
from random_cases import note, run_cases
from small_world.tiny_models import TinyWan
from standin_core.attention import ATTENTION_PATHS
from standin_core.errors import UserError
from standin_core.report import LISTENER
from standin_core.stand_in.adapter import LowRank
from standin_core.stand_in.applied import Applied, Identity
from standin_core.stand_in.apply import remove_identity_branch
from standin_core.stand_in.kv_cache import CACHE_MODES, IdentityCache
from standin_core.stand_in.managed import ManagedAdapter
from standin_core.stand_in.run import StandInRun
from standin_core.stand_in.wrappers import KEY, apply_model


@pytest.fixture
def built(monkeypatch):
    """Weak references to every run, and to every identity K and V, of the test."""
    references = []
    layers, open_run = IdentityCache.layers, StandInRun.__init__

    def watched_layers(self, *args):
        found = layers(self, *args)
        references.extend(weakref.ref(tensor) for block in range(tiny.WAN.blocks) for tensor in found[block])
        return found

    def watched_run(self, *args, **kwargs):
        open_run(self, *args, **kwargs)
        references.append(weakref.ref(self))

    monkeypatch.setattr(IdentityCache, "layers", watched_layers)
    monkeypatch.setattr(StandInRun, "__init__", watched_run)
    return references


def assert_nothing_left(model, built):
    gc.collect()
    assert len(built) > 1 and all(reference() is None for reference in built)
    for block in model.model.diffusion_model.blocks:
        assert type(block.self_attn).__name__ == "WanSelfAttention"
        left = [name for name in vars(block.self_attn)
                if any(part in name for part in ("identit", "foreign", "mass", "has_read"))]
        assert not left


def test_a_run_leaves_nothing(model, plain, built):
    patched = tiny.with_identity(model)
    first, (report,) = tiny.sample(patched)
    assert not torch.equal(first, plain)
    assert (report.builds, report.identity_calls, report.reads) == (1, tiny.STEPS, tiny.STEPS * tiny.WAN.blocks)
    assert_nothing_left(patched, built)
    assert torch.equal(tiny.sample(model)[0], plain)
    assert torch.equal(tiny.sample(patched)[0], first)


def test_applied_twice_is_two_people_and_one_run(model):
    once = tiny.with_identity(model, seed=5)
    twice = tiny.with_identity(once, seed=4)
    latents, reports = tiny.sample(twice)
    assert not torch.equal(latents, tiny.sample(once)[0])
    assert len(reports) == 1 and len(reports[0].identities) == 2 and reports[0].builds == 2
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING, WrappersMP.APPLY_MODEL):
        assert len(twice.get_wrappers(kind, KEY)) == 1


def test_another_node_may_deep_copy_the_options_of_a_run(model):
    """The run and its listener stay what they are, in the copy too."""
    kept = []

    def pre_cfg(args):
        options = args["model_options"]["transformer_options"]
        copied = copy.deepcopy(options)
        kept.append(copied[KEY] is options[KEY] and copied[LISTENER] is options[LISTENER])
        return args["conds_out"]

    patched = tiny.with_identity(model)
    patched.set_model_sampler_pre_cfg_function(pre_cfg)
    tiny.sample(patched)
    assert kept == [True] * tiny.STEPS


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


@pytest.mark.parametrize("cache, path", zip(CACHE_MODES, itertools.cycle(ATTENTION_PATHS)))
def test_strength_zero_is_the_base_model_bit_for_bit(model, plain, path, cache):
    samples, (report,) = tiny.sample(tiny.with_identity(model, strength=0.0, attention=path, cache=cache))
    assert torch.equal(samples, plain)
    assert (report.builds, report.cache_bytes, report.identity_calls) == (0, 0, 0)


ERRORS = (ValueError, KeyboardInterrupt, comfy.model_management.InterruptProcessingException)


@pytest.mark.parametrize("step, error", zip(range(tiny.STEPS), itertools.cycle(ERRORS)))
def test_an_exception_in_mid_run_leaves_nothing(model, plain, built, error, step):
    def fail(index, *_):
        if index == step:
            raise error

    patched = tiny.with_identity(model)
    with pytest.raises(error):
        tiny.sample(patched, callback=fail)
    assert_nothing_left(patched, built)
    assert torch.equal(tiny.sample(model)[0], plain)


def test_the_memory_is_free_while_the_exception_is_still_held(model, built):
    """ComfyUI unloads models with an out-of-memory error in hand; its traceback holds the frames of the run."""
    patched = tiny.with_identity(model)
    patched.set_model_patch_replace(lambda args, extra: 1 / 0, "dit", "double_block", 2)
    with pytest.raises(ZeroDivisionError) as held:
        tiny.sample(patched)
    alive = [reference() for reference in built]
    assert not [thing for thing in alive if isinstance(thing, torch.Tensor)]
    assert held.value is not None


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


def managed_adapters():
    """What ComfyUI's memory manager has of ours."""
    return [each for each in comfy.model_management.loaded_models() if isinstance(each.model, ManagedAdapter)]


@pytest.fixture
def no_copies(monkeypatch):
    """The adapter's own tensors must not be read, which copies them to the device."""
    def read(self, x):
        raise AssertionError("a matrix of the adapter was copied")

    monkeypatch.setattr(LowRank, "__call__", read)


def test_a_streamed_adapter_is_loaded_once_a_run_and_let_go(model, request):
    """By ComfyUI, beside the model: two people of one adapter share it, and every call reads the same tensors."""
    twice = tiny.with_identity(tiny.with_identity(model, cache="resident"), seed=5, cache="resident")
    expected = tiny.sample(twice)[0]
    request.getfixturevalue("no_copies")
    patched, loaded = tiny.with_identity(tiny.with_identity(model, cache="streaming"), seed=5, cache="streaming"), []

    def look(*_):
        (managed,) = managed_adapters()
        loaded.append((weakref.ref(managed.model), [weight.data_ptr() for weight in managed.model.parameters()]))

    assert torch.equal(tiny.sample(patched, callback=look)[0], expected)
    assert len(loaded) == tiny.STEPS and len({tuple(places) for _, places in loaded}) == 1
    gc.collect()
    assert not managed_adapters() and loaded[0][0]() is None


def test_a_streamed_adapter_is_let_go_while_an_exception_is_held(model, no_copies):
    def fail(*_):
        assert managed_adapters()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:
        tiny.sample(tiny.with_identity(model, cache="streaming"), callback=fail)
    assert not managed_adapters() and held.value is not None


@pytest.mark.parametrize("cache", ["resident", "offloaded", "fp8"])
def test_an_adapter_is_read_once_a_run_and_not_kept_loaded(model, cache, monkeypatch):
    """Each matrix goes to the device for the build alone; nothing asks for the last block's queries."""
    found, reads, call = [], Counter(), LowRank.__call__

    def counted(self, x):
        reads[id(self)] += 1
        return call(self, x)

    monkeypatch.setattr(LowRank, "__call__", counted)
    tiny.sample(tiny.with_identity(model, cache=cache), callback=lambda *_: found.extend(managed_adapters()))
    assert not found
    *blocks, last = tiny.adapter().blocks
    assert reads == {id(each): 1 for block in blocks for each in (block.q, block.k, block.v)} | {
        id(each): 1 for each in (last.k, last.v)}


def test_the_bytes_are_announced_while_the_model_loads(model):
    """What is announced covers what the run then held; afterwards it is given back."""
    reserved = comfy.model_management.EXTRA_RESERVED_VRAM
    seen = []

    def probe(executor, *args, **kwargs):
        seen.append(comfy.model_management.EXTRA_RESERVED_VRAM - reserved)
        return executor(*args, **kwargs)

    patched = tiny.with_identity(model, attention="merge")
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "probe", probe)
    _, (report,) = tiny.sample(patched)
    outputs_of_both_prompts = 2 * 3 * 4 * 6 * tiny.WAN.dim * 4
    assert seen == [report.cache_bytes + outputs_of_both_prompts]
    assert reserved == comfy.model_management.EXTRA_RESERVED_VRAM


CONTROLS = {
    "never": ({"start_percent": 0.6, "end_percent": 0.3}, "the identity would never be read"),
    "less than nothing": ({"strength": -1.0}, "strength must be a finite number from 0 to 1000, but is -1"),
    "a strength that cannot be concatenated": (
        {"attention": "concatenate", "strength": 0.5}, "strength 0.5 needs a different weight"),
    "no such path": ({"attention": "sage"}, "attention must be one of auto, merge, concatenate"),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_that_cannot_work_are_refused_when_applied(model, name):
    controls, words = CONTROLS[name]
    with pytest.raises(UserError, match=words):
        tiny.with_identity(model, **controls)


def test_without_a_sink_the_report_is_logged(model, caplog):
    """In core's samplers there is no report output."""
    with caplog.at_level("INFO", logger="standin_core.runs"):
        comfy.sample.sample(tiny.with_identity(model), torch.zeros(tiny.LATENT), 1, 1.0, "euler", "simple",
                            tiny.prompt(), tiny.prompt(), torch.zeros(tiny.LATENT), disable_pbar=True)
    assert "32 identity tokens beside 72 video tokens" in caplog.text


def test_two_models_in_two_threads_share_a_run(model):
    """ComfyUI's multi-GPU: one run, one model for each device, called at the same time."""
    models = [model, tiny.load(TinyWan(text_dim=tiny.WAN.text_dim, seed=11).weights())]
    applied = Applied((Identity(tiny.adapter(), tiny.random(1, 16, 1, 8, 16)),))
    condition = tiny.prompt()[0][0]

    def call(base, run):
        options = {"wrappers": {WrappersMP.APPLY_MODEL: {KEY: [apply_model]}}, KEY: run}
        with torch.inference_mode():
            return base.apply_model(tiny.random(*tiny.LATENT), torch.tensor([0.9]), c_crossattn=condition,
                                    transformer_options=options)

    run = {"applied": applied, "steps": 1, "hook_groups": 1, "whole": (3, 4, 6)}
    expected = [call(each.model, StandInRun(**run)) for each in models]
    shared = StandInRun(**run)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = list(pool.map(lambda each: call(each.model, shared), models))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (shared.caches[0].builds, shared.report.model_calls, shared.report.identity_calls) == (2, 10, 10)
    assert shared.report.reads == 10 * tiny.WAN.blocks


def growth(model, what):
    """Tensors and objects that many runs leave alive."""
    def alive():
        gc.collect()
        things = gc.get_objects()
        return sum(isinstance(thing, torch.Tensor) for thing in things), len(things)

    tiny.sample(model, steps=1)
    tensors, objects = alive()
    run_cases(what, few=50, many=5000, case=lambda r: tiny.sample(model, steps=1, seed=r.randrange(2**32)),
              goes_on=False)
    tensors_after, objects_after = alive()
    return tensors_after - tensors, objects_after - objects


@pytest.mark.nightly
def test_many_runs_leak_nothing(model):
    """ComfyUI itself keeps a few objects for each run of a clone (LoadedModel and its finalizers); we add none."""
    what = "runs with an identity in a row"
    tensors, objects = growth(tiny.with_identity(model), what)
    _, objects_of_comfyui = growth(model.clone(), "plain runs in a row")
    note(what, leaked_tensors=tensors, leaked_objects=objects, objects_of_plain_runs=objects_of_comfyui)
    assert tensors == 0
    assert objects - objects_of_comfyui < 50  # less than one object a run, of fifty
