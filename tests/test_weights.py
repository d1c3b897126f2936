"""Adapter files: every format in use reads to the same weights, and everything else gives one helpful sentence."""
import hashlib
import re

import pytest
import safetensors.torch
import torch

from pickles import Opens
from small_world.tiny_models import adapter_weights
from standin_core.errors import UserError
from standin_core.stand_in.adapter import PREFIXES, check_fit, load_adapter, parse_adapter

DIM, BLOCKS, RANK = 32, 3, 5


@pytest.fixture
def weights():
    return adapter_weights(DIM, BLOCKS, RANK)


def assert_same(adapter, weights):
    assert (adapter.dim, len(adapter.blocks), adapter.rank) == (DIM, BLOCKS, RANK)
    for i, block in enumerate(adapter.blocks):
        for which in "qkv":
            prefix = f"blocks.{i}.self_attn.{which}_loras"
            assert torch.equal(getattr(block, which).down, weights[f"{prefix}.down.weight"])
            assert torch.equal(getattr(block, which).up, weights[f"{prefix}.up.weight"])


def save(weights, path, wrapped):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save({"state_dict": weights} if wrapped else weights, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name, wrapped", [("a.safetensors", False), ("a.ckpt", False), ("a.ckpt", True)])
def test_files(tmp_path, weights, name, wrapped, dtype):
    weights = {key: value.to(dtype) for key, value in weights.items()}
    save(weights, tmp_path / name, wrapped)
    adapter = load_adapter(tmp_path / name)
    assert_same(adapter, weights)
    assert adapter.name == name
    assert adapter.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_prefixes(weights, prefix):
    assert_same(parse_adapter({prefix + key: value for key, value in weights.items()}, "a"), weights)


def renamed(weights, old, new):
    return {key.replace(old, new): value for key, value in weights.items()}


def peft(weights):
    return renamed(renamed(renamed(weights, "_loras", ""), ".down", ".lora_A"), ".up", ".lora_B")


NAMES = {
    "PEFT": lambda weights: peft(weights),
    "PEFT with its prefix and its adapter's name": lambda weights: {
        "base_model.model." + key.replace(".weight", ".default.weight"): value for key, value in peft(weights).items()},
    "diffusers": lambda weights: {
        "transformer." + key.replace("self_attn.", "attn1.to_"): value for key, value in peft(weights).items()},
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_other_trainers(weights, name):
    assert_same(parse_adapter(NAMES[name](weights), "a"), weights)


def without(weights, key):
    return {k: v for k, v in weights.items() if k != key}


KEY = "blocks.1.self_attn.k_loras.up.weight"
REFUSED = {
    "missing": (lambda w: without(w, KEY), f"lacks 1 of the 18 tensors .*{KEY}.*download it again"),
    "surplus": (
        lambda w: w | {"blocks.0.self_attn.o_loras.up.weight": w[KEY]}, "has 1 entries that no Stand-In adapter has"),
    "the same tensor twice": (lambda w: w | {"dit." + KEY: w[KEY]}, f"has {KEY} twice, under two names"),
    "two layouts in one file": (lambda w: w | peft(w), "twice, under two names"),
    "something beside tensors": (lambda w: w | {"epoch": 3}, "has 1 entries that no Stand-In adapter has .*epoch"),
    "misshapen": (lambda w: w | {KEY: w[KEY][:, :3]}, rf"{KEY} must be a matrix .*\[32, 5\], but is \[32, 3\]"),
    "turned": (lambda w: w | {KEY: w[KEY].T.contiguous()}, rf"{KEY} must be a matrix .*, but is \[5, 32\]"),
    "not a matrix": (lambda w: w | {KEY: w[KEY][0]}, rf"{KEY} must be a matrix .*, but is \[5\]"),
    "no matrices at all": (lambda w: {k: v[0] for k, v in w.items()}, "must be a matrix"),
    "quantised": (
        lambda w: w | {KEY: w[KEY].to(torch.float8_e4m3fn)},
        f"{KEY} must be fp32, fp16 or bf16, but is torch.float8_e4m3fn"),
    "empty": (lambda w: {}, "must be a Stand-In adapter, .* but it holds no tensors"),
    "a single tensor": (lambda w: w[KEY], "holds a Tensor that is not named tensors"),
    "a list": (lambda w: [w[KEY]], "holds a list that is not named tensors"),
    "numbers for names": (lambda w: {0: w[KEY]}, "holds a dict that is not named tensors"),
    "an ordinary LoRA": (
        lambda w: {"diffusion_model.blocks.0.cross_attn.q.lora_down.weight": w[KEY]},
        "is an ordinary LoRA .*LoraLoaderModelOnly"),
    "an ordinary LoRA with self-attention in PEFT's names": (
        lambda w: peft(w) | {"blocks.0.ffn.0.lora_A.weight": w[KEY]}, "is an ordinary LoRA"),
    "an ordinary LoRA with alphas": (
        lambda w: peft(w) | {"blocks.0.self_attn.q.alpha": torch.tensor(4.0)}, "is an ordinary LoRA"),
    "a whole model": (
        lambda w: {"blocks.0.self_attn.q.weight": w[KEY], "patch_embedding.weight": w[KEY]},
        "must be a Stand-In adapter, .* but the first of its 2 entries is blocks.0.self_attn.q.weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(tmp_path, weights, name):
    change, words = REFUSED[name]
    save(change(weights), tmp_path / "file.ckpt", wrapped=False)
    with pytest.raises(UserError, match=words) as error:
        load_adapter(tmp_path / "file.ckpt")
    assert "file.ckpt" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pickle_with_code_is_not_run(tmp_path):
    target = tmp_path / "was_run"
    torch.save({"state_dict": Opens(target)}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"evil\.ckpt cannot be read as weights"):
        load_adapter(tmp_path / "evil.ckpt")
    assert not target.exists()


@pytest.mark.parametrize("name", [f"{damage}.{suffix}" for damage in ("cut", "empty", "text")
                                  for suffix in ("safetensors", "ckpt")])
def test_broken_files(tmp_path, weights, name):
    path = tmp_path / name
    save(weights, path, wrapped=False)
    path.write_bytes({"cut": path.read_bytes()[:1000], "empty": b"", "text": b"hello world"}[path.stem])
    fault = "is damaged or no safetensors" if name == "text.safetensors" else "cannot be read as weights"
    with pytest.raises(UserError, match=re.escape(f"{name} {fault}")):
        load_adapter(path)


@pytest.mark.parametrize("blocks, dim", [(BLOCKS + 1, DIM), (BLOCKS, 2 * DIM)])
def test_fit(weights, blocks, dim):
    adapter = parse_adapter(weights, "a.safetensors")
    check_fit(adapter, BLOCKS, DIM)
    with pytest.raises(UserError, match=f"is for a Wan of {BLOCKS} blocks and width {DIM}, the model has {blocks} "):
        check_fit(adapter, blocks, dim)
