"""The fastest of the exact ways to read an identity: measured by each way's own time, chosen, remembered and told."""
import itertools
import math
import time
from fractions import Fraction

import pytest
import torch

from standin_core.attention import AttentionInUse, Host, Need, Reason, choose_attention, measured
from standin_core.attention.choice import AttentionChoice
from standin_core.attention.extend import extend_by_kernel
from standin_core.attention.measured import ENOUGH_MS, HEADS, KEYS, QUERIES, ROUNDS, extra_ms, least_ms, part_of
from standin_core.attention.naive import naive_state
from standin_core.attention.states import StateSource

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TOKENS = (96, 40)


def slow_state(q, k, v, scale):
    time.sleep(0.05)
    return naive_state(q, k, v, scale)


def computing(seconds, calls):
    def compute(q, k, v, heads):
        time.sleep(seconds)
        calls.append((q.shape, k.shape, heads))
        return q
    return compute


def never(*_, **__):
    raise AssertionError("what is not asked for is not timed")


def test_each_way_takes_its_own_time(monkeypatch):
    monkeypatch.setattr(measured, "ENOUGH_MS", math.inf)  # this machine may be busy with other things
    fast, slow = (extra_ms(StateSource(state.__name__, "cpu", state), False, never, CPU, torch.float32, 64, TOKENS)
                  for state in (naive_state, slow_state))
    assert slow > 50 and slow > fast + 25
    calls = []
    assert extra_ms(None, False, computing(0.05, calls), CPU, torch.float32, 64, TOKENS) > 50


def test_random_numbers_stay_the_samplers():
    """A sampler that draws from PyTorch's generator finds it as the seed of the run left it."""
    device = CUDA if torch.cuda.is_available() else CPU
    asked = torch.cuda.get_rng_state if device == CUDA else torch.get_rng_state
    before = asked()
    extra_ms(StateSource("drawn apart", device.type, naive_state), False, never, device, torch.float32, 64, (7, 5))
    assert torch.equal(asked(), before)


def test_the_kernel_is_timed_by_itself(monkeypatch):
    """It runs on the part, through Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    launched = []

    def launch(q, identity_k, identity_v, video, *rest):
        launched.append((q.shape, identity_k.shape, identity_v.shape, *(x.shape for x in video)))
        return extend_by_kernel(q, identity_k, identity_v, video, *rest)

    monkeypatch.setattr(measured, "extend_by_kernel", launch)
    device = CUDA if torch.cuda.is_available() else CPU
    source = StateSource("none", device.type, never)
    assert extra_ms(source, True, never, device, torch.float32, 64, (5, 3)) > 0
    q, k = (1, HEADS, 5, 64), (3, HEADS, 64)
    assert launched and set(launched) == {(q, k, k, q, (1, HEADS, 5))}


@pytest.mark.parametrize("tokens, part", [
    ((32760, 1024), (8, 16384, 1024)), ((75600, 2048), (4, 16384, 2048)), ((32760, 3000), (2, 16384, 3000)),
    ((32760, 8192), (1, 16384, 8192)), ((75600, 40 * 4096), (1, 16384, 8192)), ((96, 1), (8, 96, 1))])
def test_many_photos_take_no_more_time(tokens, part):
    """Some of the heads tell the same; no call has more products than that of one photo."""
    assert part_of(*tokens) == part
    heads, queries, keys = part
    assert heads * queries * keys <= HEADS * QUERIES * 1024 == QUERIES * KEYS


@pytest.mark.parametrize("milliseconds, calls", [(0.2, 1 + ROUNDS), (ENOUGH_MS, 2), (100 * ENOUGH_MS, 2)])
def test_a_slow_card_is_asked_less_often(milliseconds, calls, monkeypatch):
    found, clock = [], itertools.count(step=Fraction(milliseconds) / 1000)  # of fractions, no difference is rounded
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert least_ms(lambda: found.append(1), CPU) == milliseconds
    assert len(found) == calls


def test_it_is_asked_once_and_of_a_part():
    """The identity's keys alone, since the video's own attention is the same for all ways."""
    calls = []
    compute = computing(0, calls)
    for _ in range(3):
        extra_ms(None, False, compute, CPU, torch.float32, 64, (10 * QUERIES, 40))
    assert 2 <= len(calls) <= 1 + ROUNDS
    assert set(calls) == {((1, QUERIES, HEADS * 64), (1, 40, HEADS * 64), HEADS)}


SOURCE = StateSource("a source", "cuda", naive_state)
IN_USE = AttentionInUse(Host.PYTORCH, compute=never)
KERNEL, MERGE = AttentionChoice("merge", SOURCE, (), kernel=True), AttentionChoice("merge", SOURCE, ())
WHOLE = AttentionChoice("concatenate", None, ())
NEED = (Reason(Need.STRENGTH, (0.5,)),)
PART = ", timed with 8 heads, 96 tokens of the video and 40 of the identity"

# requested, needs, milliseconds of kernel, merge and concatenation (None: not to be asked) -> taken, words told
CASES = {
    "the kernel": ("auto", (), (1.0, 2.0, 3.0), KERNEL, [
        "merge, a source: on this card it takes 2.00 ms where merge, a source, Triton kernel takes 1.00 ms" + PART,
        "concatenate: on this card it takes 3.00 ms where merge, a source, Triton kernel takes 1.00 ms" + PART]),
    "a second state": ("auto", (), (3.0, 1.0, 2.0), MERGE, [
        "concatenate: on this card it takes 2.00 ms where merge, a source takes 1.00 ms" + PART]),
    "concatenation": ("auto", (), (3.0, 2.0, 1.0), WHOLE, [
        "merge, a source, Triton kernel: on this card it takes 3.00 ms where concatenate takes 1.00 ms" + PART]),
    "a strength cannot be concatenated": ("auto", NEED, (3.0, 2.0, None), MERGE, [
        "concatenate: it knows no weight but 1",
        "merge, a source, Triton kernel: on this card it takes 3.00 ms where merge, a source takes 2.00 ms" + PART]),
    "merging is set": ("merge", (), (2.0, 3.0, None), KERNEL, [
        "merge, a source: on this card it takes 3.00 ms where merge, a source, Triton kernel takes 2.00 ms" + PART]),
    "concatenation is set": ("concatenate", (), (None, None, None), WHOLE, ["merge: attention is set to concatenate"]),
}


@pytest.fixture
def card(monkeypatch):
    """A GPU on which the source and the kernel are right; no tensor goes there."""
    monkeypatch.setattr("standin_core.attention.choice.FUSED", (SOURCE,))
    monkeypatch.setattr("standin_core.attention.states.state_trial", lambda *_: None)
    monkeypatch.setattr("standin_core.attention.choice.kernel_refusal", lambda *_: None)

    def takes(kernel, merge, concatenation):
        def asked(source, with_kernel, compute, device, dtype, head_dim, tokens):
            found = concatenation if source is None else kernel if with_kernel else merge
            assert found is not None and tokens == TOKENS and compute is never
            if found == "no memory":
                raise torch.cuda.OutOfMemoryError
            return found
        monkeypatch.setattr("standin_core.attention.choice.extra_ms", asked)
    return takes


def test_sageattention_with_smoothed_keys(card, monkeypatch):
    """What the log-sum-exps of the video cost is not timed, so concatenation is not compared with a merge."""
    monkeypatch.setattr("standin_core.attention.choice.SMOOTHED_SAGE", SOURCE)
    in_use = AttentionInUse(Host.SAGE, SOURCE, compute=never)
    for needs, times, taken in (((), (None, None, None), WHOLE), (NEED, (2.0, 3.0, None), KERNEL),
                                (NEED, (3.0, 2.0, None), MERGE)):
        card(*times)
        assert choose_attention("auto", needs, in_use, CUDA, torch.bfloat16, 128, TOKENS) == taken


@pytest.mark.parametrize("name", CASES)
def test_the_fastest_is_taken_and_told(name, card):
    requested, needs, times, taken, words = CASES[name]
    card(*times)
    choice = choose_attention(requested, needs, IN_USE, CUDA, torch.bfloat16, 128, TOKENS)
    assert choice == taken
    told = list(map(str, choice.passed_over))
    assert all(each in told for each in words), told


def test_without_memory_to_try_it_in_the_order_stays(card):
    card("no memory", "no memory", "no memory")
    choice = choose_attention("auto", (), IN_USE, CUDA, torch.bfloat16, 128, TOKENS)
    assert choice == KERNEL and "concatenate: merging copies nothing" in map(str, choice.passed_over)


@pytest.mark.parametrize("needs, taken, words", [
    ((), WHOLE, "merge: a source computes the identity's keys with the video's"),
    (NEED, MERGE, "Triton kernel: a second call of a source costs less")])
def test_beside_sageattention_the_kernel_comes_last(card, needs, taken, words):
    """Where nothing is timed."""
    choice = choose_attention("auto", needs, AttentionInUse(Host.SAGE, SOURCE), CUDA, torch.bfloat16, 128)
    assert choice == taken and any(str(each).startswith(words) for each in choice.passed_over)
