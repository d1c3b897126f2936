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
    cache.layers("key", layers, nothing)
    assert cache.size_bytes == IdentityCacheSpec(3, 4, 6, torch.float16).size_bytes


def test_bytes_of_wan_14b():
    """The authors say about 1 GB; 40 blocks x K and V x 1,024 tokens x 5,120 x 2 bytes."""
    assert IdentityCacheSpec(40, 1024, 5120, torch.bfloat16).size_bytes == 838_860_800


def test_one_build_for_a_key():
    cache, calls = IdentityCache(), []

    def build():
        calls.append(1)
        return iter(layers())

    first = cache.layers("a", build, nothing)
    assert cache.layers("a", build, nothing) is first
    assert cache.layers("b", build, nothing) is not first
    assert (len(calls), cache.builds) == (2, 2)


def test_oldest_entry_goes():
    cache = IdentityCache()
    oldest = weakref.ref(cache.layers(0, layers, nothing)[0][0])
    for key in range(1, IdentityCache.ENTRIES + 1):
        cache.layers(key, layers, nothing)
    assert oldest() is None
    assert cache.size_bytes == IdentityCache.ENTRIES * IdentityCacheSpec(3, 4, 6, torch.float16).size_bytes


def test_a_build_that_fails_leaves_no_entry():
    cache = IdentityCache()

    def fails():
        yield from layers(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.layers("a", fails, nothing)
    assert (cache.size_bytes, cache.builds) == (0, 0)


def test_clear():
    cache = IdentityCache()
    tensor = weakref.ref(cache.layers("a", layers, nothing)[0][0])
    cache.clear()
    assert tensor() is None
