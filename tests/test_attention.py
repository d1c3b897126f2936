"""Restricted attention: the fp32 reference against a loop over queries, then every path against the reference."""
import dataclasses
import math
import re
import sys
import types

import pytest
import torch
from torch.nn.attention import SDPBackend

from standin_core.attention import (
    FLASH_ATTN,
    PYTORCH,
    SAGE,
    SMOOTHED_SAGE,
    AttentionInUse,
    Host,
    Need,
    Reason,
    Why,
    choose_attention,
    restricted_attention,
)
from standin_core.attention.choice import AttentionChoice
from standin_core.attention.naive import naive_restricted_attention, naive_state
from standin_core.attention.states import FUSED, TILED, StateSource, merge_states, state_trial
from standin_core.errors import UserError
from tiny import random
from tolerances import RELATIVE_RMS, assert_close

CPU_FLASH = FUSED[0]
CPU = torch.device("cpu")
SCALE_OF_8 = 8**-0.5

# batch, heads, video tokens, identity tokens, head dim
CASES = {
    "one query, one identity token": (1, 1, 1, 1, 8),
    "odd sizes that no tile divides": (2, 3, 67, 13, 24),
    "more identity than video, as in a short clip": (1, 2, 33, 150, 64),
    "more queries than one tile of the tiled source": (1, 1, 521, 40, 16),
    "head dim of Wan": (1, 2, 96, 64, 128),
}
BIASES = {"the paper": 0.0, "weaker": math.log(0.3), "stronger": math.log(4.0)}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty gives NaN, so that an element nobody writes cannot pass."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def inputs(case, dtype=torch.float32, device=CPU):
    batch, heads, video, identity, head_dim = CASES[case]
    shapes = [(batch, video, heads * head_dim)] * 3 + [(1, identity, heads * head_dim)] * 2
    return heads, [random(*shape, seed=i).to(device, dtype) for i, shape in enumerate(shapes)]


def reading(tensors, bias=0.0):
    """q, k, v and one identity that every query reads with this bias."""
    q, k, v, identity_k, identity_v = tensors
    return q, k, v, [(identity_k, identity_v, torch.full((1, 1), bias, device=q.device))]


def by_loop(q, k, v, identity_k, identity_v, heads, bias):
    """One query at a time, weights by exp and sum: another algorithm than the reference."""
    out = torch.empty(q.shape, dtype=torch.float64)
    size = q.shape[-1] // heads
    for b in range(len(q)):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            keys = torch.cat((k[b, :, part], identity_k[0, :, part])).double()
            values = torch.cat((v[b, :, part], identity_v[0, :, part])).double()
            for n in range(q.shape[1]):
                weights = torch.exp(keys @ q[b, n, part].double() / math.sqrt(size))
                weights[k.shape[1]:] *= math.exp(bias)
                out[b, n, part] = (weights[:, None] * values).sum(0) / weights.sum()
    return out


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("case", CASES)
def test_reference_against_a_loop(case, bias):
    heads, tensors = inputs(case)
    assert_close(naive_restricted_attention(*reading(tensors, bias), heads), by_loop(*tensors, heads, bias))


def never(*_, **__):
    raise AssertionError("the merge path must not call the host's attention")


SOURCES = [pytest.param(source, marks=[pytest.mark.cuda] if source.device_type == "cuda" else [], id=source.name)
           for source in (*FUSED, SAGE, FLASH_ATTN, TILED)]


@pytest.mark.parametrize("dtype", RELATIVE_RMS, ids=str)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("case", CASES)
def test_merge_against_the_reference(case, bias, source, dtype):
    device = torch.device(source.device_type or "cpu")
    refusal = source.refusal(device, dtype, CASES[case][-1])
    if refusal is not None:
        # a package fails where it does not know a dtype; PyTorch's own has to be right where it has an operator
        absent = {Why.NOT_INSTALLED, Why.NO_OPERATOR, Why.OTHER_DEVICE, *([Why.FAILED] if source.package else [])}
        assert refusal.kind in absent, str(refusal)
        pytest.skip(str(refusal))
    heads, tensors = inputs(case, dtype, device)
    attend = restricted_attention(AttentionChoice("merge", source, ()))
    expected = naive_restricted_attention(*reading(tensors, bias), heads)
    assert_close(attend(never, *reading(tensors, bias), heads=heads), expected, source.rounding + RELATIVE_RMS[dtype])


def host(q, k, v, heads, **_):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", RELATIVE_RMS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_concatenate_against_the_reference(case, dtype):
    heads, tensors = inputs(case, dtype)
    attend = restricted_attention(AttentionChoice("concatenate", None, ()))
    expected = naive_restricted_attention(*reading(tensors), heads)
    assert_close(attend(host, *reading(tensors), heads=heads), expected, RELATIVE_RMS[dtype])


@pytest.mark.parametrize("path", ["merge", "concatenate"])
def test_a_scale_of_its_own(path):
    """Some models scale their logits otherwise than by the head dim."""
    heads, tensors = inputs("odd sizes that no tile divides")
    queries, *others = tensors

    def scaled_host(q, k, v, heads, scale):
        return host(q * (scale * 24**0.5), k, v, heads)

    attend = restricted_attention(choose_attention(path, (), PYTORCH, CPU, torch.float32, 24))
    assert_close(attend(scaled_host, *reading(tensors), heads=heads, scale=0.5),
                 naive_restricted_attention(*reading((queries * (0.5 * 24**0.5), *others)), heads))


@pytest.mark.parametrize("path", ["merge", "concatenate"])
def test_heads_already_split(path):
    """Some attention calls come as [B, H, N, D] and want it back so."""
    heads, tensors = inputs("odd sizes that no tile divides")
    q, k, v, identities = reading(tensors)
    choice = choose_attention(path, (), PYTORCH, CPU, torch.float32, 24)

    def split_host(q, k, v, heads, skip_reshape, skip_output_reshape):
        assert skip_reshape and skip_output_reshape
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    out = restricted_attention(choice)(split_host, *split, identities, heads=heads, skip_reshape=True,
                                       skip_output_reshape=True)
    assert_close(out.transpose(1, 2).flatten(2), naive_restricted_attention(q, k, v, identities, heads))


def test_merging_with_nothing_is_the_identity_of_the_merge():
    """A bias of log(0) leaves the video's own attention bit for bit."""
    q, k, v = (random(1, 2, 9, 8, seed=i) for i in range(3))
    output, lse = naive_state(q, k, v, SCALE_OF_8)
    nothing = torch.tensor(-math.inf)
    merged = merge_states((output.clone(), lse), naive_state(q, v, k, SCALE_OF_8), nothing)
    assert torch.equal(merged[0], output) and torch.equal(merged[1], lse)


def test_merge_is_finite_where_a_plain_exp_would_overflow():
    q, k, v = (random(1, 1, 4, 8, seed=i) for i in range(3))
    output, lse = naive_state(q, k, v, SCALE_OF_8)
    merged, merged_lse = merge_states((output.clone(), lse + 500), (v, lse + 600), torch.tensor(0.0))
    assert_close(merged, v)
    assert_close(merged_lse, lse + 600)


@pytest.mark.parametrize("path", ["merge", "concatenate"])
@pytest.mark.parametrize("extra, words", [
    ({"mask": torch.zeros(1, 1)}, "a mask"), ({"enable_gqa": True}, "grouped keys")])
def test_what_cannot_be_read_beside_is_refused(path, extra, words):
    heads, tensors = inputs("one query, one identity token")
    attend = restricted_attention(choose_attention(path, (), PYTORCH, CPU, torch.float32, 8))
    with pytest.raises(UserError, match=f"comes with {words}"):
        attend(host, *reading(tensors), heads=heads, **extra)


OVERRIDDEN = AttentionInUse(Host.OVERRIDE)
WITH_SAGE = AttentionInUse(Host.SAGE, SAGE)
GIVES_STATES = AttentionInUse(Host.FLASH, TILED)
WITH_KITCHEN, WITH_SPARSE = AttentionInUse(Host.KITCHEN), AttentionInUse(Host.SPARSE)
SAGE_HERE = dataclasses.replace(SAGE, device_type=None, package=None, state=TILED.state)
WITH_SAGE_HERE = AttentionInUse(Host.SAGE, SAGE_HERE)
HALF, DOUBLE = ((Reason(Need.STRENGTH, (strength,)),) for strength in (0.5, 2.0))
MPS = torch.device("mps")

# requested, what needs a log-sum-exp, the attention in use if it is not PyTorch's, device -> path, source, a refusal
CHOICES = {
    "plain ComfyUI merges": ("auto", (), PYTORCH, CPU, "merge", CPU_FLASH, "concatenate: merging copies nothing"),
    "the attention in use is kept where it can be": (
        "auto", (), OVERRIDDEN, CPU, "concatenate", None, "gives no log-sum-exp"),
    "strength needs states, so the attention in use is left and it is said": (
        "auto", HALF, OVERRIDDEN, CPU, "merge", CPU_FLASH, "strength 0.5 needs one"),
    "an explicit merge leaves it too": (
        "merge", (), OVERRIDDEN, CPU, "merge", CPU_FLASH, "attention set to merge needs one"),
    "a package that gives states is merged": (
        "auto", (), GIVES_STATES, CPU, "merge", TILED, "concatenate: merging copies nothing"),
    "a package that gives states knows strengths": (
        "auto", HALF, GIVES_STATES, CPU, "merge", TILED, "concatenate: it knows no weight but 1"),
    "a package that cannot give states here is kept": (
        "auto", (), WITH_SAGE, CPU, "concatenate", None, "SageAttention: it runs on cuda, not on cpu"),
    "a package that cannot give states here is left for a strength": (
        "auto", DOUBLE, WITH_SAGE, CPU, "merge", CPU_FLASH, "ComfyUI runs SageAttention, which gives no"),
    "SageAttention takes the identity with the video": (
        "auto", (), WITH_SAGE_HERE, CPU, "concatenate", None, "merge: SageAttention computes the identity's keys with"),
    "SageAttention is called twice for a strength": (
        "auto", HALF, WITH_SAGE_HERE, CPU, "merge", SAGE_HERE, "Triton kernel: it runs on CUDA, not on cpu"),
    "SageAttention is called twice where merging is set": (
        "merge", (), WITH_SAGE_HERE, CPU, "merge", SAGE_HERE, "Triton kernel: it runs on CUDA, not on cpu"),
    "comfy-kitchen's attention is kept": (
        "auto", (), WITH_KITCHEN, CPU, "concatenate", None, "ComfyUI runs comfy-kitchen's attention, which gives no"),
    "comfy-kitchen's attention is left for a strength, and it is said": (
        "auto", HALF, WITH_KITCHEN, CPU, "merge", CPU_FLASH, "and strength 0.5 needs one, so the video's"),
    "sparse attention is dense with more keys": (
        "auto", (), WITH_SPARSE, CPU, "concatenate", None, "sparse attention: it takes no more keys than queries"),
    "sparse attention is dense where concatenating is set": (
        "concatenate", (), WITH_SPARSE, CPU, "concatenate", None, "sparse attention: it takes no more keys than"),
    "sparse attention is left for a strength, and it is said": (
        "auto", HALF, WITH_SPARSE, CPU, "merge", CPU_FLASH, "Model Sparse Attention computes the model's attention,"),
    "an explicit concatenation": ("concatenate", (), PYTORCH, CPU, "concatenate", None, "set to concatenate"),
    "no states on the device: concatenate": (
        "auto", (), PYTORCH, MPS, "concatenate", None, "no attention on mps gives a log-sum-exp"),
    "no states on the device, but a strength": (
        "auto", DOUBLE, PYTORCH, MPS, "merge", TILED, "no attention on mps"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choice(name):
    requested, needs, in_use, device, path, source, words = CHOICES[name]
    choice = choose_attention(requested, needs, in_use, device, torch.float32, 128)
    assert (choice.path, choice.source) == (path, source)
    assert any(words in str(each) for each in choice.passed_over)
    assert all(": " in str(each) for each in choice.passed_over)


@pytest.mark.parametrize("taken", [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH])
def test_the_backend_that_comfyui_would_take_comes_first(taken, monkeypatch):
    """And where it is none of those with a log-sum-exp, the order stays."""
    flash, cudnn = (StateSource(backend.name, "cpu", naive_state, backend=backend)
                    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION))
    monkeypatch.setattr("standin_core.attention.choice.FUSED", (flash, cudnn))
    asked = []
    in_use = AttentionInUse(Host.PYTORCH, backend=lambda q, k, v: asked.append((q, k, v)) or SDPBackend(int(taken)))
    choice = choose_attention("auto", (), in_use, CPU, torch.float32, 64)
    assert choice.source is (cudnn if taken == SDPBackend.CUDNN_ATTENTION else flash)
    assert {x.dtype for x in asked[0]} == {torch.float32} and {x.shape[-1] for x in asked[0]} == {64}


@pytest.mark.parametrize("needs, path", [((), "concatenate"), (HALF, "merge")])
def test_a_backend_that_is_wrong_is_kept_where_it_can_be(needs, path, monkeypatch):
    """Its keys and values are concatenated; where a strength needs a log-sum-exp, another backend gives it."""
    cudnn = StateSource("cuDNN", "cpu", in_powers_of_2, backend=SDPBackend.CUDNN_ATTENTION)
    flash = StateSource("flash", "cpu", naive_state, backend=SDPBackend.FLASH_ATTENTION)
    monkeypatch.setattr("standin_core.attention.choice.FUSED", (flash, cudnn))
    in_use = AttentionInUse(Host.PYTORCH, backend=lambda q, k, v: SDPBackend.CUDNN_ATTENTION)
    choice = choose_attention("auto", needs, in_use, CPU, torch.float32, 64)
    assert (choice.path, choice.source) == (path, flash if needs else None)
    assert str(choice.passed_over[0]).startswith("cuDNN: it is wrong on this device")


def test_a_source_asks_pytorch():
    """The rules of PyTorch's kernels are PyTorch's to know."""
    asked = []
    source = StateSource("probe", "cpu", None, can_use=lambda params: asked.append(params.key) or len(asked) < 2)
    refusal = source.refusal(CPU, torch.bfloat16, 72)
    assert str(refusal) == "PyTorch has none for torch.bfloat16 and head dim 72 on this device"
    assert [key.shape[-1] for key in asked] == [72, 72] and asked[0].dtype == torch.bfloat16
    assert [key.stride(0) for key in asked] == [131 * 2 * 72, 0]  # each video its own keys; an identity's for all


def in_powers_of_2(q, k, v, scale):
    """As PyTorch's on ROCm before 2.8."""
    output, log_sum_exp = naive_state(q, k, v, scale)
    return output, log_sum_exp / math.log(2)


def as_if_contiguous(q, k, v, scale):
    """Reads [B, M, H, D] as if it lay in memory as [B, H, M, D]."""
    k, v = (x if x.stride(0) == 0 else x.as_strided(x.shape, torch.empty(x.shape).stride()) for x in (k, v))
    return naive_state(q, k, v, scale)


def blind_to_what_is_shared(q, k, v, scale):
    """Right for a video's own keys; where the batch shares them, all but the first video are left at zero."""
    output, log_sum_exp = naive_state(q, k, v, scale)
    if k.stride(0) == 0:
        output[1:], log_sum_exp[1:] = 0, 0
    return output, log_sum_exp


def not_a_number_at_last(q, k, v, scale):
    output, log_sum_exp = naive_state(q, k, v, scale)
    return output, torch.full_like(log_sum_exp, math.nan) if k.stride(0) == 0 else log_sum_exp


def raises(q, k, v, scale):
    raise RuntimeError("no kernel image is available\nand more")


MADE = {
    "right": (naive_state, None),
    "log-sum-exps in powers of 2": (in_powers_of_2, r"by \d\.\de-0[78] of the output and [1-9]\.\de\+00 of the log"),
    "strides of its own": (as_if_contiguous, r"wrong on this device, by [1-9]\.\de[-+]0[01] of"),
    "keys that a batch shares": (blind_to_what_is_shared, r"wrong on this device, by [1-9]\.\de[-+]0[01] of"),
    "no number": (not_a_number_at_last, "nan of the log-sum-exp"),
    "an error": (raises, r"failed on this device \(RuntimeError: no kernel image is available\)$"),
}


@pytest.mark.parametrize("name", MADE)
def test_sources_of_pytorch_are_asked_once(name):
    state, words = MADE[name]
    calls = []
    source = StateSource(name, "cpu", lambda *args: calls.append(1) or state(*args))
    refusals = [source.refusal(CPU, torch.float32, 64) for _ in range(3)]
    assert refusals[0] is None if words is None else re.search(words, str(refusals[0]))
    assert refusals[0] is refusals[1] is refusals[2] and len(calls) in (1, 2)


def sageattn_2(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
    """With the signature and the returns of SageAttention 2's, computed in fp64."""
    assert tensor_layout == "NHD" and not is_causal and return_lse and kwargs.get("smooth_k") is False
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    output, log_sum_exp = naive_state(q.double(), k.double(), v.double(), sm_scale)
    return output.to(q.dtype).transpose(1, 2), log_sum_exp.float()


def sageattn_2_smoothing(*args, smooth_k=True, **kwargs):
    """Adds to the log-sum-exps what it took off the logits, so they are the same."""
    assert smooth_k
    return sageattn_2(*args, smooth_k=False, **kwargs)


def sageattn_1(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, smooth_k=True, **kwargs):
    """Version 1 swallows return_lse."""
    return sageattn_2(q, k, v, tensor_layout, is_causal, sm_scale, return_lse=True, smooth_k=smooth_k)[0]


def sageattn_in_powers_of_2(*args, return_lse=False, **kwargs):
    output, log_sum_exp = sageattn_2(*args, return_lse=return_lse, **kwargs)
    return output, log_sum_exp / math.log(2)


def sageattn_of_nan(*args, return_lse=False, **kwargs):
    output, log_sum_exp = sageattn_2(*args, return_lse=return_lse, **kwargs)
    return output, torch.full_like(log_sum_exp, math.nan)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, return_attn_probs=False):
    """As FlashAttention 2's: [B, N, H, D], and a third thing when asked for more than the output."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    output, log_sum_exp = naive_state(q.double(), k.double(), v.double(), softmax_scale)
    return output.to(q.dtype).transpose(1, 2), log_sum_exp.float(), torch.empty(0)


# the packages need CUDA; what stands in for them here has their signatures (sageattention/core.py of SageAttention 2.2
# and of 1.0.6, flash_attn_interface.py of FlashAttention 2.8)
PACKAGES = {
    "SageAttention 2": (SAGE, sageattn_2, None),
    "SageAttention 2, smoothing": (SMOOTHED_SAGE, sageattn_2_smoothing, None),
    "SageAttention 1": (SAGE, sageattn_1, "returns no log-sum-exp, version 2 does"),
    "another base": (SAGE, sageattn_in_powers_of_2, "it is wrong on this device, by "),
    "no number": (SAGE, sageattn_of_nan, "nan of the log-sum-exp"),
    "FlashAttention 2": (FLASH_ATTN, flash_attn_func, None),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_asked_before_it_is_taken(name, monkeypatch):
    source, function, words = PACKAGES[name]
    module = types.ModuleType(source.package)
    setattr(module, function.__name__ if source is FLASH_ATTN else "sageattn", function)
    monkeypatch.setitem(sys.modules, source.package, module)
    found = state_trial.__wrapped__(source, CPU, torch.float32, 64)
    assert found is None if words is None else words in str(found)
    if words is None:
        heads, tensors = inputs("more identity than video, as in a short clip")
        attend = restricted_attention(AttentionChoice("merge", source, ()))
        assert_close(attend(never, *reading(tensors, 0.3), heads=heads),
                     naive_restricted_attention(*reading(tensors, 0.3), heads))


def test_a_package_that_is_not_installed():
    source = StateSource("none", None, None, package="no_such_package")
    assert str(source.refusal(CPU, torch.float32, 64)) == "the package no_such_package is not installed"


@pytest.mark.parametrize("source", [source for source in FUSED if source.device_type == "cuda"],
                         ids=lambda source: source.name)
def test_cuda_operators_give_what_the_merge_needs(source):
    """Shapes, dtypes and layout of PyTorch's operators, from its own shape functions; no GPU is needed for that."""
    heads, video, identity, head_dim = 3, 77, 45, 64
    attend = restricted_attention(AttentionChoice("merge", source, ()))
    with torch.device("meta"):
        q, k, v = (torch.empty(2, video, heads * head_dim, dtype=torch.bfloat16) for _ in range(3))
        identity_k, identity_v = (torch.empty(1, identity, heads * head_dim, dtype=torch.bfloat16) for _ in range(2))
        split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        output, lse = source.state(*split, head_dim**-0.5)
        assert (output.shape, lse.shape, lse.dtype) == ((2, heads, video, head_dim), (2, heads, video), torch.float32)
        merged = attend(never, *reading((q, k, v, identity_k, identity_v), 0.3), heads=heads)
    assert (merged.shape, merged.dtype) == (q.shape, torch.bfloat16)


def test_equal_settings_give_one_function():
    """torch.compile guards on a function's identity: another object for every run would compile anew every time."""
    def choice():
        return choose_attention("auto", (), PYTORCH, CPU, torch.float32, 128)

    assert restricted_attention(choice()) is restricted_attention(choice())
