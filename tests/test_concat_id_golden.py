"""Agreement with the authors' implementation of Concat-ID (ML-GSAI/Concat-ID at b15cb95), tensor by tensor."""
import comfy.samplers
import folder_paths
import pytest
import torch

from golden_cases import GOLDEN, load_case, velocities
from standin_core.concat_id.forward import reference_positions
from standin_core.sampler import FLOW_MATCHING, SamplerSettings, denoise
from standin_core.wan import Wan
from support import pack

BAR = 1e-4  # the golden data's own; an implementation comes within 5e-5
CASES = ("concat_id_small", "concat_id_adaln_small")


def largest_difference(a, b):
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.fixture
def loaded(name, monkeypatch):
    """(case, model, concat_id), through Load Concat-ID."""
    _, extensions = folder_paths.folder_names_and_paths["diffusion_models"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(GOLDEN / name)], extensions))
    folder_paths.filename_list_cache.pop("diffusion_models", None)
    yield load_case(name), *pack.node_classes()["LoadConcatID"].execute(
        file="model.safetensors", weight_dtype="default").args
    folder_paths.filename_list_cache.pop("diffusion_models", None)


@pytest.fixture
def applied(loaded):
    """(case, model), through Apply Concat-ID too, by a latent."""
    case, model, concat_id = loaded

    def latent(key):
        return {"samples": model.model.process_latent_out(case.io[key])}

    return case, pack.node_classes()["ApplyConcatID"].execute(
        model=model, concat_id=concat_id, latent=latent("latent"), reference_latent=latent("reference_latent"),
        start_percent=0.0, end_percent=1.0, guidance="both passes", guidance_scale=1.0).args[0]


@pytest.mark.parametrize("output, prompt", [("cond", "positive"), ("uncond", "negative")])
@pytest.mark.parametrize("name", CASES)
def test_velocity(applied, output, prompt):
    case, model = applied
    found = velocities(model, case.io["latent"], case.io["timesteps"], case.conditioning(prompt))
    assert len(found) == len(case.io["timesteps"])
    for k, velocity in enumerate(found):
        assert largest_difference(velocity, case.io[f"{output}.{k}"]) < BAR


@pytest.mark.parametrize("name", CASES)
def test_velocity_without_a_reference(loaded):
    case, model, _ = loaded
    for k, velocity in enumerate(velocities(model, case.io["latent"], case.io["timesteps"],
                                            case.conditioning("positive"))):
        assert largest_difference(velocity, case.io[f"base.{k}"]) < BAR


@pytest.mark.parametrize("name", CASES)
def test_every_block(applied):
    """What each block gives out, for the video and for the reference, and how the reference is turned."""
    case, model = applied
    tokens = case.io["block_reference.0"].shape[1]
    seen = {}

    def note(args, extra):
        out = extra["original_block"](args)
        seen[args["transformer_options"]["block_index"]] = out["img"]
        return out

    for i in range(case.settings["num_layers"]):
        model.set_model_patch_replace(note, "dit", "double_block", i)
    velocities(model, case.io["latent"], case.io["timesteps"][:1], case.conditioning("positive"))
    for i in range(case.settings["num_layers"]):
        assert largest_difference(seen[i][:, :-tokens], case.io[f"block_video.{i}"]) < BAR
        assert largest_difference(seen[i][:, -tokens:], case.io[f"block_reference.{i}"]) < BAR


@pytest.mark.parametrize("name", CASES)
def test_rotation(loaded):
    """cos and sin of every token of the reference, of frequencies in the order t, y, x."""
    case, model, _ = loaded
    wan = Wan(model.model)
    matrices = wan.rotation(reference_positions(wan.grid(case.io["latent"].shape), 1))[0, :, 0]
    assert largest_difference(matrices[..., 0], case.io["rope_reference"]) < BAR


@pytest.mark.parametrize("name", CASES)
def test_whole_loop(applied):
    case, model = applied
    settings = SamplerSettings(seed=0, scheduler=FLOW_MATCHING, **{name: case.settings[name]
                                                                    for name in ("steps", "cfg", "shift")})
    latent = case.io["latent"]
    sampled, sink = denoise(model, None, case.conditioning("positive"), case.conditioning("negative"),
                            torch.zeros_like(latent), latent, None, settings)
    assert largest_difference(model.model.process_latent_in(sampled), case.io["sampled"]) < BAR
    (report,) = sink.reports
    assert report.identity_calls == report.model_calls >= settings.steps


@pytest.mark.parametrize("name", CASES)
def test_whole_loop_at_the_authors_own_sigmas(applied):
    """They compute their levels in fp32, and the pack in float64, so that two of the five differ in the last bit. What
    is left comes from the embedding of the timestep, in fp32 here and in float64 there.
    """
    case, model = applied
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(case.conditioning("positive"), case.conditioning("negative"))
    guider.set_cfg(case.settings["cfg"])
    latent = case.io["latent"]
    sampled = guider.sample(latent, torch.zeros_like(latent), comfy.samplers.sampler_object("euler"), case.io["sigmas"],
                            seed=0)
    # at the pack's levels 8.6e-5 for the first stage
    assert largest_difference(model.model.process_latent_in(sampled), case.io["sampled"]) < 6e-5
