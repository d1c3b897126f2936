"""The identity K/V of a run: bytes known beforehand, built once, let go."""
import weakref

import pytest
import torch

from standin_core.kv_cache import IdentityCache, IdentityCacheSpec


def layers(blocks=3, tokens=4, dim=6, dtype=torch.float16):
    return [(torch.ones(1, tokens, dim, dtype=dtype), torch.ones(1, tokens, dim, dtype=dtype)) for _ in range(blocks)]


def nothing():
    pass


def test_bytes_before_allocation():
    cache = IdentityCache()
    cache.layers("place", "weights", layers, nothing)
    assert cache.size_bytes == IdentityCacheSpec(3, 4, 6, torch.float16).size_bytes


def test_bytes_of_wan_14b():
    """The authors say about 1 GB; 40 blocks x K and V x 1,024 tokens x 5,120 x 2 bytes."""
    assert IdentityCacheSpec(40, 1024, 5120, torch.bfloat16).size_bytes == 838_860_800


def test_one_build_for_a_place_and_its_weights():
    cache, calls = IdentityCache(entries=2), []

    def build():
        calls.append(1)
        return iter(layers())

    first = cache.layers("device", "lora", build, nothing)
    assert cache.layers("device", "lora", build, nothing) is first
    assert cache.layers("device", "other lora", build, nothing) is not first
    assert cache.layers("other device", "lora", build, nothing) is not first
    assert (len(calls), cache.builds) == (3, 3)
    assert cache.layers("device", "lora", build, nothing) is first


def test_the_oldest_goes_before_the_next_is_built():
    """A keyframe that changes a LoRA in mid-run must not hold two builds at a time."""
    cache = IdentityCache(entries=1)
    oldest = weakref.ref(cache.layers("device", 0.5, layers, nothing)[0][0])
    alive = []

    def build():
        alive.append(oldest() is not None)
        return layers()

    cache.layers("device", 0.6, build, nothing)
    assert alive == [False]
    assert cache.size_bytes == IdentityCacheSpec(3, 4, 6, torch.float16).size_bytes


def test_bytes_of_several_entries():
    cache = IdentityCache(entries=2)
    for weights in range(5):
        cache.layers("device", weights, layers, nothing)
    assert cache.size_bytes == IdentityCacheSpec(3, 4, 6, torch.float16, entries=2).size_bytes


def test_a_build_that_fails_leaves_no_entry():
    cache = IdentityCache()

    def fails():
        yield from layers(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.layers("device", "weights", fails, nothing)
    assert (cache.size_bytes, cache.builds) == (0, 0)


def test_clear_lets_go_even_of_what_others_hold():
    """The frames of an exception's traceback hold the list they were reading."""
    cache = IdentityCache()
    held = cache.layers("device", "weights", layers, nothing)
    tensor = weakref.ref(held[0][0])
    cache.clear()
    assert tensor() is None and held == []
