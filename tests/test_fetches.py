"""How often a run fetches the weights that ComfyUI keeps in host memory, where none of them fits on the device.

ComfyUI's ``cast_bias_weight`` brings the weights of one module to the device, for one call of that module.
"""
from collections import Counter

import comfy.ops
import pytest
import torch

import tiny

pytestmark = pytest.mark.usefixtures("nothing_fits")
CACHED = ("resident", "offloaded", "fp8")
ADAPTER = "the adapter"


@pytest.fixture
def fetched(monkeypatch):
    """Gives what a model samples, and how often the run fetched the weights of each module, by its name."""
    counts, cast = Counter(), comfy.ops.cast_bias_weight

    def counting(module, *args, **kwargs):
        counts[module] += 1
        return cast(module, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", counting)

    def of_run(model):
        counts.clear()
        samples, _ = tiny.sample(model)
        names = {module: name for name, module in model.model.diffusion_model.named_modules()}
        by_name = Counter()
        for module, count in counts.items():
            by_name[names.get(module, ADAPTER)] += count
        return samples, by_name

    return of_run


def read_by_the_identity():
    """The modules that the identity passes; the last block gives it K and V alone."""
    once = ["patch_embedding", "time_embedding.0", "time_embedding.2", "time_projection.1"]
    whole = [*(f"self_attn.{part}" for part in ("q", "k", "v", "o", "norm_q", "norm_k")), "ffn.0", "ffn.2"]
    last = [f"self_attn.{part}" for part in ("k", "v", "norm_k")]
    return Counter(once + [f"blocks.{block}.{part}" for block in range(tiny.WAN.blocks)
                           for part in (last if block == tiny.WAN.blocks - 1 else whole)])


def test_a_cache_saves_fetches(fetched):
    """Beside the plain model's one fetch a call, the identity's weights are fetched once a run where there is a cache.

    Streaming fetches them in every call, and the adapter's.
    """
    model = tiny.load()
    _, plain = fetched(model)
    once = read_by_the_identity()
    assert set(plain.values()) == {tiny.STEPS} and set(once) < set(plain)
    samples = {}
    for mode in CACHED:
        samples[mode], found = fetched(tiny.with_identity(model, cache=mode))
        assert found - plain == once, mode
    samples["streaming"], found = fetched(tiny.with_identity(model, cache="streaming"))
    once[ADAPTER] = 2 * (3 * tiny.WAN.blocks - 1)  # down and up of q, k and v, but of the last block's q
    assert found - plain == Counter({name: tiny.STEPS * count for name, count in once.items()})
    for mode in ("offloaded", "streaming"):
        assert torch.equal(samples[mode], samples["resident"]), mode
