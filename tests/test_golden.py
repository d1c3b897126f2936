"""Agreement with the authors' implementation, tensor by tensor."""
from dataclasses import replace

import pytest
import torch

from golden_cases import load_case, velocities
from standin_core.attention.extend import KERNEL_HEAD_DIMS
from standin_core.sampler import FLOW_MATCHING, SamplerSettings, denoise, flow_matching_sigmas, switch_step
from standin_core.stand_in.adapter import load_adapter
from standin_core.stand_in.positions import conditional_positions
from standin_core.stand_in.stream import identity_layers
from standin_core.wan import Wan
from tolerances import assert_close, relative_rms

# The bars of the golden data: ComfyUI without any identity reproduces the authors' base model to 2e-5 (max abs,
# outputs of order 1), and a sampling loop adds up the differences of its steps.
ONE_CALL = 1e-4
WHOLE_LOOP = 1e-3


def largest_difference(a, b):
    return float((a - b).abs().max())


def vace(case, model):
    """The golden vace_context enters the patch embedding as it is, past ComfyUI's own preparation of it."""
    context = case.io["vace_context"].unsqueeze(1)

    def with_context(executor, *args, **kwargs):
        kwargs["vace_context"], kwargs["vace_strength"] = context, [case.settings["vace_scale"]]
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key("diffusion_model", "vace_context", with_context)
    return model


PATHS = ("merge", "concatenate", "kernel", "tiles")


@pytest.fixture
def attention(path, monkeypatch):
    """The setting of a path; "tiles" chooses as where nothing fused gives a log-sum-exp, "kernel" as on CUDA, where a
    CPU has Triton's interpreter. Head dim 48, which two of the cases have, the kernel refuses there too.
    """
    if path == "tiles":
        monkeypatch.setattr("standin_core.attention.choice.FUSED", ())
        return "merge"
    if path != "kernel":
        return path
    pytest.importorskip("triton")
    monkeypatch.setattr("standin_core.attention.choice.kernel_refusal",
                        lambda device, dtype, head_dim: None if head_dim in KERNEL_HEAD_DIMS else "as on CUDA")
    return "merge"


CONTEXTS = {"cond": "positive", "uncond": "negative"}


EXACT_CACHES = ("resident", "offloaded", "streaming")


CASES = ("t2v_small", "vace_small")
# every path with every cache, and each of the two with every case and every prompt
PAIRS = [(CASES[(i + j) % 2], list(CONTEXTS)[(i // 2 + j) % 2], path, cache)
         for i, path in enumerate(PATHS) for j, cache in enumerate(EXACT_CACHES)]


@pytest.mark.parametrize("name, output, path, cache", PAIRS)
def test_velocity_with_identity(name, output, path, attention, cache):
    case = load_case(name)
    conditioning = case.conditioning(CONTEXTS[output])
    model = case.identity(case.model(), attention=attention, cache=cache)
    if name == "vace_small":
        model = vace(case, model)
    for k, velocity in enumerate(velocities(model, case.io["latent"], case.io["timesteps"], conditioning)):
        assert largest_difference(velocity, case.io[f"{output}.{k}"]) < ONE_CALL


@pytest.mark.parametrize("name", ["t2v_small", "vace_small"])
def test_velocity_without_identity(name):
    case = load_case(name)
    conditioning = case.conditioning("positive")
    model = case.model() if name == "t2v_small" else vace(case, case.model())
    for k, velocity in enumerate(velocities(model, case.io["latent"], case.io["timesteps"], conditioning)):
        assert largest_difference(velocity, case.io[f"base.{k}"]) < ONE_CALL


@pytest.mark.parametrize("name", ["t2v_small", "vace_small"])
def test_identity_kv(name):
    case = load_case(name)
    patcher = case.model()
    model = Wan(patcher.model)
    reference, latent = case.io["reference_latent"], case.io["latent"]
    adapter = load_adapter(case.folder / "standin.safetensors")
    layers = list(identity_layers(model, reference, adapter))
    positions = conditional_positions(model.grid(latent.shape)[1:], model.grid(reference.shape)[1:], -1)
    assert len(layers) == case.settings["num_layers"]
    for i, (key, value) in enumerate(layers):
        rotated = model.blocks[i].rotate(key, model.rotation(positions))
        assert largest_difference(rotated, case.io[f"k_ip.{i}"]) < ONE_CALL
        assert largest_difference(value, case.io[f"v_ip.{i}"]) < ONE_CALL


def settings_of(case):
    s = case.settings
    return SamplerSettings(seed=0, steps=s["steps"], cfg=s["cfg"], shift=s["shift"], scheduler=FLOW_MATCHING,
                           boundary=s.get("boundary", 0.875))


def vae_space(model, latent):
    return model.model.process_latent_out(latent)


@pytest.mark.parametrize("path", PATHS)
def test_sampling_one_model(path, attention):
    case = load_case("t2v_small")
    model = case.identity(case.model(), attention=attention)
    latent = case.io["latent"]
    sampled, sink = denoise(model, None, case.conditioning("positive"), case.conditioning("negative"),
                            torch.zeros_like(latent), latent, None, settings_of(case))
    (report,) = sink.reports
    assert largest_difference(model.model.process_latent_in(sampled), case.io["sampled"]) < ONE_CALL
    assert report.builds == 1
    assert report.attention.startswith(attention)
    assert ("Triton kernel" in report.attention) == (path == "kernel")
    assert ("tiles" in report.attention) == (path == "tiles")


@pytest.mark.parametrize("cache, path", [("offloaded", "merge"), ("offloaded", "kernel"), ("streaming", "concatenate"),
                                         ("streaming", "tiles"), ("fp8", "kernel"), ("fp8", "merge")])
def test_sampling_in_every_cache_mode(cache, path, attention):
    """fp8 rounds, and its bound is its own: 2 % of what the identity changes (measured: 1.1 %)."""
    case = load_case("t2v_small")
    latent = case.io["latent"]

    def sampled(model):
        found, _ = denoise(model, None, case.conditioning("positive"), case.conditioning("negative"),
                           torch.zeros_like(latent), latent, None, settings_of(case))
        return model.model.process_latent_in(found)

    found = sampled(case.identity(case.model(), attention=attention, cache=cache))
    if cache == "fp8":
        effect = relative_rms(sampled(case.model()), case.io["sampled"])
        assert relative_rms(found, case.io["sampled"]) < 0.02 * effect
    else:
        assert largest_difference(found, case.io["sampled"]) < ONE_CALL


@pytest.mark.parametrize("path, cache", zip(PATHS, (*EXACT_CACHES, "offloaded")))
def test_sampling_two_experts(path, attention, cache):
    case = load_case("wan22_small")
    settings = {"attention": attention, "cache": cache}
    high = case.identity(case.model(), **settings)
    low = case.identity(case.model("base_low.safetensors"), "standin_low.safetensors", **settings)
    latent = case.io["latent"]
    sampled, sink = denoise(high, low, case.conditioning("positive"), case.conditioning("negative"),
                            torch.zeros_like(latent), latent, None, settings_of(case))
    assert largest_difference(high.model.process_latent_in(sampled), case.io["sampled"]) < WHOLE_LOOP
    assert [report.steps for report in sink.reports] == [case.settings["switch_step"],
                                                         case.settings["steps"] - case.settings["switch_step"]]
    if cache != "streaming":
        assert [report.builds for report in sink.reports] == [1, 1]


@pytest.mark.parametrize("name", ["t2v_small", "wan22_small"])
def test_sigmas(name):
    case = load_case(name)
    sigmas = flow_matching_sigmas(case.settings["steps"], case.settings["shift"], 1.0)
    assert_close(sigmas, case.io["sigmas"])
    if "boundary" in case.settings:
        assert switch_step(sigmas, case.settings["boundary"]) == case.settings["switch_step"]


OUTPUTS = (("sampled", False), ("sampled_background_locked", True))


@pytest.mark.parametrize("output, locked, path, cache", [
    (*OUTPUTS[(i + j) % 2], path, cache) for i, path in enumerate(PATHS) for j, cache in enumerate(EXACT_CACHES)])
def test_face_swap(output, locked, path, attention, cache):
    """Partial denoising from a source, with the background free and put back after every step."""
    case = load_case("faceswap_small")
    model = case.identity(case.model(), attention=attention, cache=cache)
    settings = replace(settings_of(case), denoise=case.settings["denoise"])
    sampled, _ = denoise(model, None, case.conditioning("positive"), case.conditioning("negative"),
                         vae_space(model, case.io["source_latent"]), case.io["noise"],
                         case.io["face_mask"] if locked else None, settings)
    difference = largest_difference(model.model.process_latent_in(sampled), case.io[output])
    assert difference < WHOLE_LOOP
