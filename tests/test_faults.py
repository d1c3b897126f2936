"""An exception at a random operation of a run leaves nothing behind, whatever the method and the settings."""
import functools
import gc
import weakref

import comfy.model_management
import concat_id
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sd15
import tiny
from golden_cases import load_case
from random_cases import run_cases
from standin_core.id_animator.run import IDAnimatorRun
from standin_core.stand_in.kv_cache import IdentityCache

pytestmark = pytest.mark.nightly

CONTROLS = [
    {"cache": "resident"}, {"cache": "offloaded"}, {"cache": "streaming"}, {"cache": "fp8"},
    {"attention": "concatenate"}, {"strength": 0.5}, {"guidance": "positive pass"},
    {"guidance": "own scale", "guidance_scale": 2.0}, {"start_percent": 0.3, "end_percent": 0.8},
]


STAND_IN = [functools.partial(tiny.with_identity, **controls) for controls in CONTROLS]
CONCAT_ID = [concat_id.with_reference,
             functools.partial(concat_id.with_reference, guidance="own scale", guidance_scale=2.0),
             lambda model: concat_id.with_reference(tiny.with_identity(model))]
STILL = load_case(sd15.STILL)


def with_face(model, **settings):
    patched = sd15.with_face(model, STILL, **settings)
    comfy.model_management.load_models_gpu([patched])  # adds the low-rank weights: an error there is only logged
    return patched


ID_ANIMATOR = [functools.partial(with_face, **settings) for settings in (
    {}, {"strength": 0.5}, {"lora_strength": 0.0}, {"start_percent": 0.3, "end_percent": 0.8})]


class InjectedError(RuntimeError):
    pass


ERRORS = (InjectedError, torch.OutOfMemoryError, KeyboardInterrupt,
          comfy.model_management.InterruptProcessingException)


class AtOperation(TorchDispatchMode):
    """Within it, the operation of this number raises the error; without an error it counts."""

    def __init__(self, number=0, error=None):
        super().__init__()
        self.number, self.error, self.count = number, error, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        if self.error is not None and self.count == self.number:
            raise self.error("injected")
        return function(*args, **(kwargs or {}))


def tensors_in(content):
    """Those of a dictionary, a list or a tuple, and of such inside of it."""
    for each in gc.get_referents(content):
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, dict | list | tuple):
            yield from tensors_in(each)


@pytest.fixture
def held(monkeypatch):
    """Weak references to the identity K and V that runs have held."""
    references = []
    layers, faces = IdentityCache.layers, IDAnimatorRun.faces

    def watched_layers(self, *args):
        found = layers(self, *args)
        references.extend(map(weakref.ref, tensors_in(vars(found))))
        return found

    def watched_faces(self, *args):
        found = faces(self, *args)
        references.extend(map(weakref.ref, tensors_in(found)))
        return found

    monkeypatch.setattr(IdentityCache, "layers", watched_layers)
    monkeypatch.setattr(IDAnimatorRun, "faces", watched_faces)
    return references


def state_of(model):
    """Classes of the modules, what is in their dictionaries, and ComfyUI's globals.

    An error while ComfyUI loads the model leaves that model off its list, with or without an identity. A model that
    another test has left in a cycle is on the list until Python collects it.
    """
    gc.collect()
    modules = {name: (type(module), sorted(vars(module))) for name, module in model.model.named_modules()
               if name != "model_sampling"}
    others = [type(each.model) for each in comfy.model_management.loaded_models() if each.model is not model.model]
    return modules, comfy.model_management.EXTRA_RESERVED_VRAM, others


@pytest.mark.parametrize("what, load, sample, ways", [
    ("exceptions in a run", tiny.load, tiny.sample, STAND_IN),
    ("exceptions in a run of Concat-ID", tiny.load, tiny.sample, CONCAT_ID),
    ("exceptions in a run of ID-Animator", functools.partial(sd15.unet, STILL),
     functools.partial(sd15.whole_loop, case=STILL, steps=2), ID_ANIMATOR)])
def test_a_fault_at_any_operation(held, what, load, sample, ways):
    model, undisturbed = load(), {}
    plain, _ = sample(model)

    def case(r):
        number, error = r.randrange(len(ways)), r.choice(ERRORS)
        patched = ways[number](model)
        if number not in undisturbed:
            sample(patched)  # what a process computes once is no part of the count
            with AtOperation() as counted:
                samples, _ = sample(patched)
            undisturbed[number] = samples, counted.count
        expected, operations = undisturbed[number]
        before = state_of(model)
        held.clear()
        with pytest.raises(error) as caught, AtOperation(r.randrange(1, operations + 1), error):
            sample(patched)
        alive = [each for each in (reference() for reference in held) if each is not None]
        # an operation that fails has its own arguments in hand: K and V of one block, in fp8 with their scales
        assert len({id(each) for each in alive}) <= 4, "identity K/V of other blocks live as long as the exception"
        del alive, caught
        gc.collect()
        assert not [reference for reference in held if reference() is not None]
        assert state_of(model) == before
        assert torch.equal(sample(patched)[0], expected)
        assert torch.equal(sample(model)[0], plain)

    run_cases(what, few=6, many=2000, case=case)
