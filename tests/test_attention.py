"""Restricted attention: the fp32 reference against a loop over queries, then every path against the reference."""
import math

import pytest
import torch

from standin_core.attention import choose_attention, restricted_attention
from standin_core.attention.choice import AttentionChoice
from standin_core.attention.naive import naive_restricted_attention, naive_state
from standin_core.attention.states import FUSED, TILED, merge_states
from standin_core.contracts import StandInError
from tiny import random
from tolerances import RELATIVE_RMS, assert_close

CPU_FLASH = FUSED[0]
CPU = torch.device("cpu")

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


def inputs(case, dtype=torch.float32):
    batch, heads, video, identity, head_dim = CASES[case]
    shapes = [(batch, video, heads * head_dim)] * 3 + [(1, identity, heads * head_dim)] * 2
    return heads, [random(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]


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
    assert_close(naive_restricted_attention(*tensors, heads, bias), by_loop(*tensors, heads, bias))


def never(*_, **__):
    raise AssertionError("the merge path must not call the host's attention")


@pytest.mark.parametrize("dtype", RELATIVE_RMS, ids=str)
@pytest.mark.parametrize("source", [CPU_FLASH, TILED], ids=lambda source: source.name)
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("case", CASES)
def test_merge_against_the_reference(case, bias, source, dtype):
    heads, tensors = inputs(case, dtype)
    attend = restricted_attention(AttentionChoice("merge", source, ()), bias)
    assert_close(attend(never, *tensors, heads=heads), naive_restricted_attention(*tensors, heads, bias),
                 RELATIVE_RMS[dtype])


def host(q, k, v, heads, **_):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", RELATIVE_RMS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_concatenate_against_the_reference(case, dtype):
    heads, tensors = inputs(case, dtype)
    attend = restricted_attention(AttentionChoice("concatenate", None, ()), 0.0)
    assert_close(attend(host, *tensors, heads=heads), naive_restricted_attention(*tensors, heads), RELATIVE_RMS[dtype])


@pytest.mark.parametrize("path", ["merge", "concatenate"])
def test_heads_already_split(path):
    """Some attention calls come as [B, H, N, D] and want it back so."""
    heads, (q, k, v, identity_k, identity_v) = inputs("odd sizes that no tile divides")
    choice = choose_attention(path, 1.0, None, CPU, torch.float32, 24)

    def split_host(q, k, v, heads, skip_reshape, skip_output_reshape):
        assert skip_reshape and skip_output_reshape
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    out = restricted_attention(choice, 0.0)(split_host, *split, identity_k, identity_v, heads=heads, skip_reshape=True,
                                            skip_output_reshape=True)
    assert_close(out.transpose(1, 2).flatten(2), naive_restricted_attention(q, k, v, identity_k, identity_v, heads))


def test_merging_with_nothing_is_the_identity_of_the_merge():
    """A bias of log(0) leaves the video's own attention bit for bit."""
    q, k, v = (random(1, 2, 9, 8, seed=i) for i in range(3))
    output, lse = naive_state(q, k, v)
    assert torch.equal(merge_states((output.clone(), lse), naive_state(q, v, k), -math.inf), output)


def test_merge_is_finite_where_a_plain_exp_would_overflow():
    q, k, v = (random(1, 1, 4, 8, seed=i) for i in range(3))
    output, lse = naive_state(q, k, v)
    merged = merge_states((output.clone(), lse + 500), (v, lse + 600), 0.0)
    assert_close(merged, v)


@pytest.mark.parametrize("path", ["merge", "concatenate"])
def test_a_mask_is_refused(path):
    heads, tensors = inputs("one query, one identity token")
    attend = restricted_attention(choose_attention(path, 1.0, None, CPU, torch.float32, 8), 0.0)
    with pytest.raises(StandInError, match="comes with a mask"):
        attend(host, *tensors, heads=heads, mask=torch.zeros(1, 1))


SAGE = "another node overrides ComfyUI's attention"
MPS = torch.device("mps")

# requested, strength, host, device -> path, source, words of a refusal
CHOICES = {
    "plain ComfyUI merges": ("auto", 1.0, None, CPU, "merge", CPU_FLASH, None),
    "the host's own function is kept where it can be": (
        "auto", 1.0, SAGE, CPU, "concatenate", None, "gives no log-sum-exp"),
    "strength needs states, so the host's function is left and it is said": (
        "auto", 0.5, SAGE, CPU, "merge", CPU_FLASH, "strength 0.5 needs a log-sum-exp"),
    "an explicit merge leaves it too": ("merge", 1.0, SAGE, CPU, "merge", CPU_FLASH, "attention is set to merge"),
    "an explicit concatenation": ("concatenate", 1.0, None, CPU, "concatenate", None, "set to concatenate"),
    "no states on the device: concatenate": ("auto", 1.0, None, MPS, "concatenate", None, "runs on the CPU"),
    "no states on the device, but a strength": ("auto", 2.0, None, MPS, "merge", TILED, "runs on CUDA"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choice(name):
    requested, strength, host_, device, path, source, refusal = CHOICES[name]
    choice = choose_attention(requested, strength, host_, device, torch.float32, 128)
    assert (choice.path, choice.source) == (path, source)
    assert refusal is None or any(refusal in sentence for sentence in choice.refusals)


def test_concatenation_refuses_a_strength():
    with pytest.raises(StandInError, match="knows no strength but 1"):
        choose_attention("concatenate", 0.5, None, CPU, torch.float32, 128)


@pytest.mark.parametrize("source, dtype, head_dim, words", [
    (FUSED[1], torch.float32, 128, "fp16 and bf16"),
    (FUSED[1], torch.bfloat16, 100, "multiples of 8"),
    (FUSED[2], torch.float32, 100, "multiples of 8"),
])
def test_cuda_sources_refuse_what_they_cannot_compute(source, dtype, head_dim, words):
    assert words in source.refusal(torch.device("cuda"), dtype, head_dim)


def test_equal_settings_give_one_function():
    """torch.compile guards on a function's identity: another object for every run would compile anew every time."""
    def choice():
        return choose_attention("auto", 1.0, None, CPU, torch.float32, 128)

    assert restricted_attention(choice(), 0.0) is restricted_attention(choice(), 0.0)
