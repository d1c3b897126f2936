"""The identity K/V of a run: bytes known beforehand, built once, let go."""
import functools
import random
import weakref

import comfy.model_management
import pytest
import torch
from torch.overrides import TorchFunctionMode

import tiny
from standin_core.stand_in.budget import cache_spec
from standin_core.stand_in.kv_cache import (
    CACHE_MODES,
    IdentityCache,
    IdentityCacheSpec,
    OffloadedLayers,
    Pinning,
    ResidentLayers,
    hold,
)
from standin_core.stand_in.run import StandInRun
from standin_core.stand_in.wrappers import installed
from standin_core.wan import Wan


def layers(blocks=3, tokens=4, dim=6, dtype=torch.float16):
    return [(torch.ones(1, tokens, dim, dtype=dtype), torch.ones(1, tokens, dim, dtype=dtype)) for _ in range(blocks)]


def resident():
    return ResidentLayers(layers())


def nothing():
    pass


def test_bytes_before_allocation():
    cache = IdentityCache()
    cache.layers("place", "weights", resident, nothing)
    assert cache.device_bytes == IdentityCacheSpec(3, 4, 6, 2, torch.float16).device_bytes("resident")


def test_bytes_of_wan_14b():
    """The authors say about 1 GB; 40 blocks x K and V x 1,024 tokens x 5,120 x 2 bytes."""
    assert IdentityCacheSpec(40, 1024, 5120, 40, torch.bfloat16).device_bytes("resident") == 838_860_800


def test_one_build_for_a_place_and_its_weights():
    cache, calls = IdentityCache(entries=2), []

    def build():
        calls.append(1)
        return resident()

    first = cache.layers("device", "lora", build, nothing)
    assert cache.layers("device", "lora", build, nothing) is first
    assert cache.layers("device", "other lora", build, nothing) is not first
    assert cache.layers("other device", "lora", build, nothing) is not first
    assert (len(calls), cache.builds) == (3, 3)
    assert cache.layers("device", "lora", build, nothing) is first


def test_the_oldest_goes_before_the_next_is_built():
    """A keyframe that changes a LoRA in mid-run must not hold two builds at a time."""
    cache = IdentityCache(entries=1)
    oldest = weakref.ref(cache.layers("device", 0.5, resident, nothing)[0][0])
    alive = []

    def build():
        alive.append(oldest() is not None)
        return resident()

    cache.layers("device", 0.6, build, nothing)
    assert alive == [False]
    assert cache.device_bytes == IdentityCacheSpec(3, 4, 6, 2, torch.float16).device_bytes("resident")


def test_bytes_of_several_entries():
    cache = IdentityCache(entries=2)
    for weights in range(5):
        cache.layers("device", weights, resident, nothing)
    assert cache.device_bytes == IdentityCacheSpec(3, 4, 6, 2, torch.float16, entries=2).device_bytes("resident")


def test_a_build_that_fails_leaves_no_entry():
    cache = IdentityCache()

    def fails():
        yield from layers(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.layers("device", "weights", lambda: ResidentLayers(fails()), nothing)
    assert (cache.device_bytes, cache.builds) == (0, 0)


def test_clear_lets_go_even_of_what_others_hold():
    """The frames of an exception's traceback hold the list they were reading."""
    cache = IdentityCache()
    held = cache.layers("device", "weights", resident, nothing)
    tensor = weakref.ref(held[0][0])
    cache.clear()
    assert tensor() is None


MODES = [mode for mode in CACHE_MODES if mode != "auto"]
BLOCKS, TOKENS, DIM, HEADS = 5, 6, 32, 4


def never(tensor):
    raise AssertionError("nothing is pinned on a CPU")


UNPINNED = Pinning(never, never)


def random_layers(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    for _ in range(BLOCKS):
        yield tuple(torch.randn(2, TOKENS, DIM, generator=generator).to(dtype) for _ in range(2))


@pytest.mark.parametrize("order", [range(BLOCKS), [0, 2, 4], [1, 1, 3]], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same_layers(mode, order):
    """In call after call, also where blocks are left out (skip-layer guidance) or read twice."""
    expected = list(random_layers())
    held = hold(mode, random_layers, BLOCKS, torch.device("cpu"), HEADS, UNPINNED)
    for _ in range(2):
        for block in order:
            for found, tensor in zip(held[block], expected[block]):
                if mode == "fp8":
                    # e4m3 has three bits of mantissa: half a unit in the last place is 1/16 of the value at most
                    assert ((found - tensor).abs() <= tensor.abs() / 16 + tensor.abs().max() / 448).all()
                    assert (found - tensor).square().mean().sqrt() < tensor.square().mean().sqrt() / 30
                else:
                    assert torch.equal(found, tensor)
    held.clear()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_holds_what_it_announces(mode):
    spec = IdentityCacheSpec(BLOCKS, 2 * TOKENS, DIM, HEADS, torch.float16)
    held = hold(mode, lambda: random_layers(torch.float16), BLOCKS, torch.device("cpu"), HEADS, UNPINNED)
    for block in range(BLOCKS):
        held[block]
    layer = spec.layer_bytes if mode == "fp8" else 0  # the one that reads comes on top of what is held
    assert held.device_bytes + layer == spec.device_bytes(mode)
    assert spec.device_bytes("fp8") < 0.75 * spec.device_bytes("resident")
    assert spec.device_bytes("streaming") == 2 * spec.device_bytes("resident") / BLOCKS


class Stream:
    """In the place of a CUDA stream: a queue of steps and of waits for another one, which runs when it is let.

    The host does not wait for it, and nothing says when it runs but its waits and whoever synchronizes it.
    """

    def __init__(self):
        self.queue, self.done = [], 0

    def wait_stream(self, other):
        self.queue.append((other, len(other.queue)))

    def step(self):
        """Whether it could take one."""
        if self.done == len(self.queue):
            return False
        step = self.queue[self.done]
        if callable(step):
            step()
        elif step[0].done < step[1]:
            return False
        self.done += 1
        return True

    def synchronize(self):
        for _ in range(len(self.queue) - self.done):
            while not self.step():
                other, count = self.queue[self.done]
                while other.done < count:
                    assert other.step()


class Queued(TorchFunctionMode):
    """What is called inside is queued on the stream."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.stream.queue.append(functools.partial(function, *args, **(kwargs or {})))
        return args[0]


class Host:
    """In the place of ComfyUI's pinned memory: keeps account, and what is let go becomes something else at once."""

    def __init__(self, refuses=False):
        self.refuses, self.pinned, self.most = refuses, {}, 0

    def pin(self, tensor):
        if self.refuses:
            return False
        self.pinned[tensor.data_ptr()] = tensor.nbytes
        self.most = max(self.most, sum(self.pinned.values()))
        return True

    def unpin(self, tensor):
        assert self.pinned.pop(tensor.data_ptr()) == tensor.nbytes
        tensor.fill_(float("nan"))
        return True


class CudaOnTheHost(str):
    """Where PyTorch allocates it is the CPU, and its type is that of a GPU."""

    type = "cuda"


class Gpu:
    """Layers as on a GPU, with a stream that copies, one that reads, and the account of pinned memory."""

    def __init__(self, monkeypatch, host):
        self.copying, self.reading, self.host = Stream(), Stream(), host
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.copying)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.reading)
        monkeypatch.setattr(torch.cuda, "stream", Queued)

    def layers(self, layers):
        return OffloadedLayers(layers, BLOCKS, CudaOnTheHost("cpu"), Pinning(self.host.pin, self.host.unpin))

    def read(self, layers, order):
        """Queues that the blocks read in this order -> what each will have read."""
        found = []
        for block in order:
            layer = layers[block]
            self.reading.queue.append(lambda layer=layer: found.append([tensor.clone() for tensor in layer]))
        return found

    def run(self, choose):
        """Both streams to their end, where choose says which takes the next step if it can."""
        while self.copying.done < len(self.copying.queue) or self.reading.done < len(self.reading.queue):
            first, second = (self.copying, self.reading) if choose() else (self.reading, self.copying)
            assert first.step() or second.step(), "each stream waits for the other"


@pytest.fixture
def gpu(monkeypatch):
    return Gpu(monkeypatch, Host())


SPEEDS = {"copies run ahead": lambda: True, "reads run ahead": lambda: False,
          **{f"at random, {seed}": functools.partial(random.Random(seed).choice, (True, False)) for seed in range(4)}}


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 0, 1, 2, 3, 4), (0, 0, 2, 1, 1), (2, 1, 0), (1, 2, 0, 2)])
def test_offloaded_layers_take_turns_on_the_device(gpu, order, speed):
    """Two places there, and every block reads its own layer, whichever stream runs ahead as far as its waits let it."""
    layers = gpu.layers(random_layers())
    found = gpu.read(layers, order)
    gpu.run(SPEEDS[speed])
    expected = list(random_layers())
    assert len(found) == len(order)
    for block, layer in zip(order, found):
        assert all(torch.equal(*pair) for pair in zip(layer, expected[block], strict=True))
    copies = [step for step in gpu.copying.queue if callable(step)]
    assert len({copy.args[0].data_ptr() for copy in copies}) == 2


def test_offloaded_layers_fetch_each_block_once_a_call(gpu):
    """And one more, the first of the next call."""
    layers = gpu.layers(random_layers())
    gpu.read(layers, 3 * list(range(BLOCKS)))
    copies = [step for step in gpu.copying.queue if callable(step)]
    assert len(copies) == 3 * BLOCKS + 1
    layer = 2 * 2 * TOKENS * DIM * 4  # K and V of two references in fp32
    assert {copy.args[1].nbytes for copy in copies} == {layer}


@pytest.mark.parametrize("refuses", [False, True])
def test_offloaded_layers_pin_what_they_hold_and_no_more(monkeypatch, refuses):
    """In one piece, by ComfyUI's account, until they are let go; and they work where the system pins nothing."""
    gpu = Gpu(monkeypatch, Host(refuses))
    layers = gpu.layers(random_layers())
    assert gpu.host.most == (0 if refuses else sum(tensor.nbytes for layer in random_layers() for tensor in layer))
    found = gpu.read(layers, range(BLOCKS))
    gpu.run(lambda: True)
    layers.clear()
    layers.clear()
    assert not gpu.host.pinned
    assert all(torch.equal(*pair) for layer, wanted in zip(found, random_layers()) for pair in zip(layer, wanted))


class CudaRuntime:
    """In the place of the driver, which is not here: what it has pinned, by address."""

    def __init__(self):
        self.pinned = {}

    def cudaHostRegister(self, address, size, flags):
        self.pinned[address] = size
        return 0

    def cudaHostUnregister(self, address):
        del self.pinned[address]
        return 0


def test_a_run_pins_by_comfyuis_functions(gpu, monkeypatch):
    """They count what is pinned, until the run lets go of it."""
    runtime = CudaRuntime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(comfy.model_management, "MAX_PINNED_MEMORY", 2**30)
    counted = comfy.model_management.TOTAL_PINNED_MEMORY
    model, device = tiny.with_identity(tiny.load(), cache="offloaded"), CudaOnTheHost("cpu")
    wan, applied = Wan(model.model), installed(model)
    run = StandInRun(applied, steps=1, hook_groups=1, whole=(3, 4, 6))
    run.modes[device] = "offloaded"  # what a card has free is not asked
    with torch.inference_mode():
        run.layers(0, model.model, wan, device)
    held = cache_spec(applied.identities[0], wan, 1).device_bytes("resident")
    assert list(runtime.pinned.values()) == [held]
    assert comfy.model_management.TOTAL_PINNED_MEMORY - counted == held
    run.release()
    assert not runtime.pinned and counted == comfy.model_management.TOTAL_PINNED_MEMORY


def test_host_memory_stays_until_the_last_copy_from_it(gpu):
    """The block that comes next may be under way when the run ends."""
    layers = gpu.layers(random_layers())
    gpu.read(layers, [0])
    copies = [step for step in gpu.copying.queue if callable(step)]
    layers.clear()
    assert gpu.copying.done == len(gpu.copying.queue)
    first, second = random_layers().__next__(), list(random_layers())[1]
    for copy, layer in zip(copies, (first, second)):
        assert all(torch.equal(*pair) for pair in zip(copy.args[0], layer))


def test_a_build_that_fails_unpins(gpu):
    def fails():
        yield next(random_layers())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.layers(fails())
    assert gpu.host.most and not gpu.host.pinned


def test_offloaded_layers_let_go_of_host_and_device(gpu):
    layers = gpu.layers(random_layers())
    layers[0]
    held = [weakref.ref(tensor) for copy in gpu.copying.queue if callable(copy) for tensor in copy.args[:2]]
    layers.clear()
    gpu.copying.queue.clear()
    assert held and all(tensor() is None for tensor in held)


def test_what_is_read_is_not_the_next_to_go():
    """One group of hooks changes at each keyframe, the other never: that one is built once."""
    cache = IdentityCache(entries=2)
    for keyframe in range(3):
        for weights in (None, keyframe):
            cache.layers("place", weights, resident, nothing)
    assert cache.builds == 1 + 3


def test_fp8_scales_each_head():
    """A head a thousand times as large does not round the others away."""
    tensor = torch.randn(1, TOKENS, DIM, generator=torch.Generator().manual_seed(0))
    tensor[..., :DIM // HEADS] *= 1000
    held = hold("fp8", lambda: [(tensor, tensor)], 1, torch.device("cpu"), HEADS, UNPINNED)
    assert held.device_bytes == 2 * (TOKENS * DIM + 4 * HEADS)  # a byte for each value, a float for each head
    small = slice(DIM // HEADS, None)
    assert (held[0][0] - tensor)[..., small].abs().max() < tensor[..., small].abs().max() / 16


def test_streaming_computes_each_block_once_a_call():
    computed = []

    def build():
        for i, layer in enumerate(random_layers()):
            computed.append(i)
            yield layer

    held = hold("streaming", build, BLOCKS, torch.device("cpu"), HEADS, UNPINNED)
    for _ in range(2):
        for block in range(BLOCKS):
            held[block]
    assert computed == 2 * list(range(BLOCKS))
