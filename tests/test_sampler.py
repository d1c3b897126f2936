"""StandInSampler's sampling: the authors' schedule, ComfyUI's samplers, two experts, masks, progress and refusals."""
import dataclasses
import itertools

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import pytest
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

import tiny
from small_world.tiny_models import TinyWan
from standin_core.errors import UserError
from standin_core.report import as_json, as_text
from standin_core.sampler import (
    FLOW_MATCHING,
    SamplerSettings,
    denoise,
    flow_matching_sigmas,
    sample,
    sampler_names,
    scheduler_names,
    switch_step,
)
from tolerances import WHOLE_RUN, assert_close, relative_rms

STEPS = 6


@pytest.fixture(scope="module")
def low():
    other = TinyWan(text_dim=tiny.WAN.text_dim, seed=11)
    return tiny.load(other.weights())


def run(model, low=None, latent=None, **settings):
    settings = SamplerSettings(**({"seed": 7, "steps": STEPS, "cfg": 4.0} | settings))
    latent = {"samples": torch.zeros(tiny.LATENT)} if latent is None else latent
    output, sink = sample(model, low, tiny.prompt(), tiny.prompt(seed=3), latent, settings)
    return output, sink.reports


def samples_of(*args, **kwargs):
    return run(*args, **kwargs)[0]["samples"]


def test_euler_flow_matching_by_hand(model):
    """x += v (sigma_next - sigma) with v = uncond + cfg (cond - uncond), written out."""
    sigmas = [5 * s / (1 + 4 * s) for s in (1 - i / STEPS for i in range(STEPS + 1))]
    x = comfy.sample.prepare_noise(torch.zeros(tiny.LATENT), 7)
    inner = model.model
    for sigma, following in itertools.pairwise(sigmas):
        velocity = {}
        for name, condition in (("cond", tiny.prompt()), ("uncond", tiny.prompt(seed=3))):
            velocity[name] = inner.diffusion_model(x, torch.tensor([1000 * sigma]), condition[0][0])
        x = x + (velocity["uncond"] + 4.0 * (velocity["cond"] - velocity["uncond"])) * (following - sigma)
    assert_close(samples_of(model), inner.process_latent_out(x), WHOLE_RUN)


@pytest.mark.parametrize("shift", [1.0, 5.0, 12.0])
@pytest.mark.parametrize("scheduler", ["simple", "beta"])
def test_comfyuis_schedulers_are_comfyuis(model, scheduler, shift):
    """The same as core's ModelSamplingSD3 and KSampler."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    shifted = ModelSamplingSD3().patch(model, shift)[0]
    latent = torch.zeros(tiny.LATENT)
    expected = comfy.sample.sample(shifted, comfy.sample.prepare_noise(latent, 7), STEPS, 4.0, "dpmpp_2m", scheduler,
                                   tiny.prompt(), tiny.prompt(seed=3), latent, denoise=0.7, seed=7)
    found = samples_of(model, sampler_name="dpmpp_2m", scheduler=scheduler, shift=shift, denoise=0.7)
    assert_close(found, expected, WHOLE_RUN)


@pytest.mark.parametrize("name", sampler_names())
def test_every_sampler(model, low, name):
    """With one model and through the switch of two experts."""
    assert torch.isfinite(samples_of(tiny.with_identity(model), sampler_name=name)).all()
    samples, reports = run(tiny.with_identity(model), tiny.with_identity(low), sampler_name=name)
    assert torch.isfinite(samples["samples"]).all()
    assert [report.builds for report in reports] == [1, 1]


@pytest.mark.parametrize("name", scheduler_names())
def test_every_scheduler(model, low, name):
    assert torch.isfinite(samples_of(tiny.with_identity(model), tiny.with_identity(low), scheduler=name)).all()


@pytest.mark.parametrize("shift, step", [(5.0, 9), (8.0, 11)])
def test_switch_follows_from_the_sigmas(shift, step):
    """20 steps at the boundary of Wan 2.2: not half of them, and not the same step for every shift."""
    assert switch_step(flow_matching_sigmas(20, shift, 1.0), 0.875) == step


def test_two_experts_that_are_one_model_are_one_run(model):
    assert_close(samples_of(model, model), samples_of(model), WHOLE_RUN)


@pytest.mark.parametrize("boundary, used", [(1.0, ["high", "low"]), (0.0, ["high"]), (0.6, ["high", "low"])])
def test_an_expert_without_a_step_does_not_run(model, low, boundary, used):
    _, reports = run(tiny.with_identity(model), tiny.with_identity(low), boundary=boundary)
    assert len(reports) == len(used)
    assert sum(report.steps for report in reports) == STEPS


def test_the_second_expert_draws_noise_of_its_own(model, low, monkeypatch):
    """Samplers that add noise seed it anew for each expert; the first one's noise must not come twice."""
    seeds, sample_custom = [], comfy.sample.sample_custom

    def spy(*args, **kwargs):
        seeds.append(kwargs["seed"])
        return sample_custom(*args, **kwargs)

    monkeypatch.setattr(comfy.sample, "sample_custom", spy)
    run(model, low, seed=2**64 - 1)
    assert len(set(seeds)) == 2 and all(0 <= seed < 2**64 for seed in seeds)


def test_low_denoise_begins_with_the_low_noise_expert(model, low):
    latent = {"samples": tiny.random(*tiny.LATENT)}
    both = samples_of(model, low, latent, denoise=0.3)
    assert_close(both, samples_of(low, latent=latent, denoise=0.3), WHOLE_RUN)


def test_each_expert_has_its_own_identity(model, low):
    """Identity on one of them only is a third and a fourth result."""
    found = [samples_of(tiny.with_identity(model) if a else model, tiny.with_identity(low) if b else low)
             for a in (False, True) for b in (False, True)]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert relative_rms(one, other) > 100 * WHOLE_RUN


def masked(kept_columns=5):
    mask = torch.ones(tiny.LATENT[2], *tiny.LATENT[3:])
    mask[..., :kept_columns] = 0
    return {"samples": tiny.random(*tiny.LATENT), "noise_mask": mask}


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m"])
def test_a_mask_keeps_its_region_through_the_switch(model, low, name):
    latent = masked()
    samples = samples_of(tiny.with_identity(model), tiny.with_identity(low), latent, sampler_name=name)
    kept, painted = samples[..., :5], samples[..., 7:]
    assert_close(kept, latent["samples"][..., :5], WHOLE_RUN)
    assert relative_rms(painted, latent["samples"][..., 7:]) > 0.1


def test_a_masked_switch_is_one_masked_run(model):
    assert_close(samples_of(model, model, masked()), samples_of(model, latent=masked()), WHOLE_RUN)


def test_differential_diffusion_sees_the_whole_schedule(model):
    """Its thresholds are relative to the sigmas it is given; halves of a schedule would begin them anew."""
    def soft(model):
        return DifferentialDiffusion.execute(model, strength=1.0).args[0]

    latent = masked()
    latent["noise_mask"] = torch.linspace(0, 1, tiny.LATENT[-1]).expand(tiny.LATENT[2], *tiny.LATENT[3:]).clone()
    assert_close(samples_of(soft(model), soft(model), latent), samples_of(soft(model), latent=latent), WHOLE_RUN)


def test_batch_index_and_other_keys_are_kept(model):
    latent = {"samples": torch.zeros(2, *tiny.LATENT[1:]), "batch_index": [3, 4], "mine": "kept"}
    result, _ = run(model, latent=latent)
    assert result["mine"] == "kept"
    alone = samples_of(model, latent={"samples": torch.zeros(tiny.LATENT), "batch_index": [4]})
    assert_close(result["samples"][1:], alone, WHOLE_RUN)


def test_nothing_stays_on_the_models(model, low):
    one, two = tiny.with_identity(model), tiny.with_identity(low)
    before = [(dict(each.model_options), dict(each.object_patches)) for each in (one, two)]
    run(one, two)
    assert [(dict(each.model_options), dict(each.object_patches)) for each in (one, two)] == before


def test_progress_and_previews(model, low, monkeypatch):
    """One bar over both experts, a preview with each step, as core's samplers send them."""
    events = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: events.append(
        (value, total, preview)))
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    run(model, low)
    assert [(value, total) for value, total, _ in events] == [(i + 1, STEPS) for i in range(STEPS)]
    assert all(preview is not None for _, _, preview in events)


REFUSED = {
    "no steps": ({"steps": 0}, "steps must be a whole number of at least 1, but is 0"),
    "no denoise": ({"denoise": 0.0}, "denoise must be a finite number from 0.01 to 1, but is 0"),
    "no shift": ({"shift": 0.0}, "shift must be a finite number of at least 0.01, but is 0"),
    "no frames": ({"latent": {"samples": torch.zeros(1, 16, 0, 8, 12)}}, r"latent_image must .* \[1, 16, 0, 8, 12\]"),
    "the latent of an image model": (
        {"latent": {"samples": torch.ones(1, 4, 8, 12)}},
        r"must have the shape \[B, 16, .*, but has shape \[1, 4, 1, 8, 12\]"),
    "the latent of another video model": (
        {"latent": {"samples": torch.ones(1, 48, 3, 8, 12)}}, r"has shape \[1, 48, 3, 8, 12\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_before_any_work(model, name):
    settings, words = REFUSED[name]
    with pytest.raises(UserError, match=words):
        run(model, **settings)


def test_a_result_that_is_not_finite():
    """As a broken model gives it, instead of a black video."""
    weights = dict(tiny.WAN.weights())
    weights["head.head.bias"] = torch.full_like(weights["head.head.bias"], torch.nan)
    with pytest.raises(UserError, match="the values of the sampled latent must be finite"):
        run(tiny.load(weights))


class OtherModel:
    model = torch.nn.Module()
    model.diffusion_model = torch.nn.Linear(1, 1)


def test_a_model_that_is_not_wan(model):
    with pytest.raises(UserError, match=r"the model must be a Wan .*, but is Linear"):
        run(OtherModel)
    with pytest.raises(UserError, match=r"the model must be a Wan .*, but is Linear"):
        run(model, OtherModel)
    with pytest.raises(UserError, match=r"the model must be a Wan .*, but is Linear"):
        tiny.with_identity(OtherModel)


def test_an_adapter_of_another_size(model):
    wider = tiny.load(TinyWan(dim=128, heads=2, text_dim=tiny.WAN.text_dim).weights())
    with pytest.raises(UserError, match="for a Wan of 4 blocks and width 64, the model has 4 blocks and width 128"):
        tiny.with_identity(wider)


def test_report(model):
    """Adapter, references, tokens, attention, build, bytes and time, in the record and in the words."""
    _, (report,) = run(tiny.with_identity(model))
    (identity,) = report.identities
    assert identity.adapter_file == "tiny_stand_in.safetensors" and identity.adapter_rank == 16
    assert (identity.tokens, identity.references, identity.reference_size) == (32, 1, (8, 16))
    assert identity.blocks == (0, 3) and report.video_grid == (3, 4, 6)
    assert report.attention == "merge, PyTorch flash attention (CPU)"
    assert report.refusals == ["concatenate: merging copies nothing",
                               "Triton kernel: it runs on CUDA, not on cpu",
                               "fused RMSNorm and RoPE: it runs on CUDA, not on cpu"]
    assert report.cache == "resident"
    assert report.cache_bytes == 2 * 4 * 32 * 64 * 4
    assert report.build_ms > 0 and report.ms_per_step > 0
    text = as_text(report)
    assert "32 identity tokens beside 72 video tokens" in text
    assert "built once" in text and f"{STEPS} steps" in text
    assert '"tokens": 32' in as_json([report])
    once = as_text(dataclasses.replace(report, steps=1, model_calls=1, reads=1))
    assert "\n1 step, " in once and "of 1 model call\n" in once and once.endswith("read once")


def test_report_of_a_run_without_identity(model):
    _, (report,) = run(tiny.with_identity(model, strength=0.0))
    assert "identity not applied" in as_text(report)
    assert run(model)[1] == []


def test_given_noise(model):
    """The golden tests begin from noise of the authors; it is the same path."""
    latent = torch.zeros(tiny.LATENT)
    settings = SamplerSettings(seed=7, steps=STEPS, cfg=4.0, scheduler=FLOW_MATCHING)
    noise = comfy.sample.prepare_noise(latent, 7)
    found, _ = denoise(model, None, tiny.prompt(), tiny.prompt(seed=3), latent, noise, None, settings)
    assert torch.equal(found, samples_of(model))
