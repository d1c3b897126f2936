"""ID-Animator's files: every container reads to the same weights, and everything else gives one helpful sentence."""
import hashlib
import json

import pytest
import safetensors.torch
import torch

from golden_cases import GOLDEN
from pickles import Opens
from standin_core.errors import UserError
from standin_core.id_animator.adapter import load_adapter, parse_adapter

FILE = GOLDEN / "id_animator_small" / "animator.safetensors"
RESAMPLER, ATTENTION = "image_proj_model.", "adapter_modules."


@pytest.fixture
def weights():
    """Under the authors' names, without the word before them."""
    return {key.removeprefix("module."): value for key, value in safetensors.torch.load_file(FILE).items()}


def assert_same(adapter, weights):
    assert (adapter.rank, adapter.clip_width, adapter.depth, len(adapter.projections)) == (4, 32, 4, 16)
    for key, value in adapter.resampler.items():
        assert torch.equal(value, weights[f"{RESAMPLER}{key}"])
    for place, projection in enumerate(adapter.projections):
        prefix = f"{ATTENTION}{2 * place + 1}."
        assert torch.equal(projection.key, weights[f"{prefix}to_k_face.weight"])
        assert torch.equal(projection.value, weights[f"{prefix}to_v_face.weight"])
        for which in ("q", "k", "v", "out"):
            for factor in ("down", "up"):
                assert torch.equal(adapter.low_rank[f"{place}.to_{which}_lora.{factor}.weight"],
                                   weights[f"{prefix}to_{which}_lora.{factor}.weight"])
    assert len(adapter.resampler) == 51 and len(adapter.low_rank) == 128


def halves(weights):
    """The other container that the authors' loader reads."""
    return {"image_proj": {key.removeprefix(RESAMPLER): value for key, value in weights.items()
                           if key.startswith(RESAMPLER)},
            "face_adapter": {key.removeprefix(ATTENTION): value for key, value in weights.items()
                             if key.startswith(ATTENTION)}}


def flat(weights):
    return {f"{half}.{key}": value for half, inner in weights.items() for key, value in inner.items()}


def prefixed(weights):
    return {f"module.{key}": value for key, value in weights.items()}


CONTAINERS = {
    "bare": lambda w: w,
    "module": prefixed,
    "state_dict": lambda w: {"state_dict": w},
    "state_dict and module": lambda w: {"state_dict": prefixed(w), "epoch": 3},
    "halves": halves,
    "halves with module": lambda w: {half: prefixed(inner) for half, inner in halves(w).items()},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_ckpt(tmp_path, weights, name):
    torch.save(CONTAINERS[name](weights), tmp_path / "animator.ckpt")
    adapter = load_adapter(tmp_path / "animator.ckpt")
    assert_same(adapter, weights)
    assert adapter.name == "animator.ckpt"
    assert adapter.sha256 == hashlib.sha256((tmp_path / "animator.ckpt").read_bytes()).hexdigest()


@pytest.mark.parametrize("container", [lambda w: w, prefixed, lambda w: flat(halves(w))],
                         ids=["bare", "module", "halves"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_safetensors(tmp_path, weights, container, dtype):
    weights = {key: value.to(dtype) for key, value in weights.items()}
    safetensors.torch.save_file(container(weights), tmp_path / "animator.safetensors")
    assert_same(load_adapter(tmp_path / "animator.safetensors"), weights)


def test_the_released_size():
    """All 211 names and shapes of the authors' file."""
    shapes = json.loads((FILE.parent / "full_size_keys.json").read_text())
    adapter = parse_adapter({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, "animator.ckpt")
    assert (adapter.rank, adapter.clip_width, adapter.depth) == (128, 1280, 4)
    assert [projection.key.shape[0] for projection in adapter.projections] == [
        320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280]
    parts = (adapter.resampler.values(), adapter.low_rank.values(),
             [each for projection in adapter.projections for each in (projection.key, projection.value)])
    assert sum(tensor.numel() for part in parts for tensor in part) == 61_817_856


def without(weights, *keys):
    return {key: value for key, value in weights.items() if key not in keys}


def without_place(weights, index):
    return {key: value for key, value in weights.items() if not key.startswith(f"{ATTENTION}{index}.")}


UP, QUERY = f"{ATTENTION}7.to_out_lora.up.weight", f"{RESAMPLER}layers.2.0.to_q.weight"
REFUSED = {
    "missing": (lambda w: without(w, UP), rf"lacks 1 of the 211 tensors .*{UP}.*download it again"),
    "a layer cut off": (
        lambda w: {key: value for key, value in w.items() if not key.startswith(f"{RESAMPLER}layers.3.1.")},
        r"lacks 4 of the 211 tensors .*layers\.3\.1\.0\.bias"),
    "no resampler": (
        lambda w: {key: value for key, value in w.items() if key.startswith(ATTENTION)},
        r"lacks 7 of the 167 tensors .*image_proj_model"),
    "no attention": (
        lambda w: {key: value for key, value in w.items() if key.startswith(RESAMPLER)},
        "must have weights for the attentions 1, 3, 5 .*, but has them for none"),
    "a place missing": (
        lambda w: without_place(w, 9), "without a gap, but has them for 1, 3, 5, 7, 11,"),
    "surplus": (
        lambda w: w | {f"{ATTENTION}1.to_q_lora.alpha": w[UP]}, "has 1 entries that no ID-Animator adapter has"),
    "surplus in a self-attention": (
        lambda w: w | {f"{ATTENTION}2.to_k_face.weight": w[UP]}, "but has them for 1, 2, 3"),
    "a layer far away": (
        lambda w: w | {f"{RESAMPLER}layers.9999999999.0.to_q.weight": w[QUERY]},
        r"has 1 entries that no ID-Animator adapter has .*layers\.9999999999"),
    "twice": (lambda w: w | {f"module.{UP}": w[UP]}, f"has {UP} twice, under two names"),
    "misshapen": (lambda w: w | {UP: w[UP][:, :3]}, rf"{UP} must be \[\d+, 4\] .*, but is \[\d+, 3\]"),
    "turned": (lambda w: w | {UP: w[UP].T.contiguous()}, rf"{UP} must be \[\d+, 4\] .*, but is \[4, \d+\]"),
    "a vector": (lambda w: w | {UP: w[UP][0]}, rf"{UP} must be \[\d+, 4\] .*, but is \[4\]"),
    "no face tokens": (
        lambda w: w | {f"{RESAMPLER}latents": w[f"{RESAMPLER}latents"][:, :0]},
        r"latents must be \[1, 1 or more, \d+\] .*, but is \[1, 0, \d+\]"),
    "of rank 0": (
        lambda w: {key: value[:0] if ".down." in key else value[:, :0] if ".up." in key else value
                   for key, value in w.items()},
        r"lora\.(down|up)\.weight must be \[.*1 or more.*\] .*, but is \[.*0.*\]"),
    "not finite": (
        lambda w: w | {UP: w[UP] * torch.nan}, rf"has values that are not finite \(NaN or infinite, in {UP}\)"),
    "without data": (
        lambda w: w | {UP: torch.empty(w[UP].shape, device="meta")}, rf"has a tensor that is without data \({UP}\)"),
    "more than the file has": (
        lambda w: w | {f"{RESAMPLER}latents": w[f"{RESAMPLER}latents"][:, :1].expand(1, 10**7, -1)},
        r"has [\d,]+ bytes and claims tensors of [\d,]+ \(image_proj_model\.latents\)"),
    "an index of 4,400 digits": (
        lambda w: w | {f"{ATTENTION}{'1' * 4400}.to_k_face.weight": w[UP]},
        r"has the name adapter_modules\.1+\.\.\., which no tensor has"),
    "an index of 200 digits": (
        lambda w: w | {f"{ATTENTION}{'1' * 200}.to_k_face.weight": w[UP]},
        "has 1 entries that no ID-Animator adapter has"),
    "heads of another size": (
        lambda w: {key: _narrower(key, value) for key, value in w.items()},
        "the resampler's queries must be a multiple of 64, but is 96"),
    "quantised": (
        lambda w: w | {UP: w[UP].to(torch.float8_e4m3fn)},
        f"{UP} must be fp32, fp16 or bf16, but is torch.float8_e4m3fn"),
    "something beside tensors": (lambda w: w | {QUERY: 3}, f"{QUERY} must be a tensor, but is of type int"),
    "an IP-Adapter": (
        lambda w: {"image_proj": {"latents": w[UP]}, "ip_adapter": {"1.to_k_ip.weight": w[UP]}},
        "is an IP-Adapter, not an ID-Animator adapter: .*ComfyUI_IPAdapter_plus"),
    "an IP-Adapter as safetensors": (
        lambda w: {"image_proj.latents": w[UP], "ip_adapter.1.to_k_ip.weight": w[UP]}, "is an IP-Adapter"),
    "an ordinary LoRA": (
        lambda w: {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": w[UP]},
        "must be an ID-Animator adapter, .* but it is an ordinary LoRA .*for LoraLoader"),
    "a Stand-In adapter": (
        lambda w: {"blocks.0.self_attn.q_loras.down.weight": w[UP]},
        r"must be an ID-Animator adapter, .* but the first of its 1 entries is blocks\.0"),
    "empty": (lambda w: {}, "must be an ID-Animator adapter, .* but it holds no tensors"),
    "a single tensor": (lambda w: w[UP], "holds a Tensor that is not named tensors"),
    "numbers for names": (lambda w: {0: w[UP]}, "holds a dict that is not named tensors"),
}


def _narrower(key, value):
    """Queries of 96 in place of 128, consistently."""
    if key.endswith(".to_q.weight"):
        return value[:96]
    if key.endswith(".to_kv.weight"):
        return value[:192]
    return value[:, :96] if ".0.to_out.weight" in key else value


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(tmp_path, weights, name):
    change, words = REFUSED[name]
    torch.save(change(weights), tmp_path / "file.ckpt")
    with pytest.raises(UserError, match=words) as error:
        load_adapter(tmp_path / "file.ckpt")
    assert "file.ckpt" in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_in_a_file_is_run(tmp_path):
    torch.save({"state_dict": Opens(tmp_path / "opened")}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"cannot be read as weights .*an ID-Animator adapter is a"):
        load_adapter(tmp_path / "evil.ckpt")
    assert not (tmp_path / "opened").exists()


def test_a_saved_web_page(tmp_path):
    (tmp_path / "animator.safetensors").write_text("<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"animator\.safetensors is damaged or no safetensors"):
        load_adapter(tmp_path / "animator.safetensors")
