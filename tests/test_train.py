"""The training objective: gradients where they belong, and the same numbers as the nodes give."""
import contextlib
import dataclasses
import math

import comfy.model_management
import pytest
import safetensors.torch
import torch
from comfy.ldm.wan.model import sinusoidal_embedding_1d

import tiny
from pickles import Opens
from small_world.tiny_models import adapter_weights
from standin_core.errors import UserError
from standin_core.stand_in.adapter import load_adapter, parse_adapter
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.objective import reading_photo
from standin_core.stand_in.parameters import as_adapter, new_adapter, parameters
from standin_core.stand_in.positions import conditional_positions
from standin_core.stand_in.training import AdapterSettings, StandInMethod
from standin_core.train import TrainSettings
from standin_core.train.checkpoints import TrainingRun, check_replaceable, resume, save_checkpoint
from standin_core.train.data.shards import Example
from standin_core.train.flow_matching import flow_matching_loss
from standin_core.train.loop import MOST_BAD_STEPS, Trainer
from standin_core.train.method import Batch
from standin_core.train.session import loaded_again
from standin_core.wan import WITH_GRADIENTS, Wan, differentiable
from tolerances import WHOLE_RUN, assert_close

ADAPTER = AdapterSettings("mine", rank=16)


@pytest.fixture(autouse=True)
def as_comfyui_executes():
    """Not under inference mode, under which nothing has a gradient."""


@pytest.fixture(scope="module")
def wan():
    with torch.inference_mode(False):
        model = tiny.load()
    model.model.diffusion_model.requires_grad_(False)
    return Wan(model.model)


def batch(seed=0):
    return Batch(video=tiny.random(2, 16, 3, 8, 12, seed=seed), noise=tiny.random(2, 16, 3, 8, 12, seed=seed + 1),
                 reference=tiny.random(2, 16, 1, 8, 16, seed=seed + 2),
                 context=tiny.random(2, 5, tiny.WAN.text_dim, seed=seed + 3), sigma=torch.tensor([0.3, 0.8]))


def learner(wan, weights=None):
    """With the weights of an adapter as after some steps, of which nothing is zero, or with those given."""
    start_from = parse_adapter(adapter_weights() if weights is None else weights, "trained")
    return StandInMethod(ADAPTER, start_from).begin(wan, 0, torch.device("cpu"))


def zeros():
    return {key: torch.zeros_like(tensor) for key, tensor in adapter_weights().items()}


def test_every_tensor_of_the_adapter_takes_a_gradient_and_no_other(wan):
    trained = learner(wan)
    flow_matching_loss(trained, batch(), backward=torch.Tensor.backward)
    tensors = trained.weights
    assert len(tensors) == 6 * tiny.WAN.blocks
    # only K and V of the last block are read
    unread = {key for key in tensors if key.startswith(f"blocks.{tiny.WAN.blocks - 1}.self_attn.q")}
    assert {key for key, tensor in tensors.items() if tensor.grad is None} == unread
    assert all(float(tensor.grad.norm()) > 0 for key, tensor in tensors.items() if key not in unread)
    assert all(parameter.grad is None for parameter in wan.model.parameters())
    assert not comfy.model_management.in_training


def test_gradient_against_finite_differences(wan):
    """Along a random direction in all tensors at once; fp32 leaves three digits of a difference."""
    trained = learner(wan)
    tensors = list(trained.weights.values())
    flow_matching_loss(trained, batch(), backward=torch.Tensor.backward)
    directions = [tiny.random(*tensor.shape, seed=100 + i) for i, tensor in enumerate(tensors)]
    slope = sum(float((tensor.grad * direction).sum()) for tensor, direction in zip(tensors, directions)
                if tensor.grad is not None)
    step, losses = 2e-3, []
    with torch.no_grad():
        for sign in (1, -1):
            for tensor, direction in zip(tensors, directions):
                tensor.add_(sign * step * direction)
            losses.append(flow_matching_loss(trained, batch()))
            for tensor, direction in zip(tensors, directions):
                tensor.sub_(sign * step * direction)
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_the_velocity_is_that_of_the_nodes():
    """One step of ComfyUI's sampler with Apply Identity Branch, from the same weights."""
    model = tiny.load()
    adapter, item = parse_adapter(adapter_weights(), "trained"), batch()
    noisy = item.video[:1]
    reference = model.model.process_latent_out(item.reference[:1])
    patched = apply_identity_branch(model, adapter, reference)
    with torch.inference_mode():
        found = tiny.velocity(patched, noisy, item.context[:1])
    with torch.no_grad():
        own = Wan(model.model)
        with reading_photo(own, adapter, noisy.shape, item.reference[:1]):
            expected = own(noisy, torch.full((1,), 1000.0), item.context[:1])
    assert_close(found, expected, WHOLE_RUN)


def test_gradients_of_what_is_computed_again(wan):
    """The same loss and the same gradients bit for bit, and nothing left on the model."""
    found = []
    for again in (False, True):
        trained = learner(wan)
        loss = flow_matching_loss(trained, batch(), again, torch.Tensor.backward)
        found.append((loss, {key: tensor.grad for key, tensor in trained.weights.items()}))
    (plain_loss, plain), (loss, gradients) = found
    assert loss == plain_loss
    for key, gradient in gradients.items():
        assert gradient is plain[key] is None or torch.equal(gradient, plain[key]), key
    assert not any("forward" in block.__dict__ for block in wan.model.blocks)


def test_every_video_reads_its_own_photo(wan):
    """Two at a time: the mean of their losses and gradients; with the photos exchanged it is another."""
    trained, both = learner(wan), batch()
    loss = flow_matching_loss(trained, both, backward=torch.Tensor.backward)
    gradients = {key: tensor.grad.clone() for key, tensor in trained.weights.items() if tensor.grad is not None}
    alone = learner(wan)
    losses = [flow_matching_loss(alone, Batch(*(getattr(both, field.name)[i:i + 1]
                                                for field in dataclasses.fields(Batch))),
                                 backward=lambda loss: (loss / 2).backward())
              for i in range(2)]
    assert loss == pytest.approx(sum(losses) / 2, rel=1e-6)
    for key, gradient in gradients.items():
        assert_close(gradient, alone.weights[key].grad)
    exchanged = dataclasses.replace(both, reference=both.reference.flip(0))
    assert flow_matching_loss(trained, exchanged) != pytest.approx(loss, rel=1e-4)


def test_a_new_adapter_changes_nothing_and_learns(wan):
    """With up at zero the identity is that of the base weights; some steps on one batch lower the loss."""
    new = StandInMethod(ADAPTER).begin(wan, 0, torch.device("cpu"))
    with torch.no_grad():
        first = flow_matching_loss(new, batch())
        assert first == flow_matching_loss(learner(wan, zeros()), batch())
    optimizer = torch.optim.AdamW(new.weights.values(), lr=3e-3, weight_decay=0.0)
    for _ in range(15):
        optimizer.zero_grad()
        loss = flow_matching_loss(new, batch(), backward=torch.Tensor.backward)
        optimizer.step()
    assert loss < first - 1e-3


def test_the_loss_of_an_adapter_at_zero_is_the_base_models(wan):
    """Computed with ComfyUI's own blocks alone.

    The photo goes through them at time zero and at its place, and the video's self-attention is given the keys and
    values that the photo had there.
    """
    model, item, kept = wan.model, batch(), []

    def keep(attend, q, k, v, *args, **kwargs):
        if q.shape[1] == k.shape[1]:  # not the text's
            kept.append((k, v))
        return attend(q, k, v, *args, **kwargs)

    def append(attend, q, k, v, *args, **kwargs):
        if q.shape[1] == k.shape[1]:
            k, v = (torch.cat(both, dim=1) for both in zip((k, v), kept.pop(0)))
        return attend(q, k, v, *args, **kwargs)

    with torch.no_grad():
        tokens = model.patch_embedding(item.reference).flatten(2).transpose(1, 2)
        time = model.time_embedding(sinusoidal_embedding_1d(model.freq_dim, torch.zeros(1)))
        positions = conditional_positions(wan.grid(item.video.shape)[1:], wan.grid(item.reference.shape)[1:], -1)
        with contextlib.ExitStack() as without_text:
            for block in model.blocks:
                without_text.enter_context(block.cross_attn.register_forward_hook(
                    lambda module, given, out: torch.zeros_like(out)))
                tokens = block(tokens, e=model.time_projection(time).unflatten(1, (6, model.dim)).unsqueeze(1),
                               freqs=wan.rotation(positions), context=model.text_embedding(item.context),
                               transformer_options={"optimized_attention_override": keep})
        sigma = item.sigma.reshape(-1, 1, 1, 1, 1)
        predicted = model((1 - sigma) * item.video + sigma * item.noise, 1000 * item.sigma, item.context,
                          transformer_options={"optimized_attention_override": append})
        expected = torch.nn.functional.mse_loss(predicted, item.noise - item.video)
        assert not kept
        assert flow_matching_loss(learner(wan, zeros()), item) == pytest.approx(float(expected), rel=1e-5)


def test_a_new_adapter_begins_as_the_authors():
    """down from N(0, 1/rank), up zero, another for another seed, and no more parameters than the low-rank ones."""
    module = new_adapter(2, 512, 32, seed=5)
    weights = parameters(as_adapter(module))
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == 2 * 3 * 2 * 512 * 32
    for key, tensor in weights.items():
        assert tensor.requires_grad and tensor.dtype == torch.float32
        if "up" in key:
            assert not tensor.any()
        else:  # 16,384 numbers: their deviation is off by 0.6 % in the mean
            assert float(tensor.detach().std()) == pytest.approx(1 / 32, rel=0.03)
    again, other = (parameters(as_adapter(new_adapter(2, 512, 32, seed=seed))) for seed in (5, 6))
    key = "blocks.1.self_attn.k_loras.down.weight"
    assert torch.equal(weights[key], again[key]) and not torch.equal(weights[key], other[key])


def test_what_is_saved_is_what_is_loaded(tmp_path, wan):
    trained, path = learner(wan), tmp_path / "mine.safetensors"
    trained.save(trained.weights, path, {"base_model": "tiny", "steps": "15"})
    loaded = parameters(load_adapter(path))
    assert loaded.keys() == trained.weights.keys()
    for key, tensor in loaded.items():
        assert torch.equal(tensor, trained.weights[key])
    with torch.no_grad():
        assert flow_matching_loss(learner(wan, loaded), batch()) == flow_matching_loss(trained, batch())
    assert [each.name for each in tmp_path.iterdir()] == ["mine.safetensors"]


EXAMPLES = [Example(video=tiny.random(16, 3, 8, 12, seed=10 * i), photos=tiny.random(2, 16, 1, 8, 16, seed=10 * i + 1),
                    context=tiny.random(5, tiny.WAN.text_dim, seed=10 * i + 2)) for i in range(3)]
SETTINGS = TrainSettings(steps=8, batch_size=2, learning_rate=1e-3, warmup=2, ema=0.5, seed=3)


def trainer(wan, settings=SETTINGS, examples=EXAMPLES):
    return Trainer(StandInMethod(ADAPTER).begin(wan, 0, torch.device("cpu")), examples, settings)


def test_a_run_goes_on_as_if_it_had_not_stopped(wan, tmp_path):
    """Bit for bit: losses, weights and their average, with learning rates that change from step to step."""
    settings = dataclasses.replace(SETTINGS, cosine=True, warmup=5, loraplus_ratio=3.0)
    whole = trainer(wan, settings)
    expected = [whole.train_step() for _ in range(6)]
    first = trainer(wan, settings)
    found = [first.train_step() for _ in range(3)]
    save_checkpoint(first, tmp_path / "checkpoint.pt")
    second = trainer(wan, settings)
    resume(second, tmp_path / "checkpoint.pt")
    found += [second.train_step() for _ in range(3)]
    assert found == expected and second.step == 6
    assert all(torch.equal(second.weights[key], tensor) for key, tensor in whole.weights.items())
    assert all(torch.equal(second.average[key], tensor) for key, tensor in whole.average.items())


DAMAGES = {"cut": lambda whole: whole[:len(whole) // 2], "empty": lambda whole: b"",
           "zeros": lambda whole: bytes(len(whole)), "no checkpoint": lambda whole: b"\x80\x02}q\x00."}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(wan, tmp_path, caplog, damage):
    """And says so; the steps that are taken again are what they were."""
    file, first = tmp_path / "checkpoint.pt", trainer(wan)
    found = []
    for _ in range(2):
        found.append(first.train_step())
        save_checkpoint(first, file)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    second = trainer(wan)
    resume(second, file)
    assert second.step == 1 and second.train_step() == found[1]
    assert "checkpoint.pt is damaged" in caplog.text and "after step 1" in caplog.text
    (tmp_path / "checkpoint_before.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoint.pt is damaged .* and checkpoint_before.pt is damaged"):
        resume(trainer(wan), file)


def test_a_checkpoint_beyond_the_memory_is_not_damaged(wan, tmp_path, monkeypatch):
    """The one before it would lose steps."""
    first = trainer(wan)
    for _ in range(2):
        first.train_step()
        save_checkpoint(first, tmp_path / "checkpoint.pt")

    def too_large(*_):
        raise MemoryError

    monkeypatch.setattr("standin_core.train.checkpoints.unpickled", too_large)
    with pytest.raises(UserError, match=r"checkpoint.pt in .* does not fit into memory"):
        resume(trainer(wan), tmp_path / "checkpoint.pt")


def test_a_checkpoint_with_code_is_not_run(wan, tmp_path):
    torch.save({"step": Opens(tmp_path / "opened"), "settings": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint.pt is damaged \(UnpicklingError\)"):
        resume(trainer(wan), tmp_path / "checkpoint.pt")
    assert not (tmp_path / "opened").exists()


def test_a_kill_between_two_checkpoints(wan, tmp_path):
    """The last one was made the one before, and the new one has not its name yet."""
    first = trainer(wan)
    first.train_step()
    save_checkpoint(first, tmp_path / "checkpoint.pt")
    (tmp_path / "checkpoint.pt").rename(tmp_path / "checkpoint_before.pt")
    second = trainer(wan)
    resume(second, tmp_path / "checkpoint.pt")
    assert second.step == 1


@pytest.mark.parametrize("what", ["damaged", "folder"])
def test_what_is_no_adapter_is_not_replaced(tmp_path, what):
    file = tmp_path / "mine.safetensors"
    file.mkdir() if what == "folder" else file.write_bytes(b"broken")
    with pytest.raises(UserError, match="is there already and comes from another training"):
        check_replaceable(file, {"rank": "4"})


def test_a_run_goes_on_with_another_learning_rate(wan, tmp_path):
    """The one that is set now, and not the checkpoint's."""
    first = trainer(wan)
    first.train_step()
    save_checkpoint(first, tmp_path / "checkpoint.pt")
    for settings in (SETTINGS, dataclasses.replace(SETTINGS, learning_rate=5e-4, steps=9)):
        second = trainer(wan, settings)
        resume(second, tmp_path / "checkpoint.pt")
        assert second.optimizer.param_groups[0]["lr"] == settings.learning_rate * settings.rate_share(1)


def test_a_checkpoint_of_other_settings_is_refused(wan, tmp_path):
    save_checkpoint(trainer(wan), tmp_path / "checkpoint.pt")
    other = trainer(wan, dataclasses.replace(SETTINGS, warmup=5, seed=4))
    with pytest.raises(UserError, match=r"a training with other settings \(warmup, seed\)"):
        resume(other, tmp_path / "checkpoint.pt")


def test_a_checkpoint_of_an_earlier_version(wan, tmp_path):
    """It says nothing of settings that came later, and was trained with what they are by default."""
    file = tmp_path / "checkpoint.pt"
    save_checkpoint(trainer(wan), file)
    saved = torch.load(file, weights_only=True)
    for name in ("reference_dropout", "linear"):
        del saved["settings"][name]
    torch.save(saved, file)
    resume(trainer(wan), file)
    with pytest.raises(UserError, match=r"a training with other settings \(reference_dropout\)"):
        resume(trainer(wan, dataclasses.replace(SETTINGS, reference_dropout=0.1)), file)


def test_the_parameters_as_they_are_saved(wan):
    """The moving average, within the context alone, and however it ends."""
    run = trainer(wan)
    run.train_step()
    key = "blocks.0.self_attn.v_loras.up.weight"
    weight, average = run.weights[key].detach().clone(), run.average[key].clone()
    with pytest.raises(KeyboardInterrupt), run.as_saved():
        assert torch.equal(run.weights[key], average) and not torch.equal(average, weight)
        raise KeyboardInterrupt
    assert torch.equal(run.weights[key], weight) and torch.equal(run.average[key], average)


def test_steps_draw_from_the_seed_and_their_number(wan):
    """Every example and photo comes up, and every level of noise; another seed draws others."""
    one = trainer(wan)
    drawn = [batch for step in range(200) for batch in one.draw(step)]
    videos = {float(batch.video[0, 0, 0, 0, 0]) for batch in drawn}
    photos = {float(batch.reference[0, 0, 0, 0, 0]) for batch in drawn}
    sigmas = torch.cat([batch.sigma for batch in drawn])
    assert (len(videos), len(photos)) == (3, 6)
    assert float(sigmas.min()) < 0.02 and float(sigmas.max()) > 0.98 and abs(float(sigmas.mean()) - 0.5) < 0.05
    assert torch.equal(one.draw(5)[0].noise, trainer(wan).draw(5)[0].noise)
    other = trainer(wan, dataclasses.replace(SETTINGS, seed=4))
    assert not torch.equal(one.draw(5)[0].noise, other.draw(5)[0].noise)


def test_what_is_computed_together_is_the_same(wan):
    """Three of four, then the last: the same examples, and up to the order of sums the same weights."""
    runs = [trainer(wan, dataclasses.replace(SETTINGS, batch_size=4, together=together)) for together in (1, 3)]
    assert [[len(batch.video) for batch in run.draw(0)] for run in runs] == [[1, 1, 1, 1], [3, 1]]
    losses = [[run.train_step() for _ in range(2)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_references_that_are_dropped(wan):
    """A share of them is zeros; whatever else a step draws is as it was."""
    plain, dropping = trainer(wan), trainer(wan, dataclasses.replace(SETTINGS, reference_dropout=0.3))
    dropped = []
    for step in range(150):
        for first, second in zip(plain.draw(step), dropping.draw(step), strict=True):
            dropped.append(not second.reference.any())
            for field in dataclasses.fields(Batch):
                if field.name != "reference" or not dropped[-1]:
                    assert torch.equal(getattr(first, field.name), getattr(second, field.name))
    assert sum(dropped) / len(dropped) == pytest.approx(0.3, abs=0.08)  # three deviations of 300 draws


def test_shifted_noise_levels(wan):
    """As the sampler's: s -> 5 s / (1 + 4 s)."""
    plain, shifted = trainer(wan), trainer(wan, dataclasses.replace(SETTINGS, shift=5.0))
    for step in range(5):
        for first, second in zip(plain.draw(step), shifted.draw(step)):
            assert_close(second.sigma, 5 * first.sigma / (1 + 4 * first.sigma))


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_an_expert_has_its_own_noise_levels(shift):
    """The part of the whole range's levels that lies within its own."""
    evenly = torch.linspace(0, 1, 10_001)
    whole = TrainSettings(shift=shift).sigma(evenly)
    for first, last in ((0.875, 1.0), (0.0, 0.875)):
        own = TrainSettings(shift=shift, noise_from=first, noise_to=last).sigma(evenly)
        inside = whole[(whole >= first) & (whole <= last)]
        assert float(own[0]) == pytest.approx(first) and float(own[-1]) == pytest.approx(last)
        assert float(own.mean()) == pytest.approx(float(inside.mean()), abs=1e-3)


def test_the_up_weights_learn_faster_where_that_is_wanted(wan):
    run = trainer(wan, dataclasses.replace(SETTINGS, loraplus_ratio=8.0, weight_decay=0.1))
    run.train_step()
    rates = {id(tensor): group["lr"] for group in run.optimizer.param_groups for tensor in group["params"]}
    assert len(rates) == len(run.weights)
    for key, tensor in run.weights.items():
        share = SETTINGS.rate_share(1) * (8 if "up" in key else 1)
        assert rates[id(tensor)] == pytest.approx(SETTINGS.learning_rate * share)
    assert all(group["weight_decay"] == 0.1 for group in run.optimizer.param_groups if group["params"])


def test_learning_rate():
    settings = dataclasses.replace(SETTINGS, steps=101, warmup=10)
    assert [settings.rate_share(step) for step in (0, 4, 9, 100)] == pytest.approx([0.1, 0.5, 1, 1])
    falling = dataclasses.replace(settings, cosine=True)
    assert [falling.rate_share(step) for step in (50, 100)] == pytest.approx([0.55, 0.1])
    evenly = dataclasses.replace(settings, steps=110, linear=True)
    assert [evenly.rate_share(step) for step in (0, 9, 10, 60, 109)] == pytest.approx([0.1, 1, 1, 0.5, 0.01])


def test_a_loss_that_is_no_number_changes_nothing(wan):
    """One bad clip is passed over; nothing but bad ones stops the run."""
    bad = [dataclasses.replace(example, video=torch.full_like(example.video, torch.nan)) for example in EXAMPLES]
    run = trainer(wan, examples=bad)
    before = {key: tensor.detach().clone() for key, tensor in run.weights.items()}
    for _ in range(MOST_BAD_STEPS - 1):
        assert math.isnan(run.train_step())
    with pytest.raises(UserError, match="were not finite in 10 steps in a row"):
        run.train_step()
    assert all(torch.equal(run.weights[key], tensor) for key, tensor in before.items())


def test_gradients_that_are_no_numbers_change_nothing(wan):
    """A finite loss with one infinite gradient, as fp16 and huge activations give."""
    run = trainer(wan)
    run.train_step()
    before = {key: tensor.detach().clone() for key, tensor in run.weights.items()}
    tensor = run.weights["blocks.0.self_attn.v_loras.up.weight"]
    handle = tensor.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    assert math.isnan(run.train_step()) and run.step == 2 and run.bad_steps == 1
    assert all(torch.equal(run.weights[key], value) for key, value in before.items())
    handle.remove()
    assert math.isfinite(run.train_step()) and run.bad_steps == 0


def test_fp16_learns_like_fp32(monkeypatch):
    """With gradients as small as those of the mean over a video of 832x480, which fp16 has no numbers for."""
    small, scale = 1e-6, torch.amp.GradScaler.scale
    monkeypatch.setattr(torch.amp.GradScaler, "scale", lambda scaler, loss: scale(scaler, small * loss))
    found = []
    for dtype in (torch.float32, torch.float16):
        own = Wan(tiny.load().model)
        own.dtype = dtype  # of itself ComfyUI takes fp32 on a CPU
        own.model.to(dtype).patch_embedding.float()  # which ComfyUI keeps in fp32
        run = trainer(own, dataclasses.replace(SETTINGS, batch_size=1, max_grad_norm=1e9))
        assert run.scaler.is_enabled() == (dtype == torch.float16)
        assert math.isfinite(run.train_step())
        found.append(torch.cat([tensor.grad.flatten() / small for key, tensor in run.weights.items()
                                if "up" in key and tensor.grad is not None]))
    exact, half = found
    assert float((half - exact).norm() / exact.norm()) < 0.02  # fp16 has three digits, and the model many layers


def test_an_attention_without_gradients_is_not_taken(monkeypatch):
    """ComfyUI may run SageAttention, which has no backward pass."""
    import comfy.ldm.wan.model
    from comfy.ldm.modules.attention import attention_pytorch, wrap_attn

    def without_gradients(q, k, v, *args, **kwargs):
        with torch.no_grad():
            return attention_pytorch(q, k, v, *args, **kwargs)

    monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", wrap_attn(without_gradients))
    trained = learner(Wan(tiny.load().model, WITH_GRADIENTS))
    flow_matching_loss(trained, batch(), backward=torch.Tensor.backward)
    assert float(trained.weights["blocks.0.self_attn.v_loras.up.weight"].grad.norm()) > 0


def test_it_learns(wan):
    run = trainer(wan, dataclasses.replace(SETTINGS, batch_size=1, learning_rate=3e-3))
    fixed = run.draw(0)
    run.draw = lambda step: fixed
    losses = [run.train_step() for _ in range(12)]
    assert losses[-1] < losses[0] - 1e-3


@pytest.mark.parametrize("change, words", [
    ({"learning_rate": 0.0}, "learning_rate must be a finite number of more than 0, but is 0"),
    ({"learning_rate": math.nan}, "learning_rate must be .*, but is nan"),
    ({"shift": math.inf}, "shift must be .*, but is inf"), ({"warmup": -5}, "warmup must be .*, but is -5"),
    ({"weight_decay": -3.0}, "weight_decay must be a finite number of at least 0, but is -3"),
    ({"ema": 1.0}, "ema must be a finite number of at least 0 and less than 1, but is 1: 0.999 is usual"),
    ({"noise_from": 0.875, "noise_to": 0.5}, "the noise levels must be .*, but are 0.875 to 0.5")])
def test_settings_that_make_no_sense(change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(SETTINGS, **change)


def test_no_examples(wan):
    with pytest.raises(UserError, match="no examples to train on"):
        trainer(wan, examples=[])


class HeadLearner:
    """Another method, which trains a part of the model itself and reads no photo."""

    def __init__(self, wan):
        self.wan, head = wan, wan.model.head.head
        self.weights = {f"head.head.{name}": parameter.requires_grad_(True) for name, parameter in
                        head.named_parameters()}

    def optimizer(self, settings):
        return torch.optim.AdamW(self.weights.values(), lr=settings.learning_rate)

    @contextlib.contextmanager
    def velocity(self, noisy, batch, checkpointing):
        with differentiable():
            yield self.wan(noisy, 1000 * batch.sigma, batch.context)

    def save(self, weights, file, metadata):
        safetensors.torch.save_file(weights, file, metadata)


def test_another_method_trains_with_the_same_loop(tmp_path):
    """Parameters of the model itself: they learn, go on after a stop, and are what is saved."""
    def trainer():
        own = Wan(tiny.load().model, WITH_GRADIENTS)
        own.model.requires_grad_(False)
        return Trainer(HeadLearner(own), EXAMPLES, dataclasses.replace(SETTINGS, learning_rate=1e-2, warmup=0))

    run, before = TrainingRun(trainer(), tmp_path / "whole", "head"), trainer().weights
    expected = [loss for _, loss in run.steps()]
    first = TrainingRun(trainer(), tmp_path / "stopped", "head")
    with contextlib.closing(first.steps()) as steps:
        found = [next(steps)[1] for _ in range(3)]
    second = TrainingRun(trainer(), tmp_path / "stopped", "head")
    assert found + [loss for _, loss in second.steps()] == expected
    second.finish(tmp_path / "head.safetensors")
    for key, tensor in safetensors.torch.load_file(tmp_path / "head.safetensors").items():
        assert torch.equal(tensor, run.trainer.average[key]) and not torch.equal(tensor, before[key])
    batches = run.trainer.draw(0)
    with torch.no_grad():
        losses = [sum(flow_matching_loss(each.learner, batch) for batch in batches)
                  for each in (trainer(), run.trainer)]
    assert losses[1] < 0.99 * losses[0]


def test_no_memory_for_a_second_model_is_left_to_comfyui():
    def load(*args, **kwargs):
        raise comfy.model_management.OOM_EXCEPTION("out of memory")

    model = tiny.load()
    model.cached_patcher_init = (load, ())
    with pytest.raises(comfy.model_management.OOM_EXCEPTION, match="out of memory"):
        loaded_again(model)
