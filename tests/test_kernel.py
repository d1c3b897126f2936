"""The Triton kernel against fp32, on a GPU where there is one, else through Triton's interpreter."""
import math

import pytest
import torch
from launches import noted_launches

from standin_core.attention import extend, restricted_attention
from standin_core.attention.choice import AttentionChoice
from standin_core.attention.extend import kernel_refusal
from standin_core.attention.naive import naive_restricted_attention, naive_state
from standin_core.attention.states import FUSED
from tiny import random
from tolerances import RELATIVE_RMS, assert_close

pytest.importorskip("triton")
from standin_core.attention.kernel import extend_state_, tiles_for, tiles_on

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# Triton's interpreter computes tl.dot of bf16 wrongly
DTYPES = [dtype for dtype in RELATIVE_RMS if ON_GPU or dtype != torch.bfloat16]

# batch, heads, video tokens, identity tokens, head dim
CASES = {
    "less than one tile of either": (1, 1, 5, 3, 64),
    "one tile of either, full": (1, 1, 128, 64, 64),
    "ragged tails of both": (2, 3, 131, 67, 64),
    "head dim of Wan": (1, 2, 130, 33, 128),
    "one identity token": (1, 2, 66, 1, 128),
}


def poisoned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with NaN before, between and after, so that a read out of bounds shows."""
    *outer, last = tensor.shape
    room = torch.full([size + 2 for size in outer] + [last], math.nan, dtype=tensor.dtype, device=tensor.device)
    inner = room[tuple(slice(1, -1) for _ in outer)]
    inner.copy_(tensor)
    return inner


def inputs(case, dtype):
    batch, heads, video, identity, head_dim = CASES[case]
    shapes = [(batch, heads, video, head_dim)] * 3 + [(identity, heads, head_dim)] * 2
    return [random(*shape, seed=i).to(DEVICE, dtype) for i, shape in enumerate(shapes)]


def expected(q, k, v, identity_k, identity_v, bias, scale):
    """-> output and log-sum-exp of the video's keys and the identity's, in float64."""
    q, k, v, identity_k, identity_v = (x.double() for x in (q, k, v, identity_k, identity_v))
    logits = torch.cat((q @ k.mT * scale, torch.einsum("bhnd,mhd->bhnm", q, identity_k) * scale
                        + bias[:, None, :, None]), dim=-1)
    weights = logits.softmax(dim=-1)
    video = k.shape[-2]
    out = weights[..., :video] @ v + torch.einsum("bhnm,mhd->bhnd", weights[..., video:], identity_v)
    return out, logits.logsumexp(dim=-1)


def video_state(q, k, v, scale):
    logits = q.float() @ k.float().mT * scale
    return (logits.softmax(dim=-1) @ v.float()).to(q.dtype), logits.logsumexp(dim=-1)


BIASES = {
    "the paper": lambda batch, video: torch.zeros(1, 1).expand(batch, video),
    "another strength": lambda batch, video: torch.full((1, 1), math.log(3.0)).expand(batch, video),
    "strength 10": lambda batch, video: torch.full((1, 1), math.log(10.0)).expand(batch, video),
    "of each query": lambda batch, video: random(batch, video, seed=9),
    "half of the queries do not read": lambda batch, video: torch.where(random(1, video, seed=9) > 0, 0.5, -math.inf
                                                                        ).expand(batch, -1),
    "whole tiles of queries do not read": lambda batch, video: torch.where(torch.arange(video) < 64, -math.inf, 0.2
                                                                           ).expand(batch, -1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("case", CASES)
def test_against_float64(case, bias, dtype):
    q, k, v, identity_k, identity_v = inputs(case, dtype)
    scale = q.shape[-1]**-0.5
    bias = bias(q.shape[0], q.shape[2]).to(DEVICE)
    output, log_sum_exp = video_state(q, k, v, scale)
    found, found_lse = poisoned(output), poisoned(log_sum_exp.unsqueeze(-1)).squeeze(-1)
    extend_state_(poisoned(q), poisoned(identity_k), poisoned(identity_v), found, found_lse, scale, bias)
    wanted, wanted_lse = expected(q, k, v, identity_k, identity_v, bias, scale)
    assert_close(found, wanted, RELATIVE_RMS[dtype])
    assert_close(found_lse, wanted_lse, RELATIVE_RMS[torch.float32])
    silent = bias == -math.inf
    assert torch.equal(found.transpose(1, 2)[silent], output.transpose(1, 2)[silent])
    assert torch.equal(found_lse.transpose(1, 2)[silent], log_sum_exp.transpose(1, 2)[silent])


@pytest.mark.skipif(ON_GPU, reason="what a kernel calls can be exchanged in Triton's interpreter alone")
def test_a_running_maximum_is_the_exception(monkeypatch):
    """Not what every tile falls back to, which would be right and slow; and no tile reads beyond the last key."""
    def never(*_):
        raise AssertionError("the maximum of the video is high enough")

    monkeypatch.setattr("standin_core.attention.kernel.walk_safe", never)
    q, k, v, identity_k, identity_v = inputs("ragged tails of both", torch.float16)
    bias = torch.full((2, 131), math.log(10.0))
    output, log_sum_exp = video_state(q, k, v, 0.125)
    extend_state_(q, poisoned(identity_k), poisoned(identity_v), output, log_sum_exp, 0.125, bias)
    assert_close(output, expected(q, k, v, identity_k, identity_v, bias, 0.125)[0], RELATIVE_RMS[torch.float16])


# how far the identity's logits lie above the video's log-sum-exp, and how large its values are
FAR = {"p leaves the bits of fp32": (8.0, 1), "p leaves fp16": (15.0, 1), "p v leaves fp32": (72.0, 1e3),
       "p leaves fp32": (500.0, 1), "p is nothing": (-500.0, 1)}


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")  # numpy's, of what overflows
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAR)
def test_logits_far_from_those_of_the_video(name, dtype):
    """For every second query, so that a tile has both."""
    distance, size = FAR[name]
    q, k, v, identity_k, identity_v = inputs("ragged tails of both", dtype)
    identity_v *= size
    output, log_sum_exp = video_state(q, k, v, 0.125)
    log_sum_exp[..., ::2] -= distance
    logits = torch.einsum("bhnd,mhd->bhnm", q.double(), identity_k.double()) * 0.125
    shares = torch.cat((log_sum_exp.double().unsqueeze(-1), logits), dim=-1).softmax(dim=-1)
    wanted = shares[..., :1] * output + torch.einsum("bhnm,mhd->bhnd", shares[..., 1:], identity_v.double())
    wanted_lse = torch.logaddexp(log_sum_exp.double(), logits.logsumexp(dim=-1))
    nothing = torch.zeros(1, 1, device=DEVICE).expand(2, 131)
    extend_state_(q, identity_k, identity_v, output, log_sum_exp, 0.125, nothing)
    assert_close(output, wanted, RELATIVE_RMS[dtype])
    assert_close(log_sum_exp, wanted_lse, RELATIVE_RMS[torch.float32])


def test_nothing_around_the_tensors_is_written():
    q, k, v, identity_k, identity_v = inputs("ragged tails of both", torch.float32)
    output, log_sum_exp = video_state(q, k, v, 0.125)
    room = torch.full((4, 5, 140, 64), 7.0, device=DEVICE)
    inner = room[1:3, 1:4, 3:134]
    inner.copy_(output)
    extend_state_(q, identity_k, identity_v, inner, log_sum_exp, 0.125, torch.zeros(1, 1, device=DEVICE).expand(2, 131))
    room[1:3, 1:4, 3:134] = 7.0
    assert bool((room == 7.0).all())


def test_one_identity_after_another():
    """The log-sum-exp it leaves is what the next one starts from."""
    q, k, v, *first = inputs("ragged tails of both", torch.float32)
    second = [random(19, 3, 64, seed=20 + i).to(DEVICE) for i in range(2)]
    bias = torch.zeros(1, 1, device=DEVICE).expand(2, 131)
    output, log_sum_exp = video_state(q, k, v, 0.125)
    for identity_k, identity_v in (first, second):
        extend_state_(q, identity_k, identity_v, output, log_sum_exp, 0.125, bias)
    both = [torch.cat(pair) for pair in zip(first, second)]
    assert_close(output, expected(q, k, v, *both, bias, 0.125)[0], RELATIVE_RMS[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_within_the_restricted_attention(dtype):
    """As the engine calls it: two people, of two photos and of one, on the layout of ComfyUI's tensors."""
    heads, source = 2, FUSED[1 if ON_GPU else 0]
    q, k, v = (random(2, 70, heads * 64, seed=i).to(DEVICE, dtype) for i in range(3))
    identities = [(*(random(photos, 9, heads * 64, seed=seed + i).to(DEVICE, dtype) for i in range(2)),
                   bias.to(DEVICE)) for photos, seed, bias in ((2, 10, torch.tensor([[0.3]])),
                                                              (1, 20, random(1, 70, seed=30)))]
    attend = restricted_attention(AttentionChoice("merge", source, (), kernel=True))
    found = attend(None, q, k, v, identities, heads=heads)
    assert_close(found, naive_restricted_attention(q, k, v, identities, heads), RELATIVE_RMS[dtype])


def test_it_runs_on_the_device_of_its_tensors(monkeypatch):
    """Which need not be the current one, where ComfyUI has several GPUs."""
    launched_on = noted_launches(monkeypatch, "standin_core.attention.kernel", "extend_kernel", (1, 1))
    q, k, v, identity_k, identity_v = inputs("less than one tile of either", torch.float32)
    extend_state_(q, identity_k, identity_v, *video_state(q, k, v, 0.125), 0.125, torch.zeros(1, 5, device=DEVICE))
    assert launched_on == [q.device]


def test_torch_compile_knows_the_tiles(monkeypatch):
    """They follow from the card, whose driver torch.compile cannot trace: it is asked once, as for a constant."""
    monkeypatch.setattr("standin_core.attention.kernel.tiles_for", torch.compiler.disable(tiles_for))
    torch.compiler.reset()
    scaled = torch.compile(lambda x: x * sum(tiles_on(x.device, x.dtype, 64)), backend="eager", fullgraph=True)
    assert scaled(torch.ones(2, device=DEVICE)).tolist() == 2 * [sum(tiles_on(DEVICE, torch.float32, 64))]


def test_where_it_is_not_taken():
    assert str(kernel_refusal(torch.device("cpu"), torch.float32, 128)) == "it runs on CUDA, not on cpu"
    assert str(kernel_refusal(torch.device("cuda"), torch.float32, 96)) == "it knows head dims 64 and 128, not 96"


# HIP, compute capability, Triton -> the words of the refusal; the last is for Triton to say
CARDS = {
    "AMD": ("6.4", (9, 4), "3.6.0", "it runs on cards of NVIDIA alone, and this is a PyTorch for AMD's"),
    "before Ampere": (None, (7, 5), "3.6.0", "this card has compute capability 7.5, and it needs 8.0 or newer"),
    "Blackwell before its Triton": (
        None, (12, 0), "3.2.0", "Triton 3.2 cannot compile for compute capability 12.0: install Triton 3.3 or newer"),
    "Blackwell": (None, (12, 0), "3.3.1", None),
    "Ada with an old Triton": (None, (8, 9), "3.2.0", None),
    "Blackwell with a Triton of no version": (
        None, (12, 0), "main", "it failed on this device (ValueError: not enough values to unpack (expected 2, got "
        "1))"),
    "Ampere": (None, (8, 0), "3.10.0+git", None),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_card_is_asked_before_triton(name, monkeypatch):
    hip, capability, version, words = CARDS[name]
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("triton.__version__", version)
    compiled = []
    monkeypatch.setattr(extend, "kernel_trial", lambda *args: compiled.append(args))
    refusal = kernel_refusal(torch.device("cuda"), torch.bfloat16, 128)
    assert (str(refusal) if refusal else None) == words
    assert len(compiled) == (words is None)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_asked_before_it_is_taken(dtype, head_dim):
    """Right here; and where it fails or is wrong, the run is told and merges in PyTorch."""
    assert extend.kernel_trial.__wrapped__(DEVICE, dtype, head_dim) is None


def fails(*_):
    raise RuntimeError("no such card\nand more")


def nothing_read(q, k, v, video, scale, bias):
    return video


def wrong_where_the_maximum_moves(q, k, v, video, scale, bias):
    far = naive_state(q, k.transpose(0, 1), v.transpose(0, 1), scale)[1] > video[1] + 10
    output, log_sum_exp = extend.extend_by_state(naive_state)(q, k, v, video, scale, bias)
    output[far] = 0
    return output, log_sum_exp


@pytest.mark.parametrize("broken, words", [(fails, "it failed on this device (RuntimeError: no such card)"),
                                           (nothing_read, "it is wrong on this device, by "),
                                           (wrong_where_the_maximum_moves, "it is wrong on this device, by ")])
def test_a_kernel_that_does_not_work_here(monkeypatch, broken, words):
    monkeypatch.setattr(extend, "extend_by_kernel", broken)
    assert str(extend.kernel_trial.__wrapped__(DEVICE, torch.float32, 64)).startswith(words)
