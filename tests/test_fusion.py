"""RMSNorm and RoPE in one kernel, on a GPU where there is one, else through Triton's interpreter."""
import functools
import math

import comfy.ldm.wan.model
import comfy.ops
import pytest
import torch
from launches import noted_launches

import tiny
from standin_core.attention import can_fuse, fusion, fusion_refusal
from standin_core.attention.reasons import Reason, Why
from standin_core.wan import Reading, Wan
from tiny import random
from tolerances import RELATIVE_RMS, WHOLE_RUN, assert_close

pytest.importorskip("triton")
from standin_core.attention.fusion_kernel import norm_and_rotate

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# Triton's interpreter rounds to bf16 by cutting off
DTYPES = [dtype for dtype in RELATIVE_RMS if ON_GPU or dtype != torch.bfloat16]

# batch, tokens, heads, head dim, whether each video has a rotation of its own
CASES = {"one token": (1, 1, 1, 64, False), "heads that fill no power of 2": (2, 5, 3, 64, False),
         "Wan 1.3B": (1, 4, 12, 128, False), "Wan 14B": (1, 3, 40, 128, False),
         "a rotation of each video": (3, 4, 2, 64, True)}


def inputs(case, dtype):
    """Queries with channels of very different sizes, as trained ones have."""
    batch, tokens, heads, head_dim, own = CASES[case]
    width = heads * head_dim
    x = random(batch, tokens, width, seed=1) * torch.exp(2 * random(width, seed=2))
    angle = 100 * random(batch if own else 1, tokens, 1, head_dim // 2, seed=3)
    rotation = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=-1).unflatten(-1, (2, 2))
    return x.to(DEVICE, dtype), random(width, seed=4).to(DEVICE, dtype), rotation.to(DEVICE)


def expected(x, weight, eps, rotation):
    """The equation, in float64."""
    x, weight, rotation = x.double(), weight.double(), rotation.double()
    normed = x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight
    even, odd = normed.unflatten(-1, (-1, 2 * rotation.shape[3])).unflatten(-1, (-1, 2)).unbind(-1)
    first = rotation[..., 0, 0] * even + rotation[..., 0, 1] * odd
    second = rotation[..., 1, 0] * even + rotation[..., 1, 1] * odd
    return torch.stack((first, second), dim=-1).flatten(2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_against_float64(case, dtype):
    x, weight, rotation = inputs(case, dtype)
    assert_close(norm_and_rotate(x, weight, 1e-6, rotation), expected(x, weight, 1e-6, rotation), RELATIVE_RMS[dtype])


@pytest.mark.parametrize("eps", [1e-6, 1.0])
def test_eps_counts(eps):
    """Where a token is as small as it."""
    x, weight, rotation = inputs("heads that fill no power of 2", torch.float32)
    x *= 1e-3
    assert_close(norm_and_rotate(x, weight, eps, rotation), expected(x, weight, eps, rotation))


@pytest.mark.parametrize("case", CASES)
def test_it_rounds_as_comfyui_does(case):
    """Both compute in fp32 and round twice; what differs is the order of one sum."""
    x, weight, rotation = inputs(case, torch.float16)
    normed = torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6)
    by_head = normed.unflatten(-1, (-1, 2 * rotation.shape[3]))
    plain = comfy.ldm.wan.model.apply_rope1(by_head, rotation).flatten(2)
    assert (norm_and_rotate(x, weight, 1e-6, rotation) == plain).float().mean() > 0.999


def test_nothing_else_is_read_or_written(monkeypatch):
    """NaN around what is read would show, and so would a value around what is written."""
    x, weight, rotation = (torch.nn.functional.pad(each.flatten(), (7, 7), value=math.nan)[7:-7].view_as(each)
                           for each in inputs("heads that fill no power of 2", torch.float32))
    room = torch.full((x.numel() + 14,), 7.0, device=DEVICE)
    monkeypatch.setattr(torch, "empty_like", lambda like: room[7:-7].view_as(like))
    assert_close(norm_and_rotate(x, weight, 1e-6, rotation), expected(x, weight, 1e-6, rotation))
    assert (room[:7] == 7).all() and (room[-7:] == 7).all()


def test_it_runs_on_the_device_of_its_tensors(monkeypatch):
    """Which need not be the current one, where ComfyUI has several GPUs."""
    x, weight, rotation = inputs("Wan 14B", torch.float32)
    launched_on = noted_launches(monkeypatch, "standin_core.attention.fusion_kernel", "norm_rope_kernel", (3,))
    norm_and_rotate(x, weight, 1e-6, rotation)
    assert launched_on == [x.device]


@pytest.mark.parametrize("change, fit", [
    (lambda r: r, True), (lambda r: r.expand(2, -1, -1, -1, -1, -1), True), (lambda r: r.double(), False),
    (lambda r: r.expand(3, -1, -1, -1, -1, -1), False), (lambda r: r[:, 1:], False),
    (lambda r: r.expand(-1, -1, 3, -1, -1, -1), False), (lambda r: r.mT, False),
    (lambda r: torch.cat((r, r), dim=-1)[..., :2], False)],
    ids=["one for all", "one for each", "fp64", "of more videos", "of fewer tokens", "one for each head", "transposed",
         "apart from each other"])
def test_which_matrices_it_takes(change, fit):
    x, _, rotation = inputs("heads that fill no power of 2", torch.float32)
    assert can_fuse(change(rotation), *x.shape[:2]) == fit


def attend(host, q, k, v, identities, heads, **kwargs):
    """No identity: what is asked is how q and k came about."""
    return host(q, k, v, heads=heads, **kwargs)


def call(model, fused, options=None):
    """The self-attention of the first block, and how often the kernel ran."""
    wan = Wan(model.model)
    block = wan.blocks[0].attn
    nothing = torch.zeros(1, 1, wan.dim)
    rotation = wan.rotation(torch.zeros(1, 1, 3))
    reading = Reading(0, _Layers((nothing, nothing)), rotation, torch.zeros(1, 1), range(len(wan.blocks)))
    positions = torch.cartesian_prod(*(torch.arange(n).float() for n in (2, 2, 3))).unsqueeze(0)
    with wan.identity_installed([reading], attend, fused=fused):
        return block(random(2, 12, wan.dim), wan.rotation(positions), transformer_options=options or {})


class _Layers(tuple):
    stay = True

    def __getitem__(self, _):
        return tuple(self)


@pytest.fixture
def launches(monkeypatch):
    """The kernel, counted."""
    if ON_GPU:
        pytest.skip("the tiny model stays on the CPU, and Triton interprets only where there is no GPU")
    found = []

    def counted(*args):
        found.append(args)
        return norm_and_rotate(*args)

    monkeypatch.setattr("standin_core.wan.norm_rope", counted)
    return found


def test_the_self_attention_is_comfyuis(model, launches):
    plain = call(model, fused=False)
    assert not launches
    assert_close(call(model, fused=True), plain)
    assert len(launches) == 2  # queries and keys


def test_patches_of_the_attention_see_the_same(model, launches):
    """attn1_patch, in ComfyUI's own form."""
    seen = []

    def patch(given):
        seen.append({name: given[name].clone() for name in "qkx"})
        return given["x"] * 2

    outputs = [call(model, fused, {"patches": {"attn1_patch": [patch]}}) for fused in (False, True)]
    assert launches
    assert_close(outputs[1], outputs[0])
    for name in "qkx":
        assert_close(seen[1][name], seen[0][name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_weight_is_as_the_module_casts_and_patches_it(model, launches, monkeypatch, dtype):
    """Bit for bit: a LoRA's function on the weight of the norm is in it."""
    norm = Wan(model.model).blocks[0].attn.norm_q
    patched = comfy.ops.manual_cast.RMSNorm(norm.weight.shape[0], eps=1e-6, dtype=torch.float32)
    patched.weight.copy_(random(*norm.weight.shape))
    patched.weight_function = [lambda weight: weight * 3]
    block = Wan(model.model).blocks[0].attn
    monkeypatch.setitem(block._modules, "norm_q", patched)
    call(model, fused=True)
    assert torch.equal(launches[0][1], patched.weight * 3) and not torch.equal(launches[1][1], launches[0][1])
    probe = patched(torch.full((1, len(patched.weight)), 256.0, dtype=dtype))[0]
    assert torch.equal(probe, patched.weight.to(dtype) * 3)


def test_rotations_that_the_kernel_does_not_take(model, launches, monkeypatch):
    plain = call(model, fused=False)
    monkeypatch.setattr("standin_core.wan.can_fuse", lambda *_: False)
    assert torch.equal(call(model, fused=True), plain) and not launches


def test_another_nodes_forward_is_called(model, launches, monkeypatch):
    """Also where it was put in after the run had asked."""
    block = Wan(model.model).blocks[0].attn
    own = comfy.ldm.wan.model.WanSelfAttention.forward
    monkeypatch.setitem(block.__dict__, "forward", lambda *args, **kwargs: own(block, *args, **kwargs) * 2)
    assert_close(call(model, fused=True), 2 * own(*forward_arguments(model)))
    assert not launches


def forward_arguments(model):
    wan = Wan(model.model)
    positions = torch.cartesian_prod(*(torch.arange(n).float() for n in (2, 2, 3))).unsqueeze(0)
    return wan.blocks[0].attn, random(2, 12, wan.dim), wan.rotation(positions)


def other_class(block, monkeypatch):
    monkeypatch.setattr(block, "__class__", type("Other", (type(block),), {}))


def other_forward(block, monkeypatch):
    monkeypatch.setitem(block.__dict__, "forward", block.forward)


def other_forward_of_the_class(block, monkeypatch):
    monkeypatch.setattr(type(block), "forward", lambda *_, **__: None)


def other_rope(block, monkeypatch):
    monkeypatch.setattr(comfy.ldm.wan.model, "apply_rope1", lambda *_: None)


def other_norm(block, monkeypatch):
    monkeypatch.setitem(block._modules, "norm_k", torch.nn.Identity())


def forward_of_a_norm(block, monkeypatch):
    monkeypatch.setitem(block.norm_q.__dict__, "forward", block.norm_q.forward)


def hook_on_a_norm(block, monkeypatch):
    monkeypatch.setitem(block.norm_q._forward_hooks, 0, lambda *_: None)


@pytest.mark.parametrize("other, words", [
    (other_class, "the self-attention of block 1"), (other_forward, "the self-attention of block 1"),
    (other_forward_of_the_class, "the self-attention of block 0"), (other_rope, "the self-attention of block 0"),
    (other_norm, "norm_k of block 1"), (forward_of_a_norm, "norm_q of block 1"),
    (hook_on_a_norm, "norm_q of block 1")])
def test_what_anything_else_patched_stays_two_steps(model, monkeypatch, other, words):
    monkeypatch.setattr("standin_core.wan.fusion_refusal", lambda *_: None)
    wan = Wan(model.model)
    assert wan.fusion_refusal(DEVICE, 64) is None
    other(wan.blocks[1].attn, monkeypatch)
    assert str(wan.fusion_refusal(DEVICE, 64)) == (
        f"{words} is not as in ComfyUI 0.16.3 to 0.30.0, which is what the kernel follows")


def run_of(model, monkeypatch, refusal):
    monkeypatch.setattr("standin_core.wan.fusion_refusal", lambda *_: refusal)
    samples, (report,) = tiny.sample(tiny.with_identity(model), steps=2)
    return samples, report


def test_a_whole_run(model, launches, monkeypatch):
    apart, told = run_of(model, monkeypatch, Reason(Why.OTHER_DEVICE, ("CUDA", "cpu")))
    assert not launches and "fused RMSNorm and RoPE: it runs on CUDA, not on cpu" in told.refusals
    fused, report = run_of(model, monkeypatch, None)
    assert len(launches) == 2 * report.reads
    assert report.attention == f"{told.attention}, fused RMSNorm and RoPE"
    assert report.refusals == [each for each in told.refusals if "fused" not in each]
    assert_close(fused, apart, WHOLE_RUN)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_asked_before_it_is_taken(dtype):
    assert fusion.fusion_trial.__wrapped__(DEVICE, dtype, 3, 64) is None


def fails(*_):
    raise RuntimeError("no such card\nand more")


@pytest.mark.parametrize("broken, words", [
    (fails, "it failed on this device (RuntimeError: no such card)"),
    (lambda x, weight, eps, rotation: norm_and_rotate(x, weight, 1e-2, rotation), "it is wrong on this device, by "),
    (lambda x, weight, eps, rotation: norm_and_rotate(x, weight, eps, rotation.roll(1, 1)),
     "it is wrong on this device, by "),
    (lambda x, *_: x * math.nan, "it is wrong on this device, by nan")])
def test_a_kernel_that_does_not_work_here(monkeypatch, broken, words):
    monkeypatch.setattr(fusion, "norm_rope", broken)
    assert str(fusion.fusion_trial.__wrapped__(DEVICE, torch.float32, 3, 64)).startswith(words)


@pytest.mark.parametrize("times, words", [
    ((1.0, 2.0), "None"), ((2.0, 1.0), "on this card it takes 2.00 ms where ComfyUI's way takes 1.00 ms, timed with 5 "
     "tokens of two videos")])
def test_the_faster_of_the_two(monkeypatch, times, words):
    taken = iter(times)
    monkeypatch.setattr(fusion, "least_ms", lambda call, device: next(taken))
    monkeypatch.setattr(fusion, "triton_refusal", lambda device: None)
    apart = functools.partial(norm_and_rotate)  # a way of its own, of which no times are kept
    assert str(fusion_refusal(apart, DEVICE, torch.float32, 3, 64, 5)) == words


def test_where_it_is_not_taken():
    asked = [str(fusion_refusal(norm_and_rotate, torch.device(device), torch.float32, 3, head_dim, 5))
             for device, head_dim in (("cpu", 64), ("cuda", 96))]
    assert asked == ["it runs on CUDA, not on cpu", "it knows head dims 64 and 128, not 96"]
