"""What computes the model's attention: the seams of ComfyUI, of which those newer than 0.30.0 are made here.

Newer: ``--use-ck-attention``, ModelPatcher.set_model_optimized_attention (Model Attention Backend) and the override of
Model Sparse Attention, as in comfy/ldm/modules/attention.py, comfy/model_patcher.py and
comfy_extras/nodes_sparse_attention.py of ComfyUI 0.35.
"""
import types

import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import comfy.ops
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from standin_core.attention import FLASH_ATTN, SAGE, SMOOTHED_SAGE, Host, choose_attention
from standin_core.attention.naive import naive_state
from standin_core.attention.states import StateSource
from standin_core.host_attention import OVERRIDE, attention_in_use, pytorch_backend


def own_source():
    """Which SageAttention it is, by what this version of ComfyUI gives it."""
    given = {}

    def recorded(q, *_, **settings):
        given.update(settings)
        return q

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(comfy.ldm.modules.attention, "sageattn", recorded, raising=False)
        comfy.ldm.modules.attention.attention_sage(*3 * [torch.zeros(1, 1, 64)], heads=1)
    assert given["tensor_layout"] == "NHD"
    return SMOOTHED_SAGE if given.get("smooth_k", True) else SAGE


HOSTS = {"attention_pytorch": (Host.PYTORCH, None), "attention_sage": (Host.SAGE, own_source()),
         "attention_flash": (Host.FLASH, FLASH_ATTN), "attention_comfy_kitchen_int8": (Host.KITCHEN, None),
         "attention_split": (Host.OTHER, None)}


def attention_named(name):
    def function(q, k, v, heads, **kwargs):
        raise AssertionError("no attention is to be computed")

    if name == "attention_sage":
        return comfy.ldm.modules.attention.attention_sage
    function.__name__ = name
    return comfy.ldm.modules.attention.wrap_attn(function)


def of_0_16_3(q, k, v, heads, mask=None, **kwargs):
    return sageattn(q, k, v, attn_mask=mask, is_causal=False, tensor_layout="NHD")


def with_an_import_and_a_pair(q, k, v, heads, **kwargs):
    from sageattention import sageattn

    out, _ = sageattn(q, k, v, tensor_layout="NHD", smooth_k=False)
    return out


class OfNoFunction:
    def __call__(self, q, k, v, heads, **kwargs):
        return sageattn(q, k, v)


def sageattn(*_, **__):
    raise AssertionError("SageAttention is not to be computed")


def without_source():
    return types.FunctionType(of_0_16_3.__code__.replace(co_filename="<nowhere>"), {"sageattn": sageattn})


def in_use_as_attention_sage(function, monkeypatch):
    monkeypatch.setattr(comfy.ldm.modules.attention, "attention_sage", function)
    monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", function)
    return attention_in_use({})


def test_keys_are_smoothed_where_comfyui_has_them_smoothed(monkeypatch):
    """The log-sum-exps are asked of the attention that the model has without an identity."""
    own = comfy.ldm.modules.attention.attention_sage
    for function, source in ((own, own_source()), (of_0_16_3, SMOOTHED_SAGE),
                             (with_an_import_and_a_pair, SAGE)):
        if function is not own:
            function.__name__ = "attention_sage"
            function = comfy.ldm.modules.attention.wrap_attn(function)
        found = in_use_as_attention_sage(function, monkeypatch)
        assert (found.host, found.source, found.compute) == (Host.SAGE, source, function)


@pytest.mark.parametrize("made", [OfNoFunction, without_source])
def test_where_nothing_tells_whether_keys_are_smoothed(made, monkeypatch):
    function = made()
    function.__name__ = "attention_sage"
    assert in_use_as_attention_sage(function, monkeypatch).host is Host.OTHER


class ModelPatcher:
    """As comfy/model_patcher.py has it."""

    @staticmethod
    def set_model_optimized_attention(optimized_attention):
        def optimized_attention_override(_, *args, **kwargs):
            return optimized_attention(*args, **kwargs)
        optimized_attention_override.__module__ = "comfy.model_patcher"
        return {OVERRIDE: optimized_attention_override}


@pytest.mark.parametrize("seam", ["started with", "Model Attention Backend"])
@pytest.mark.parametrize("name", HOSTS)
def test_attention_functions_of_comfyui(name, seam, monkeypatch):
    function = attention_named(name)
    monkeypatch.setattr(comfy.ldm.modules.attention, name, function, raising=False)
    options = {}
    if seam == "started with":
        monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", function)
    else:
        options = ModelPatcher.set_model_optimized_attention(function)
    found = attention_in_use(options)
    assert (found.host, found.source) == HOSTS[name]
    assert (found.backend is not None) == (name == "attention_pytorch")


def test_another_packs_function_by_a_known_name(monkeypatch):
    monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", attention_named("attention_pytorch"))
    assert attention_in_use({}).host is Host.OTHER


@pytest.mark.parametrize("module, host", [("nodes_sparse_attention", Host.SPARSE),
                                          ("comfy_extras.nodes_sparse_attention", Host.SPARSE),
                                          ("another_pack", Host.OVERRIDE)])
def test_overrides(module, host):
    def override(func, q, k, v, heads, **kwargs):
        return func(q, k, v, heads, **kwargs)

    override.__module__ = module
    assert attention_in_use({OVERRIDE: override}).host is host


class Callable:
    def __call__(self, func, *args, **kwargs):
        return func(*args, **kwargs)


def test_an_override_that_is_an_object():
    assert attention_in_use({OVERRIDE: Callable()}).host is Host.OVERRIDE


def test_a_model_attention_backend_that_keeps_its_function_otherwise():
    """As a newer ComfyUI may."""
    def optimized_attention_override(func, *args, **kwargs):
        return func(*args, **kwargs)

    optimized_attention_override.__module__ = "comfy.model_patcher"
    optimized_attention_override.__qualname__ = "ModelPatcher.set_model_optimized_attention.<locals>.override"
    assert attention_in_use({OVERRIDE: optimized_attention_override}).host is Host.OVERRIDE


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_pytorch_is_asked_in_comfyuis_own_context(backend, monkeypatch):
    """Versions of ComfyUI order the backends in this function of theirs."""
    def scaled_dot_product_attention(q, k, v, *args, **kwargs):
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "scaled_dot_product_attention", scaled_dot_product_attention)
    q, k, v = (torch.zeros(2, 3, 8, 64) for _ in range(3))
    assert pytorch_backend(q, k, v) == backend


@pytest.mark.parametrize("head_dim", [64, 128])
def test_pytorch_is_asked_for_as_much_as_a_video_has(head_dim, monkeypatch):
    """ComfyUI 0.16.3 on Windows orders the backends for what is not small alone."""
    def scaled_dot_product_attention(q, k, v, *args, **kwargs):
        if q.nelement() < 1024 * 128:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, *args, **kwargs)
        with sdpa_kernel(SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "scaled_dot_product_attention", scaled_dot_product_attention)
    sources = [StateSource(backend.name, "cpu", naive_state, backend=backend)
               for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)]
    monkeypatch.setattr("standin_core.attention.choice.FUSED", sources)
    choice = choose_attention("auto", (), attention_in_use({}), torch.device("cpu"), torch.float32, head_dim)
    assert choice.source is sources[1]
