"""What computes the model's attention: the seams of ComfyUI, of which those newer than 0.30.0 are made here.

Newer: ``--use-ck-attention``, ModelPatcher.set_model_optimized_attention (Model Attention Backend) and the override of
Model Sparse Attention, as in comfy/ldm/modules/attention.py, comfy/model_patcher.py and
comfy_extras/nodes_sparse_attention.py of ComfyUI 0.35.
"""
import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import comfy.ops
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from standin_core.attention import FLASH_ATTN, SAGE, Host
from standin_core.wan import OVERRIDE, attention_in_use, pytorch_backend

HOSTS = {"attention_pytorch": (Host.PYTORCH, None), "attention_sage": (Host.SAGE, SAGE),
         "attention_flash": (Host.FLASH, FLASH_ATTN), "attention_comfy_kitchen_int8": (Host.KITCHEN, None),
         "attention_split": (Host.OTHER, None)}


def attention_named(name):
    def function(q, k, v, heads, **kwargs):
        raise AssertionError("no attention is to be computed")

    function.__name__ = name
    return comfy.ldm.modules.attention.wrap_attn(function)


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


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_pytorch_is_asked_in_comfyuis_own_context(backend, monkeypatch):
    """Versions of ComfyUI order the backends in this function of theirs."""
    def scaled_dot_product_attention(q, k, v, *args, **kwargs):
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "scaled_dot_product_attention", scaled_dot_product_attention)
    q, k, v = (torch.zeros(2, 3, 8, 64) for _ in range(3))
    assert pytorch_backend(q, k, v) == backend
