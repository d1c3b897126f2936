"""The mass of the attention on the identity: against the softmax written out, over whole runs, and as pictures."""
import comfy.sample
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

import tiny
from standin_core.attention import PYTORCH, choose_attention, restricted_attention
from standin_core.errors import UserError
from standin_core.report import ReportSink
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.attention_map import (
    AttentionMap,
    AttentionRecorder,
    heat,
    of_blocks,
    of_person,
    on_frames,
    show_map,
)
from tolerances import WHOLE_RUN, assert_close

HEADS, HEAD_DIM = 2, 64


def softmax_share(q, k, identities):
    """[B, H, N] for each person, by one softmax over all keys."""
    def split(x):
        return x.unflatten(-1, (HEADS, -1)).transpose(-3, -2).double()

    logits = [split(q) @ split(k).mT * HEAD_DIM**-0.5]
    for identity_k, _, bias in identities:
        logits.append(split(q) @ split(identity_k.flatten(0, 1)).mT * HEAD_DIM**-0.5 + bias[:, None, :, None])
    weights = torch.cat(logits, dim=-1).softmax(dim=-1)
    return [part.sum(dim=-1) for part in weights.split([each.shape[-1] for each in logits], dim=-1)[1:]]


@pytest.mark.parametrize("path", ["merge", "kernel"])
def test_mass_against_the_softmax(path, monkeypatch):
    if path == "kernel":
        pytest.importorskip("triton")
        monkeypatch.setattr("standin_core.attention.choice.kernel_refusal", lambda *_: None)
    q, k, v = (tiny.random(2, 45, HEADS * HEAD_DIM, seed=seed) for seed in range(3))
    identities = [(tiny.random(1, 13, 128, seed=5), tiny.random(1, 13, 128, seed=6), torch.zeros(1, 1)),
                  (tiny.random(2, 7, 128, seed=7), tiny.random(2, 7, 128, seed=8), tiny.random(1, 45, seed=9))]
    masses = []
    choice = choose_attention("merge", (), PYTORCH, q.device, q.dtype, HEAD_DIM)
    assert choice.kernel == (path == "kernel")
    restricted_attention(choice)(None, q, k, v, identities, heads=HEADS, note_mass=masses.extend)
    for found, expected in zip(masses, softmax_share(q, k, identities), strict=True):
        assert_close(found, expected)


def recorded(patched, latent=None, steps=tiny.STEPS, positive=None):
    sink = ReportSink(maps_attention=True)
    patched = patched.clone()
    sink.listen(patched)
    latent = torch.zeros(tiny.LATENT) if latent is None else latent
    samples = comfy.sample.sample(patched, comfy.sample.prepare_noise(latent, 7), steps, 4.0, "euler", "simple",
                                  positive or tiny.prompt(), tiny.prompt(seed=3), latent, disable_pbar=True, seed=7)
    return samples, sink


def test_recording_changes_nothing(model):
    samples, sink = recorded(tiny.with_identity(model))
    assert torch.equal(samples, tiny.sample(tiny.with_identity(model))[0])
    (found,) = sink.maps
    assert found.mass.shape == (1, tiny.WAN.blocks, 3, 4, 6) and found.calls == tiny.STEPS
    assert float(found.mass.min()) > 0 and float(found.mass.max()) < 1


def test_off_there_is_no_map(model):
    sink = ReportSink()
    patched = tiny.with_identity(model)
    patched.model_options["transformer_options"] = {}
    sink.listen(patched)
    tiny.sample(patched)
    assert sink.maps == []


def test_two_people_in_regions_and_blocks(model):
    """Nobody is read outside his region or his blocks, and each has a map of his own."""
    left = torch.cat((torch.ones(1, 64, 48), torch.zeros(1, 64, 48)), dim=2)
    patched = tiny.with_identity(model, region=left, first_block=2)
    patched = apply_identity_branch(patched, tiny.adapter(), tiny.random(1, 16, 1, 8, 16, seed=4), region=1 - left)
    (found,) = recorded(patched)[1].maps
    first, second = found.mass
    assert float(first[:2].abs().max()) == 0 == float(first[..., 3:].abs().max())
    assert float(first[2:, ..., :3].min()) > 0 == float(second[..., :3].abs().max())
    assert float(second[..., 3:].min()) > 0


def test_strength_raises_the_mass(model):
    means = [float(recorded(tiny.with_identity(model, strength=strength))[1].maps[0].mass.mean())
             for strength in (0.3, 1.0, 3.0)]
    assert means == sorted(means) and means[2] > 2 * means[0]


def test_windows_fill_the_whole_map(model):
    """Each frame has the mean of the windows that it is in."""
    patched = WanContextWindowsManualNode.execute(
        tiny.with_identity(model), context_length=9, context_overlap=4, context_schedule="standard_static",
        context_stride=1, closed_loop=False, fuse_method="flat", freenoise=False).args[0]
    (found,) = recorded(patched, latent=torch.zeros(1, 16, 6, 8, 12))[1].maps
    assert found.mass.shape[2:] == (6, 4, 6)
    by_frame = found.mass.mean(dim=(0, 1, 3, 4))
    assert float(by_frame.max() / by_frame.min()) < 1.5


def test_concatenating_has_no_map(model):
    with pytest.raises(UserError, match="attention is set to concatenate"):
        recorded(tiny.with_identity(model, attention="concatenate"))


def test_a_foreign_attention_is_left_for_the_map(model):
    patched = tiny.with_identity(model)
    patched.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda func, *args, **kwargs: func(*args, **kwargs))
    (report,) = recorded(patched)[1].reports
    assert "the attention map needs one" in report.refusals[0]


def test_other_tokens_than_the_grid():
    note = AttentionRecorder(1, 1).for_call((1, 2, 2))
    with pytest.raises(UserError, match="4 places and this model 5 video tokens"):
        note(0, [0], [torch.zeros(1, 1, 5)])


def a_map(value, calls):
    return AttentionMap(torch.full((1, 2, 3, 2, 2), value), calls)


def test_experts_weigh_by_their_calls():
    assert float(of_person([a_map(0.1, 1), a_map(0.5, 3)], 0).mean()) == pytest.approx(0.4)


@pytest.mark.parametrize("maps, person, words", [
    ([], 0, "switch attention_map on"), ([a_map(0.1, 1)], 1, "person is 1 and the model reads 1"),
    ([a_map(0.1, 1), AttentionMap(torch.zeros(2, 2, 3, 2, 2), 1)], 0, "the two experts read 1 and 2 people")])
def test_a_map_that_is_not_there(maps, person, words):
    with pytest.raises(UserError, match=words):
        of_person(maps, person)


def test_blocks_that_are_not_there():
    with pytest.raises(UserError, match="the model has blocks 0 to 1, and 2 to -1 selects none of them"):
        of_blocks(torch.zeros(2, 3, 2, 2), 2, -1)


def test_latent_frames_on_frames():
    """The first latent frame is one frame, each other four."""
    mass = torch.arange(4.0)[:, None, None].expand(-1, 2, 2)
    assert on_frames(mass, 13, 4, 4)[:, 0, 0].tolist() == [0, *[1] * 4, *[2] * 4, *[3] * 4]
    for frames in (9, 12, 17):
        with pytest.raises(UserError, match=f"the video has {frames} frames, the attention map 13"):
            on_frames(mass, frames, 4, 4)


def test_heat():
    frames, mask = torch.rand(2, 4, 4, 3), torch.zeros(2, 4, 4)
    mask[0, 0, 0] = 1
    assert torch.equal(heat(frames, mask, 0.0), frames)
    shown = heat(frames, mask, 1.0)
    assert float(shown[0, 0, 0].sum()) > 2 and float(shown[1].max()) < 0.05  # inferno: pale yellow, black


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_shown(dtype):
    """ComfyUI may keep pictures in half precision."""
    mass = torch.zeros(1, 2, 2, 2, 2)
    mass[0, 1, :, 0, 0] = 0.5
    images, mask, text = show_map(torch.zeros(5, 8, 8, 3, dtype=dtype), [AttentionMap(mass, 4)], 0.5)
    assert images.shape == (5, 8, 8, 3) and float(mask.max()) == 1 and float(mask[0, 0, 0]) == 1
    assert text.splitlines()[:2] == [
        "6.2 % of the attention of the video lies on the photo, 50.0 % at most for one place in one block",
        "most in block 1: 12.5 %"]


@pytest.mark.parametrize("value", [-9, 9, float("nan")])
def test_masses_that_are_no_shares(value):
    mass = torch.full((1, 2, 2, 2, 2), 0.1)
    mass[0, 1, 0, 0, 0] = value
    with pytest.raises(UserError, match=r"^the values of attention_map must"):
        show_map(torch.zeros(5, 8, 8, 3), [AttentionMap(mass, 4)], 0.5)


def test_a_frame_that_was_trimmed():
    """VACE's reference picture, which Trim Video Latent takes away again."""
    mass = torch.zeros(1, 1, 3, 2, 2)
    mass[0, 0, 0] = 0.9
    mass[0, 0, 1] = 0.5
    _, mask, _ = show_map(torch.zeros(5, 8, 8, 3), [AttentionMap(mass, 1)], 0.5, trim_latent=1)
    assert mask[:, 0, 0].tolist() == [1, 0, 0, 0, 0]


def test_skipped_steps_do_not_thin_the_map(model):
    """EasyCache skips the model within our wrapper."""
    def cached(threshold):
        patched = EasyCacheNode.execute(tiny.with_identity(model), reuse_threshold=threshold, start_percent=0.0,
                                        end_percent=1.0, verbose=False).args[0]
        return recorded(patched, steps=8)[1].maps[0]

    all_steps, some = cached(0.0), cached(5.0)
    assert some.calls < all_steps.calls == 8
    assert float(some.mass.mean()) == pytest.approx(float(all_steps.mass.mean()), rel=0.2)


def test_a_prompt_with_an_area_has_no_map(model):
    (whole,) = tiny.prompt()
    with pytest.raises(UserError, match="an attention map would not lie where it should"):
        recorded(tiny.with_identity(model), positive=[[whole[0], {"area": (4, 6, 2, 2), "strength": 1.0}], whole])


@pytest.mark.parametrize("keys", [["diffusion_model"], [f"diffusion_model.blocks.{i}" for i in range(4)]],
                         ids=["whole model", "each block"])
def test_torch_compile(model, keys):
    """The same map, and nothing compiled anew in a second run."""
    torch.compiler.reset()
    compilations = []
    patched = tiny.with_identity(model)
    expected = recorded(patched)[1].maps[0].mass
    set_torch_compile_wrapper(patched, backend=lambda graph, inputs: compilations.append(graph) or graph.forward,
                              keys=keys, options={"guard_filter_fn": skip_torch_compile_dict})
    assert_close(recorded(patched)[1].maps[0].mass, expected, WHOLE_RUN)
    graphs = len(compilations)
    assert_close(recorded(patched)[1].maps[0].mass, expected, WHOLE_RUN)
    assert len(compilations) == graphs > 0
