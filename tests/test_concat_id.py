"""Concat-ID's forward pass and its runs on a tiny Wan, against arithmetic written out and against ComfyUI itself."""
import dataclasses
import gc
import itertools
import math
import weakref

import comfy.model_management
import comfy.sample
import comfy.sd
import concat_id
import pytest
import safetensors.torch
import torch
from comfy.patcher_extension import WrappersMP

import tiny
from small_world.tiny_models import concat_id_weights, vae_weights
from standin_core.concat_id.apply import apply_concat_id
from standin_core.concat_id.forward import ReferenceModulation, references_appended
from standin_core.concat_id.run import ConcatIDRun
from standin_core.concat_id.wrappers import KEY
from standin_core.errors import UserError
from standin_core.report import as_json, as_text
from standin_core.wan import WITH_GRADIENTS, Wan, differentiable
from support import pack
from tolerances import RELATIVE_RMS, WHOLE_RUN, assert_close, relative_rms

HEADS = tiny.WAN.heads
HEAD_DIM = tiny.WAN.dim // HEADS


# The equations of the paper once more, in float64 and with complex numbers; tensors are [N, C], one video at a time.

def norm(x, weight=1.0, bias=0.0):
    return (x - x.mean(-1, True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt() * weight + bias


def rms(x, weight):
    return x / (x.square().mean(-1, True) + 1e-6).sqrt() * weight


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x):
    return torch.nn.functional.gelu(x, approximate="tanh")


def sinusoid(t):
    angles = t * 10000.0 ** (-torch.arange(128).double() / 128)
    return torch.cat((angles.cos(), angles.sin()))


def turns(positions):
    """positions: [N, 3] as (t, y, x) -> [N, D/2] complex."""
    sixth = HEAD_DIM // 6
    axes = (HEAD_DIM - 4 * sixth, 2 * sixth, 2 * sixth)
    return torch.cat([torch.polar(torch.ones(1, dtype=torch.float64), positions[:, i:i + 1] * 10000.0 ** (
        -torch.arange(0, size, 2).double() / size)) for i, size in enumerate(axes)], dim=1)


def attend(w, name, x, y, of_x=None, of_y=None):
    q, k = (rms(linear(w, f"{name}.{which}", z), w[f"{name}.norm_{which}.weight"]) for which, z in (("q", x), ("k", y)))
    v = linear(w, f"{name}.v", y)
    heads = []
    for h in range(HEADS):
        part = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
        qh, kh = q[:, part], k[:, part]
        if of_x is not None:
            qh, kh = (torch.view_as_real(torch.view_as_complex(z.reshape(len(z), -1, 2).contiguous()) * turn).flatten(1)
                      for z, turn in ((qh, of_x), (kh, of_y)))
        heads.append((qh @ kh.T / math.sqrt(HEAD_DIM)).softmax(-1) @ v[:, part])
    return linear(w, f"{name}.o", torch.cat(heads, 1))


def naive(video, references, t, context, adaln):
    """The velocity [16, T, h, w] of a video beside references [M, 16, h, w]."""
    w = {key: value.double() for key, value in concat_id_weights(tiny.WAN, adaln).items()}
    video, references, context = video.double(), references.double(), context.double()
    frames, height, width = video.shape[1], video.shape[2] // 2, video.shape[3] // 2

    def patches(latent):
        cut = latent.unflatten(3, (width, 2)).unflatten(2, (height, 2)).permute(1, 2, 4, 0, 3, 5).flatten(3)
        return (cut @ w["patch_embedding.weight"].flatten(1).T + w["patch_embedding.bias"]).flatten(0, 2)

    v, r = patches(video), patches(references.movedim(0, 1))
    e = linear(w, "time_embedding.2", torch.nn.functional.silu(linear(w, "time_embedding.0", sinusoid(t))))
    e0 = linear(w, "time_projection.1", torch.nn.functional.silu(e)).unflatten(0, (6, -1))
    text = linear(w, "text_embedding.2", gelu(linear(w, "text_embedding.0", context)))
    places = torch.tensor([(f, y, x) for f in range(frames) for y in range(height) for x in range(width)]
                          + [(frames + i, y, width + x) for i in range(len(references)) for y in range(height)
                             for x in range(width)], dtype=torch.float64)
    turn = turns(places)
    for i in range(tiny.WAN.blocks):
        b = {key.removeprefix(f"blocks.{i}."): value for key, value in w.items() if key.startswith(f"blocks.{i}.")}
        s1, c1, g1, s2, c2, g2 = b["modulation"][0] + e0
        rs1, rc1, rg1, rs2, rc2, rg2 = s1, c1, g1, s2, c2, g2
        if adaln:
            own = b["modulation_ref"][0] + linear(w, "time_projection_ref.1",
                                                  torch.nn.functional.silu(e)).unflatten(0, (6, -1))
            rs1, rc1, rg1, rs2, rc2, rg2 = (own[slot] for slot in (0, 1, 2, 0, 1, 5))
        both = torch.cat((norm(v) * (1 + c1) + s1, norm(r) * (1 + rc1) + rs1))
        a = attend(b, "self_attn", both, both, turn, turn)
        v, r = v + g1 * a[:len(v)], r + rg1 * a[len(v):]
        v = v + attend(b, "cross_attn", norm(v, b["norm3.weight"], b["norm3.bias"]), text)
        f = linear(b, "ffn.2", gelu(linear(b, "ffn.0", torch.cat((norm(v) * (1 + c2) + s2,
                                                                  norm(r) * (1 + rc2) + rs2)))))
        v, r = v + g2 * f[:len(v)], r + rg2 * f[len(v):]
    shift, scale = w["head.modulation"][0] + e
    out = linear(w, "head.head", norm(v) * (1 + scale) + shift)
    return out.reshape(frames, height, width, 2, 2, 16).permute(5, 0, 1, 3, 2, 4).reshape(16, frames, 2 * height, -1)


SIZES = {"one frame": (1, 1, 6, 10), "odd sides": (1, 3, 10, 6), "two references": (2, 2, 6, 6)}


@pytest.mark.parametrize("adaln", [False, True], ids=["first stage", "AdaLN"])
@pytest.mark.parametrize("name", SIZES)
def test_the_equations_of_the_paper(model, name, adaln):
    """Two videos in a batch, each with a timestep of its own."""
    references, frames, height, width = SIZES[name]
    video, latent = tiny.random(2, 16, frames, height, width), tiny.random(2, 16, references, height, width, seed=1)
    context, timestep = tiny.random(2, 5, tiny.WAN.text_dim, seed=2), torch.tensor([900.0, 317.0])
    wan = Wan(model.model)
    with references_appended(wan, wan.grid(video.shape), references, timestep, concat_id.record(adaln).own):
        found = wan(video, timestep, context, latent)
    for each in range(2):
        expected = naive(video[each], latent[each].movedim(1, 0), timestep[each].double(), context[each], adaln)
        assert_close(found[each], expected.float(), 10 * RELATIVE_RMS[torch.float32])


@pytest.mark.parametrize("height, width", [(9, 12), (8, 13), (1, 1)])
def test_a_video_of_no_whole_tokens(model, height, width):
    """ComfyUI repeats the first row and the first column behind the last, of the video and so of the reference."""
    def whole(latent):
        latent = torch.cat((latent, latent[..., :height % 2, :]), dim=-2)
        return torch.cat((latent, latent[..., :width % 2]), dim=-1)

    video, latent = tiny.random(1, 16, 3, height, width), tiny.random(1, 16, 2, height, width, seed=1)
    context, timestep = tiny.random(1, 5, tiny.WAN.text_dim, seed=2), torch.tensor([900.0])
    wan = Wan(model.model)
    with references_appended(wan, wan.grid(video.shape), 2, timestep, concat_id.record().own):
        found = wan(video, timestep, context, latent)
    expected = naive(whole(video)[0], whole(latent)[0].movedim(1, 0), timestep[0].double(), context[0], adaln=True)
    assert_close(found[0], expected[..., :height, :width].float(), 10 * RELATIVE_RMS[torch.float32])


def gradients(wan, own, checkpointed):
    """Those of a sum of squares, with respect to what the AdaLN variant has beside the native weights."""
    leaves = [each.clone().requires_grad_() for each in (own.weight, own.bias, own.blocks)]
    video, timestep = tiny.random(1, 16, 2, 6, 6), torch.tensor([700.0])
    with differentiable(), references_appended(wan, (2, 3, 3), 1, timestep, type(own)(*leaves)):
        if checkpointed:
            with wan.checkpointed():
                wan(video, timestep, tiny.prompt()[0][0], tiny.random(1, 16, 1, 6, 6)).square().sum().backward()
        else:
            wan(video, timestep, tiny.prompt()[0][0], tiny.random(1, 16, 1, 6, 6)).square().sum().backward()
    return [leaf.grad for leaf in leaves]


def test_gradients():
    """Slots 3 and 4 are never used; in the last block the reference is read and then dropped, gates and all. With
    checkpointing the gradients are the same bit for bit."""
    with torch.inference_mode(False), torch.enable_grad():
        model = tiny.load()
        wan = Wan(model.model, WITH_GRADIENTS)
        weight, bias, blocks = found = gradients(wan, concat_id.record().own, checkpointed=False)
        again = gradients(wan, concat_id.record().own, checkpointed=True)
    used = blocks.abs().amax(dim=-1) > 0
    expected = torch.tensor([[slot in (0, 1, 2, 5) for slot in range(6)]] * tiny.WAN.blocks)
    expected[-1] = torch.tensor([True, True, False, False, False, False])
    assert torch.equal(used, expected)
    for each in (weight.abs().amax(dim=-1), bias.abs()):
        assert torch.equal(each.unflatten(0, (6, -1)).amax(dim=-1) > 0, expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


# Runs

@pytest.fixture(scope="module")
def expected(model):
    return tiny.sample(concat_id.with_reference(model))[0]


@pytest.fixture
def runs(monkeypatch):
    """Weak references to every run of the test, and to what it held on a device."""
    references = []
    open_run, own = ConcatIDRun.__init__, ConcatIDRun.own

    def watched_run(self, *args):
        open_run(self, *args)
        references.append(weakref.ref(self))

    def watched_own(self, *args):
        found = own(self, *args)
        references.append(weakref.ref(found.weight))
        return found

    monkeypatch.setattr(ConcatIDRun, "__init__", watched_run)
    monkeypatch.setattr(ConcatIDRun, "own", watched_own)
    return references


def assert_nothing_left(model, plain, reserved):
    for block in model.model.diffusion_model.blocks:
        assert type(block).__name__ == "WanAttentionBlock"
        assert not [name for name in vars(block) if "reference" in name or "foreign" in name or name == "forward"]
    assert KEY not in model.model_options.get("transformer_options", {})
    assert reserved == comfy.model_management.EXTRA_RESERVED_VRAM
    assert torch.equal(tiny.sample(model)[0], plain)


@pytest.fixture
def copies(monkeypatch):
    """What a run holds on a device is a copy here too."""
    monkeypatch.setattr(ReferenceModulation, "to", lambda self, *where: ReferenceModulation(
        self.weight.clone(), self.bias.clone(), self.blocks.clone()))


def test_a_run_leaves_nothing(model, plain, expected, runs, copies):
    reserved = comfy.model_management.EXTRA_RESERVED_VRAM
    patched = concat_id.with_reference(model)
    found, (report,) = tiny.sample(patched)
    assert torch.equal(found, expected) and relative_rms(found, plain) > 100 * WHOLE_RUN
    assert (report.identity_calls, report.model_calls, report.steps) == (tiny.STEPS, tiny.STEPS, tiny.STEPS)
    gc.collect()
    assert len(runs) == 1 + tiny.STEPS and all(reference() is None for reference in runs)
    assert_nothing_left(model, plain, reserved)
    assert_nothing_left(patched, expected, reserved)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, comfy.model_management.InterruptProcessingException])
def test_an_exception_between_steps_leaves_nothing(model, plain, error):
    def fail(index, *_):
        if index == 1:
            raise error

    reserved = comfy.model_management.EXTRA_RESERVED_VRAM
    with pytest.raises(error):
        tiny.sample(concat_id.with_reference(model), callback=fail)
    assert_nothing_left(model, plain, reserved)


def test_an_exception_inside_the_model_leaves_nothing(model, plain, runs, copies):
    """Raised while the class of the blocks is exchanged; ComfyUI frees memory with such an error in hand."""
    patched, reserved = concat_id.with_reference(model), comfy.model_management.EXTRA_RESERVED_VRAM
    patched.set_model_patch_replace(lambda args, extra: 1 / 0, "dit", "double_block", 2)
    with pytest.raises(ZeroDivisionError) as held:
        tiny.sample(patched)
    assert [type(reference()) for reference in runs] == [ConcatIDRun, type(None)] and held.value is not None
    assert_nothing_left(model, plain, reserved)


def test_the_users_interrupt_inside_the_model_leaves_nothing(model, plain):
    patched, reserved = concat_id.with_reference(model), comfy.model_management.EXTRA_RESERVED_VRAM

    def interrupt(args, extra):
        comfy.model_management.interrupt_current_processing(True)
        comfy.model_management.throw_exception_if_processing_interrupted()

    patched.set_model_patch_replace(interrupt, "dit", "double_block", 1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(patched)
    assert_nothing_left(model, plain, reserved)


def test_without_apply_the_model_is_core_s(model, plain):
    """Bit for bit, from the same file through core's loader."""
    loaded = comfy.sd.load_diffusion_model_state_dict(
        concat_id_weights(tiny.WAN, False), model_options={"dtype": torch.float32},
        metadata=tiny.WAN.metadata())
    assert torch.equal(tiny.sample(loaded)[0], plain)


def test_a_reference_of_zeros_is_not_no_reference(model, plain, expected):
    """Nor a black picture: the authors' "without" is zeros in model space."""
    zeros = tiny.sample(concat_id.with_reference(model, reference=concat_id.zeros(model)))[0]
    assert relative_rms(zeros, plain) > 100 * WHOLE_RUN and relative_rms(zeros, expected) > 100 * WHOLE_RUN


@pytest.mark.parametrize("start, end, calls", [(0.0, 0.5, 2), (0.5, 1.0, 2), (0.9, 0.95, 0)])
def test_start_and_end_percent(model, start, end, calls):
    """Outside of them the reference is a latent of zeros, step by step as by hand."""
    samples, (report,) = tiny.sample(concat_id.with_reference(model, start_percent=start, end_percent=end), steps=4)
    assert (report.identity_calls, report.model_calls) == (calls, 4)
    patched = concat_id.with_reference(model)
    model_space = model.model.process_latent_in(tiny.random(1, 16, 1, *tiny.LATENT[-2:], seed=1))
    call = 0

    def by_hand(executor, *args, **kwargs):
        nonlocal call
        kwargs["time_dim_concat"] = kwargs["time_dim_concat"] * (start <= call / 4 < end)
        if start <= call / 4 < end:
            assert torch.equal(kwargs["time_dim_concat"][:1], model_space)
        call += 1
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "by hand", by_hand)
    assert_close(samples, tiny.sample(patched, steps=4)[0], WHOLE_RUN)
    if calls == 0:
        assert "identity not applied (0.9 to 0.95)" in as_text(report)


@pytest.fixture
def loaded(diffusion_models):
    """(model, concat_id) of the tiny AdaLN file, through Load Concat-ID."""
    safetensors.torch.save_file(concat_id_weights(tiny.WAN), diffusion_models / "mine.safetensors", tiny.WAN.metadata())
    return pack.node_classes()["LoadConcatID"].execute(file="mine.safetensors", weight_dtype="default").args


def masked_loop(video, mask, noise, reference, steps, shift, cfg, prompts):
    """Euler in float64 around ``naive``, all in model space. The model is shown the video at the step's noise level
    where the mask keeps it, and what it makes of that is replaced by the video there."""
    video, mask, noise, x = video.double(), mask.double(), noise.double(), noise.double()
    sigmas = [shift * s / (1 + (shift - 1) * s) for s in (1 - i / steps for i in range(steps + 1))]
    for sigma, following in itertools.pairwise(sigmas):
        seen = mask * x + (1 - mask) * (sigma * noise + (1 - sigma) * video)
        with_prompt, without = (naive(seen[0], reference[0].movedim(1, 0), torch.tensor(1000 * sigma).double(),
                                      prompt[0], adaln=True) for prompt in prompts)
        clean = mask * (seen - sigma * (without + cfg * (with_prompt - without))) + (1 - mask) * video
        x = x + (x - clean) / sigma * (following - sigma)
    return x


def test_a_noise_mask(loaded):
    """Beside a soft mask over every frame, the sampler's run through the nodes is the loop's: the video is kept where
    the mask says so, and the reference is never masked."""
    nodes, (model, concat_id) = pack.node_classes(), loaded
    into, out = model.model.process_latent_in, model.model.process_latent_out
    video, reference = out(tiny.random(*tiny.LATENT, seed=4)), out(tiny.random(1, 16, 1, *tiny.LATENT[-2:], seed=5))
    mask = tiny.random(1, 1, *tiny.LATENT[2:], seed=6).add(0.5).clamp(0, 1)
    assert (mask == 0).any() and (mask == 1).any() and ((mask > 0) & (mask < 1)).any()
    latent = {"samples": video, "noise_mask": mask}
    applied = nodes["ApplyConcatID"].execute(
        model=model, concat_id=concat_id, latent=latent, reference_latent={"samples": reference}, start_percent=0.0,
        end_percent=1.0, guidance="both passes", guidance_scale=1.0).args[0]

    def sampled(latent):
        return nodes["StandInSampler"].execute(
            model=applied, positive=tiny.prompt(), negative=tiny.prompt(seed=3), latent_image=latent, seed=7, steps=4,
            cfg=4.0, sampler_name="euler", scheduler="flow_matching", shift=5.0, denoise=1.0, boundary=0.875,
            attention_map=False).args[0]["samples"]

    expected = masked_loop(into(video), mask, comfy.sample.prepare_noise(video, 7), into(reference), 4, 5.0, 4.0,
                           [tiny.prompt()[0][0], tiny.prompt(seed=3)[0][0]])
    found = sampled(latent)
    assert_close(into(found), expected.float(), WHOLE_RUN)
    kept = (mask == 0).expand_as(video)
    assert_close(found[kept], video[kept], RELATIVE_RMS[torch.float32])
    assert relative_rms(sampled({"samples": video}), found) > 100 * WHOLE_RUN


def denoised(model, **conds):
    """What the first step's positive and negative pass give."""
    seen = []

    def look(args):
        seen.append([each.clone() for each in args["conds_out"]])
        return args["conds_out"]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(look)
    tiny.sample(model, steps=1, **conds)
    return seen[0]


@pytest.mark.parametrize("length", [5, 9], ids=["in one batch", "in two calls"])
def test_guidance(model, length):
    """The positive pass reads the reference, the negative one zeros; with a scale of its own, the difference that the
    reference makes in the positive pass is scaled."""
    conds = {"negative": tiny.prompt(length, seed=3)}
    both = denoised(concat_id.with_reference(model), **conds)
    none = denoised(concat_id.with_reference(model, reference=concat_id.zeros(model)), **conds)
    found = denoised(concat_id.with_reference(model, guidance="positive pass"), **conds)
    assert_close(found[0], both[0], WHOLE_RUN)
    assert_close(found[1], none[1], WHOLE_RUN)
    assert relative_rms(both[1], none[1]) > 100 * WHOLE_RUN and relative_rms(both[0], none[0]) > 100 * WHOLE_RUN
    own = concat_id.with_reference(model, guidance="own scale", guidance_scale=2.0)
    step, (report,) = tiny.sample(own, steps=1, cfg=4.0, **conds)
    expected = none[1] + 4.0 * (none[0] - none[1]) + 2.0 * (both[0] - none[0])
    assert_close(model.model.process_latent_in(step), expected, WHOLE_RUN)
    assert report.identity_calls < report.model_calls


@pytest.mark.parametrize("guidance", ["both passes", "positive pass", "own scale"])
def test_videos_in_one_batch(model, guidance):
    """Each is what it is alone."""
    patched = concat_id.with_reference(model, guidance=guidance, guidance_scale=2.0)
    noise = tiny.random(2, *tiny.LATENT[1:], seed=9)
    found = tiny.sample(patched, latent=torch.zeros_like(noise), noise=noise)[0]
    alone = [tiny.sample(patched, noise=each)[0] for each in noise.split(1)]
    assert_close(found, torch.cat(alone), WHOLE_RUN)
    assert relative_rms(*alone) > 100 * WHOLE_RUN


def test_the_report(model):
    _, (report,) = tiny.sample(concat_id.with_reference(model, end_percent=0.5, guidance="positive pass"))
    assert as_text(report).splitlines()[2:] == [
        "Concat-ID of tiny_concat_id.safetensors (AdaLN)",
        "reference 8x12 latent, 24 tokens behind 72 video tokens (+33.3 %), at frame 3",
        "read from 0 to 0.5 in positive pass",
        f"modulation of the reference: {4 * (6 * 64 * 64 + 6 * 64 + 4 * 6 * 64) / 2**20:.1f} MiB"]
    assert '"variant": "AdaLN"' in as_json([report])
    _, (report,) = tiny.sample(concat_id.with_reference(model, adaln=False))
    assert as_text(report).splitlines()[-1] == "modulation of the reference: the video's"


def test_the_report_of_two_people(model):
    two = apply_concat_id(model, of_two_people(), {"samples": torch.zeros(tiny.LATENT)},
                          latent={"samples": tiny.random(2, 16, 1, *tiny.LATENT[-2:])})
    _, (report,) = tiny.sample(two, steps=1)
    assert as_text(report).splitlines()[3] == (
        "2 references 8x12 latent, 48 tokens behind 72 video tokens (+66.7 %), at frames 3 to 4")


def test_without_a_sink_the_report_is_logged(model, caplog):
    with caplog.at_level("INFO", logger="standin_core.runs"):
        comfy.sample.sample(concat_id.with_reference(model), torch.zeros(tiny.LATENT), 1, 1.0, "euler", "simple",
                            tiny.prompt(), tiny.prompt(), torch.zeros(tiny.LATENT), disable_pbar=True)
    assert "24 tokens behind 72 video tokens" in caplog.text


# What is refused

def refusal(call):
    with pytest.raises(UserError) as refused:
        call()
    return str(refused.value)


def test_applied_twice(model):
    assert refusal(lambda: concat_id.with_reference(concat_id.with_reference(model))).endswith(
        "has a reference by Concat-ID already: take out one of the two Apply Concat-ID.")


def test_two_people_by_two_nodes(model):
    """The likely mistake: one Apply Concat-ID for each."""
    two = {"samples": torch.zeros(tiny.LATENT)}, None, None, {"samples": torch.zeros(2, 16, 1, *tiny.LATENT[-2:])}
    assert refusal(lambda: apply_concat_id(apply_concat_id(model, of_two_people(), *two), of_two_people(), *two)
                   ).endswith("take out one of the two Apply Concat-ID, and connect a batch of 2 faces to the other.")


SETTINGS = {
    "never": ({"start_percent": 0.6, "end_percent": 0.3}, "the identity would never be read"),
    "no such guidance": ({"guidance": "none"}, "guidance must be one of both passes, positive pass"),
    "two people": ({"reference": torch.zeros(2, 16, 1, 8, 12)}, "2 reference images came and "
                   "tiny_concat_id.safetensors was trained with 1: pick one"),
    "another size": ({"reference": torch.zeros(1, 16, 1, 8, 8)}, r"[1, 16, 1, 8, 12], but has shape [1, 16, 1, 8, 8]"),
    "no video": ({"shape": (1, 16, 8, 12)}, "must have the shape of a video, [B, 16, T, h, w]"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_work_are_refused_when_applied(model, name):
    settings, words = SETTINGS[name]
    assert words in refusal(lambda: concat_id.with_reference(model, **settings))


def of_two_people():
    return dataclasses.replace(concat_id.record(), references=2)


def test_two_people_from_left_to_right(model):
    """The pictures of a batch are appended in its order; exchanged, they give another video."""
    vae, video = comfy.sd.VAE(sd=vae_weights()), {"samples": torch.zeros(tiny.LATENT)}
    pictures = torch.stack([(tiny.random(64, 96, 3, seed=5) + light).sigmoid() for light in (-2, 2)])

    def sampled(**reference):
        return tiny.sample(apply_concat_id(model, of_two_people(), video, vae, **reference))[0]

    found, exchanged = sampled(image=pictures), sampled(image=pictures.flip(0))
    left, right = (vae.encode((255 * picture[None]).to(torch.uint8) / 255) for picture in pictures)
    assert torch.equal(found, sampled(latent={"samples": torch.cat((left, right))}))
    assert relative_rms(exchanged, found) > 100 * WHOLE_RUN


@pytest.mark.parametrize("came", [1, 3])
def test_another_number_of_faces_than_people(model, came):
    """Refused before a VAE is asked for."""
    for given in ({"image": torch.zeros(came, 8, 8, 3)}, {"latent": {"samples": torch.zeros(came, 16, 1, 8, 12)}}):
        words = refusal(lambda given=given: apply_concat_id(
            model, of_two_people(), {"samples": torch.zeros(tiny.LATENT)}, **given))
        assert words == (f"{came} reference image(s) came and tiny_concat_id.safetensors was trained with 2: connect a "
                         "batch of 2 faces, from left to right.")


def test_another_video_size(model):
    words = refusal(lambda: tiny.sample(concat_id.with_reference(model), latent=torch.zeros(1, 16, 3, 8, 8)))
    assert words.startswith("the reference is for a video of 96x64 and the model is given one of 64x64")


def test_a_prompt_with_an_area(model):
    (whole,) = tiny.prompt()
    area = [whole[0], {"area": (4, 6, 2, 2), "strength": 1.0}]
    words = refusal(lambda: tiny.sample(concat_id.with_reference(model), positive=[area, whole]))
    assert "the model is given one of 48x32" in words and "give no prompt an area" in words


def test_a_condition_that_appends_frames(model):
    """As WanPhantomSubjectToVideo."""
    condition = [[tiny.prompt()[0][0], {"time_dim_concat": torch.zeros(1, 16, 1, 8, 12)}]]
    words = refusal(lambda: tiny.sample(concat_id.with_reference(model), positive=condition))
    assert "another node appends frames of its own" in words


def test_a_block_that_another_node_rewrote(model):
    block = model.model.diffusion_model.blocks[1]
    block.__dict__["forward"] = block.forward
    try:
        assert "another node replaced the transformer blocks" in refusal(
            lambda: tiny.sample(concat_id.with_reference(model)))
    finally:
        del block.__dict__["forward"]
