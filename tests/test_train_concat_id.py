"""Training Concat-ID: gradients against the equations written out, files that the nodes read, going on after a stop."""
import dataclasses
import json
import math

import folder_paths
import pytest
import safetensors
import safetensors.torch
import torch
from packed import scaled_fp8

import tiny
from small_world.tiny_models import TinyWan, vae_weights
from standin_core.concat_id.model import OWN_BIAS, OWN_WEIGHT, REFERENCES, load_concat_id
from standin_core.concat_id.training import ALL, FIRST_STAGE, LOW_RANK, ConcatIDMethod, ConcatIDSettings
from standin_core.errors import UserError
from standin_core.methods import TRAINED
from standin_core.train import SampleSettings, TrainSettings
from standin_core.train.checkpoints import TrainingRun
from standin_core.train.config import parse_config
from standin_core.train.data.recipe import AS_CROPPED, TO_CLIP
from standin_core.train.data.shards import Example, write_shards
from standin_core.train.flow_matching import flow_matching_loss
from standin_core.train.loop import Trainer
from standin_core.train.memory import activation_bytes, model_size, size_of
from standin_core.train.method import Batch
from standin_core.train.plan import plan
from standin_core.train.session import training_run
from standin_core.wan import WITH_GRADIENTS, Wan
from support import pack
from tolerances import WHOLE_RUN, assert_close

CPU = torch.device("cpu")
WAN = TinyWan(blocks=2, text_dim=32)
SETTINGS = TrainSettings(steps=4, batch_size=1, learning_rate=1e-3, warmup=1, linear=True, weight_decay=0.01, ema=0.5,
                         reference_dropout=0.5, seed=3)
KINDS = [{"weights": ALL}, {"weights": ALL, "variant": FIRST_STAGE}, {"weights": LOW_RANK, "rank": 4},
         {"weights": LOW_RANK, "rank": 4, "variant": FIRST_STAGE}]


@pytest.fixture(autouse=True)
def as_comfyui_executes():
    """Not under inference mode, under which nothing has a gradient."""


def method(references=1, **settings):
    return ConcatIDMethod(ConcatIDSettings("mine", references=references, **settings), metadata=WAN.metadata())


def learner(references=1, moved=True, **settings):
    """moved: from where a training begins, so that low-rank weights are not zero and the two modulations differ."""
    wan = Wan(tiny.load(WAN.weights()).model, WITH_GRADIENTS)
    made = method(references, **settings).begin(wan, 0, CPU)
    if moved:
        with torch.no_grad():
            for i, tensor in enumerate(made.weights.values()):
                tensor.add_(0.05 * tiny.random(*tensor.shape, seed=1000 + i))
    return made


def batch(references=1, size=2, seed=0):
    """Grids of odd sides, so that nothing can be mixed up unseen."""
    return Batch(video=tiny.random(size, 16, 3, 6, 10, seed=seed), noise=tiny.random(size, 16, 3, 6, 10, seed=seed + 1),
                 reference=tiny.random(size, 16, references, 6, 10, seed=seed + 2),
                 context=tiny.random(size, 5, WAN.text_dim, seed=seed + 3), sigma=torch.tensor([0.3, 0.8])[:size])


def by_the_equations(weights, own, noisy, timestep, context, reference):
    """The design's equations in plain PyTorch, from named tensors alone.

    own: (weight, bias, blocks) or None.
    """
    functional, dim, heads = torch.nn.functional, WAN.dim, WAN.heads

    def linear(x, name):
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def normed(x):
        return functional.layer_norm(x, (dim,), eps=1e-6)

    def rms(x, name):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    def attention(q, k, v):
        q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(dim // heads)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def turned(x, positions):
        """Neighbouring numbers are the two parts of a complex one, turned by the three axes in turn."""
        width = dim // heads
        axes = [width - 4 * (width // 6), 2 * (width // 6), 2 * (width // 6)]
        angles = torch.cat([positions[:, axis, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
                            for axis, size in enumerate(axes)], dim=1)
        pairs = torch.view_as_complex(x.unflatten(2, (heads, -1)).unflatten(3, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]).flatten(2)

    frames, height, width = noisy.shape[2], noisy.shape[3] // 2, noisy.shape[4] // 2
    tokens = functional.conv3d(torch.cat((noisy, reference), dim=2), weights["patch_embedding.weight"],
                               weights["patch_embedding.bias"], stride=(1, 2, 2)).flatten(2).transpose(1, 2)
    count = reference.shape[2] * height * width
    positions = torch.tensor([(t, y, x + width * (t >= frames)) for t in range(frames + reference.shape[2])
                              for y in range(height) for x in range(width)], dtype=torch.float32)
    arguments = timestep[:, None] * 10000.0 ** (-torch.arange(128) / 128)
    time = linear(functional.silu(linear(torch.cat((arguments.cos(), arguments.sin()), dim=1), "time_embedding.0")),
                  "time_embedding.2")
    of_video = linear(functional.silu(time), "time_projection.1").unflatten(1, (6, dim))
    of_reference = None
    if own is not None:
        of_reference = functional.linear(functional.silu(time), own[0], own[1]).unflatten(1, (6, dim))
    text = linear(functional.gelu(linear(context, "text_embedding.0"), approximate="tanh"), "text_embedding.2")
    video, shown = tokens[:, :-count], tokens[:, -count:]
    for i in range(WAN.blocks):
        name = f"blocks.{i}"
        s1, c1, g1, s2, c2, g2 = (weights[f"{name}.modulation"] + of_video).split(1, dim=1)
        r1, d1, h1, r2, d2, h2 = s1, c1, g1, s2, c2, g2
        if own is not None:
            r1, d1, h1, _, _, h2 = (own[2][i] + of_reference).split(1, dim=1)
            r2, d2 = r1, d1
        x = torch.cat((normed(video) * (1 + c1) + s1, normed(shown) * (1 + d1) + r1), dim=1)
        q, k = (turned(rms(linear(x, f"{name}.self_attn.{w}"), f"{name}.self_attn.norm_{w}"), positions) for w in "qk")
        x = linear(attention(q, k, linear(x, f"{name}.self_attn.v")), f"{name}.self_attn.o")
        video, shown = video + x[:, :-count] * g1, shown + x[:, -count:] * h1
        x = normed(video) * weights[f"{name}.norm3.weight"] + weights[f"{name}.norm3.bias"]
        q, k = (rms(linear(y, f"{name}.cross_attn.{w}"), f"{name}.cross_attn.norm_{w}") for w, y in (("q", x),
                                                                                                    ("k", text)))
        video = video + linear(attention(q, k, linear(text, f"{name}.cross_attn.v")), f"{name}.cross_attn.o")
        x = torch.cat((normed(video) * (1 + c2) + s2, normed(shown) * (1 + d2) + r2), dim=1)
        x = linear(functional.gelu(linear(x, f"{name}.ffn.0"), approximate="tanh"), f"{name}.ffn.2")
        video, shown = video + x[:, :-count] * g2, shown + x[:, -count:] * h2
    shift, scale = (weights["head.modulation"] + time[:, None]).split(1, dim=1)
    out = linear(normed(video) * (1 + scale) + shift, "head.head")
    out = out.reshape(len(out), frames, height, width, 2, 2, 16)
    return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(noisy.shape)


def loss_by_the_equations(made, item):
    """With the low-rank weights added to the layers, where there are some."""
    weights = {name: tensor.detach().clone() for name, tensor in made.wan.model.state_dict().items()}
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in made.weights.items()}
    weights |= {name: tensor for name, tensor in leaves.items() if name in weights}
    for name, down in leaves.items():
        if ".lora_A." in name:
            layer, up = name.partition(".lora_A.")[0], leaves[name.replace("lora_A", "lora_B")]
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + up @ down
    own = None if made.own is None else [leaves[name] for name in list(leaves)[-3:]]
    sigma = item.sigma.reshape(-1, 1, 1, 1, 1)
    predicted = by_the_equations(weights, own, (1 - sigma) * item.video + sigma * item.noise, 1000 * item.sigma,
                                 item.context, item.reference)
    loss = (predicted - (item.noise - item.video)).square().mean()
    loss.backward()
    return float(loss.detach()), leaves


@pytest.mark.parametrize("references", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_equations(kind, references):
    """For every tensor that is trained; those that the authors' model uses nowhere get none."""
    made, item = learner(references, **kind), batch(references)
    loss = flow_matching_loss(made, item, backward=torch.Tensor.backward)
    expected, leaves = loss_by_the_equations(made, item)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, tensor in made.weights.items():
        gradient = leaves[name].grad
        if gradient is None or not gradient.any():
            assert tensor.grad is None or not tensor.grad.any(), name
        else:
            torch.testing.assert_close(tensor.grad, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()),
                                       msg=lambda words, name=name: f"{name}: {words}")
    if made.own is not None:
        slots = made.own.blocks.grad.abs().sum(dim=-1)
        assert not slots[:, 3:5].any() and not slots[-1, 2:].any() and bool((slots[0, [0, 1, 2, 5]] > 0).all())


@pytest.mark.parametrize("kind", KINDS[::2])
def test_what_is_computed_again_is_the_same(kind):
    """Bit for bit, and nothing is left on the model."""
    found = []
    for again in (False, True):
        made = learner(**kind)
        loss = flow_matching_loss(made, batch(), again, torch.Tensor.backward)
        found.append((loss, {name: tensor.grad for name, tensor in made.weights.items()}))
    (loss, gradients), (again, computed_again) = found
    assert loss == again
    for name, gradient in gradients.items():
        assert gradient is computed_again[name] is None or torch.equal(gradient, computed_again[name]), name
    for module in made.wan.model.modules():
        assert not module._forward_hooks and "forward" not in module.__dict__
        assert "WithReferences" not in type(module).__name__


def test_a_training_begins_at_the_model():
    """Low-rank weights change nothing yet; the reference's modulation is a copy of the video's."""
    item = batch()
    with torch.no_grad():
        losses = {str(kind): flow_matching_loss(learner(moved=False, **kind), item) for kind in KINDS}
    assert losses[str(KINDS[0])] == losses[str(KINDS[2])] != losses[str(KINDS[1])] == losses[str(KINDS[3])]
    made, model = learner(moved=False), WAN.weights()
    assert torch.equal(made.weights[OWN_WEIGHT], model["time_projection.1.weight"])
    assert torch.equal(made.weights[OWN_BIAS], model["time_projection.1.bias"])
    assert torch.equal(made.own.blocks, torch.cat([model[f"blocks.{i}.modulation"] for i in range(WAN.blocks)]))


def examples(references=1):
    return [Example(video=tiny.random(16, 3, 6, 10, seed=10 * i), photos=tiny.random(2, 16, references, 6, 10,
                                                                                    seed=10 * i + 1),
                    context=tiny.random(5, WAN.text_dim, seed=10 * i + 2)) for i in range(3)]


def started(folder, kind, settings=SETTINGS):
    return TrainingRun(Trainer(learner(moved=False, **kind), examples(), settings), folder, "mine", every=2)


@pytest.mark.parametrize("kind", KINDS[::2])
def test_it_goes_on_wherever_it_was_stopped(kind, tmp_path):
    """Bit for bit: losses, weights, moving average."""
    whole = started(tmp_path / "whole", kind)
    expected = list(whole.steps())
    first = started(tmp_path / "stopped", kind).steps()
    found = [next(first) for _ in range(3)]
    first.close()
    second = started(tmp_path / "stopped", kind)
    assert found + list(second.steps()) == expected and len(expected) == 4
    for name, tensor in whole.trainer.weights.items():
        assert torch.equal(second.trainer.weights[name], tensor), name
        assert torch.equal(second.trainer.average[name], whole.trainer.average[name]), name


def through_the_nodes(file, reference, noisy, context):
    """The velocity of the first step, by Load Concat-ID and Apply Concat-ID."""
    folder_paths.filename_list_cache.pop("diffusion_models", None)
    with torch.inference_mode():
        model, concat_id = pack.node_classes()["LoadConcatID"].execute(file=file.name, weight_dtype="default").args
        out = model.model.process_latent_out
        applied = pack.node_classes()["ApplyConcatID"].execute(
            model=model, concat_id=concat_id, latent={"samples": noisy}, start_percent=0.0, end_percent=1.0,
            reference_latent={"samples": out(reference[0].movedim(1, 0).unsqueeze(2))}, guidance="both passes",
            guidance_scale=1.0).args[0]
        return tiny.velocity(applied, noisy, context)


@pytest.mark.parametrize("kind, references", [*((kind, 1) for kind in KINDS), (KINDS[0], 2)])
def test_what_is_trained_is_what_the_nodes_run(kind, references, diffusion_models):
    """The file that is written, loaded by the nodes, gives what the trainer computed; each reference has its effect."""
    made, item = learner(references, **kind), batch(references, size=1)
    file = diffusion_models / "mine.safetensors"
    made.save(made.weights, file, {"steps": "3"})
    noisy = item.video
    with torch.no_grad(), made.velocity(noisy, dataclasses.replace(item, sigma=torch.ones(1)), False) as velocity:
        expected = velocity
    assert_close(through_the_nodes(file, item.reference, noisy, item.context), expected, WHOLE_RUN)
    others = item.reference.flip(2) if references > 1 else -item.reference
    assert not torch.allclose(through_the_nodes(file, others, noisy, item.context), expected, atol=1e-2)
    with safetensors.safe_open(file, "pt") as said:
        assert said.metadata()["steps"] == "3" and said.metadata()[REFERENCES] == str(references)
        assert len(said.keys()) == len(WAN.weights()) + (0 if made.own is None else 2 + WAN.blocks)
    _, concat_id = load_concat_id(file)
    assert (concat_id.references, concat_id.own is None) == (references, kind.get("variant") == FIRST_STAGE)


def test_the_dtypes_of_the_model_are_kept(tmp_path):
    """Training is in fp32, and the file is no larger than the model's own."""
    model = tiny.load({key: tensor.half() for key, tensor in WAN.weights().items()}, torch.float16)
    wan = Wan(model.model, WITH_GRADIENTS)
    expected = {name: tensor.dtype for name, tensor in wan.model.state_dict().items()}
    made = method(weights=ALL).begin(wan, 0, CPU)
    assert all(tensor.dtype == torch.float32 for tensor in made.weights.values())
    made.save(made.weights, tmp_path / "mine.safetensors", {})
    saved = safetensors.torch.load_file(tmp_path / "mine.safetensors")
    assert {name: saved[name].dtype for name in expected} == expected
    assert saved[OWN_WEIGHT].dtype == torch.float16


def test_one_stage_follows_the_other(diffusion_models):
    """A file of an AdaLN is what the next training begins with, its own modulation too."""
    made = learner(weights=ALL)
    made.save(made.weights, diffusion_models / "stage_two.safetensors", {})
    third = method(weights=ALL)
    wan = Wan(third.load(diffusion_models / "stage_two.safetensors").model, WITH_GRADIENTS)
    following = third.begin(wan, 0, CPU)
    assert following.weights.keys() == made.weights.keys()
    assert all(torch.equal(tensor, made.weights[name]) for name, tensor in following.weights.items())
    assert json.loads(following.metadata["config"]) == json.loads(WAN.metadata()["config"])
    first = ConcatIDMethod(ConcatIDSettings("mine", variant=FIRST_STAGE))
    wan = Wan(first.load(diffusion_models / "stage_two.safetensors").model, WITH_GRADIENTS)
    with pytest.raises(UserError, match="variant is first stage, but the model's file has the modulation of an AdaLN"):
        first.check(wan, (16, 3, 6, 10), (16, 1, 6, 10), TO_CLIP)


@pytest.mark.parametrize("kind", KINDS[::2])
def test_it_learns_a_clip_by_its_photo(kind, diffusion_models):
    """Overfitted, it knows the clip by its photo and not by another's; sampled through the nodes, the photo counts."""
    settings = dataclasses.replace(SETTINGS, steps=40, learning_rate=2e-3 if kind["weights"] == ALL else 2e-2,
                                   reference_dropout=0.0, ema=0.0, linear=False)
    made = learner(moved=False, **kind)
    run = Trainer(made, examples(), settings)
    item = dataclasses.replace(batch(size=1), sigma=torch.tensor([0.9]))
    run.draw = lambda step: [item]
    losses = [run.train_step() for _ in range(settings.steps)]
    with torch.no_grad():
        other = flow_matching_loss(made, dataclasses.replace(item, reference=-item.reference))
    assert losses[-1] < 0.7 * losses[0] and other > 1.05 * losses[-1]
    made.save(made.weights, diffusion_models / "mine.safetensors", {})
    load = pack.module("standin_core.concat_id.model").load_concat_id
    model, concat_id = load(diffusion_models / "mine.safetensors")
    frames = []
    for sign in (1, -1):
        reference = {"samples": sign * model.model.process_latent_out(item.reference)}
        applied = pack.node_classes()["ApplyConcatID"].execute(
            model=model, concat_id=concat_id, latent={"samples": item.video}, reference_latent=reference,
            start_percent=0.0, end_percent=1.0, guidance="both passes", guidance_scale=1.0).args[0]
        with torch.inference_mode():
            frames.append(tiny.sample(applied, torch.zeros_like(item.video), [[item.context, {}]],
                                      [[item.context, {}]])[0])
    assert float((frames[0] - frames[1]).abs().mean()) > 0.01


def test_pictures_while_it_trains(tmp_path):
    """Two photos, then frames; what is drawn with are the weights that are saved, and the training is as it was."""
    import comfy.sd

    made = dict(enumerate(examples(references=2)))
    list(write_shards(tmp_path / "shards", [str(i) for i in made],
                      lambda missing: ((str(i), made[i]) for i in made)))
    for kind in KINDS[::2]:
        model = tiny.load(WAN.weights())
        run = training_run(model, method(2, **kind), tmp_path / "shards", tmp_path / kind["weights"],
                           dataclasses.replace(SETTINGS, learning_rate=1e-2), SampleSettings(every=2, count=1, steps=1),
                           comfy.sd.VAE(sd=vae_weights()))
        steps = run.steps()
        next(steps)
        before = {name: tensor.detach().clone() for name, tensor in run.trainer.weights.items()}
        drawn, again = run.draw(), run.draw()
        assert drawn.shape == (48 + 4, (2 + 4) * 80, 3) and (drawn == again).all()
        assert all(torch.equal(tensor, before[name]) for name, tensor in run.trainer.weights.items())
        with run.trainer.as_saved():
            run.trainer.average, kept = {}, run.trainer.average
            assert (run.draw() == drawn).all()  # of the average, which is what the weights are now
            run.trainer.average = kept
        run.trainer.average, kept = {}, run.trainer.average
        assert (run.draw() != drawn).any()
        run.trainer.average = kept
        assert len(list(steps)) == 3


@pytest.mark.parametrize("settings, data, words", [
    ({}, {"photo": (16, 1, 8, 8)}, r"they were cropped, at 64x64, .* a clip of 80x48: prepare data with method Conc"),
    ({}, {"fit": AS_CROPPED}, r"encoded as they were cropped, at 80x48, .* or fit = \"to the clip\" in \[photos\]"),
    ({"references": 2}, {}, "references is 2, but the data have photos of 1 persons"),
    ({}, {"dim": 2048}, "a Wan of width 2048, but Concat-ID is trained on"),
    ({}, {"weights": TinyWan(text_dim=32).vace_weights()}, "takes more than noise and text, but Concat-ID"),
    ({}, {"dtype": torch.float8_e4m3fn}, "weights are in fp8 or quantised"),
    ({}, {"weights": scaled_fp8(WAN.weights())[0]}, "weights are in fp8 or quantised")])
def test_what_cannot_be_trained(settings, data, words):
    wan = Wan(tiny.load(data.get("weights", WAN.weights())).model)
    wan.dim = data.get("dim", wan.dim)
    if "dtype" in data:
        wan.model.to(data["dtype"])
    with pytest.raises(UserError, match=words):
        method(**settings).check(wan, (16, 3, 6, 10), data.get("photo", (16, 1, 6, 10)), data.get("fit", TO_CLIP))


@pytest.mark.parametrize("changes, words", [
    ({"variant": "second"}, "variant must be one of first stage, AdaLN, but is second"),
    ({"weights": "some"}, "weights must be one of all, low rank, but is some"),
    ({"rank": 0}, "rank must be a whole number of at least 1, but is 0"),
    ({"references": 0}, "references must be a whole number of at least 1, but is 0"),
    ({"expert": "low noise"}, "Wan 2.1, which has no experts")])
def test_settings_that_make_no_sense(changes, words):
    with pytest.raises(UserError, match=words):
        ConcatIDSettings("mine", **changes)


def test_the_optimiser():
    """The authors' decay, and none for the modulation of the reference; LoRA+ for low-rank weights alone."""
    settings = dataclasses.replace(SETTINGS, loraplus_ratio=4.0)
    with pytest.raises(UserError, match=r"loraplus_ratio is 4\.0, but all weights of the model are trained"):
        learner(weights=ALL).optimizer(settings)
    for made, ratio in ((learner(weights=ALL), 1.0), (learner(weights=LOW_RANK, rank=4), 4.0)):
        groups = {id(tensor): group for group in made.optimizer(dataclasses.replace(settings, loraplus_ratio=ratio)
                                                                ).param_groups for tensor in group["params"]}
        assert len(groups) == len(made.weights)
        for name, tensor in made.weights.items():
            own = any(tensor is part for part in (made.own.weight, made.own.bias, made.own.blocks))
            assert groups[id(tensor)]["weight_decay"] == (0.0 if own else 0.01), name
            assert groups[id(tensor)]["lr"] == (ratio if ".lora_B." in name else 1) * settings.learning_rate, name


TABLE = {"method": "concat_id", "concat_id": {"name": "mine"},
         "files": dict.fromkeys(("videos", "data", "diffusion_model", "text_encoder", "vae"), "x")}


def test_the_authors_recipe_is_the_default():
    config = parse_config(TABLE, TRAINED)
    train, data = config.train, config.data
    assert (train.learning_rate, train.linear, train.weight_decay, train.shift, train.reference_dropout) == (
        1e-5, True, 0.01, 5.0, 0.1)
    assert (data.fps, data.frames, data.face.resolved().size, config.photos.fit) == (16.0, 81, 448, "to the clip")
    assert config.settings == ConcatIDSettings("mine") and config.photos.noise_draws
    assert parse_config({**TABLE, "train": {"shift": 3.0}}, TRAINED).train == dataclasses.replace(train, shift=3.0)


def test_the_plan(tmp_path):
    """From Wan 1.3B's header: the parameters of the design note, and no frozen model where all of it is trained."""
    sizes = model_size(_sparse(tmp_path / "wan.safetensors", 30, 1536, 8960))
    whole = parse_config(TABLE, TRAINED)
    low = parse_config({**TABLE, "concat_id": {"name": "mine", "weights": "low rank"}}, TRAINED)
    words = plan(whole, ConcatIDMethod.of(whole.settings), tmp_path / "wan.safetensors")
    assert "concat_id   mine, variant AdaLN, weights all:" in words and "0.0 GiB frozen model" in words
    assert "832x480: 1,560 tokens" in words and "zeros in 10% of the examples" in words
    assert "a whole model of" in words
    # 14,441,472 of the AdaLN, and 8 linear layers of 1536 and 2 of the feed-forward in each of 30 blocks
    expected = 14_441_472 + 128 * 30 * (8 * 2 * 1536 + 2 * (1536 + 8960))
    assert ConcatIDMethod.of(low.settings).parameters(sizes) == expected
    assert ConcatIDMethod.of(whole.settings).parameters(sizes) == sizes.parameters + 14_441_472


def _sparse(file, blocks, dim, ffn):
    """A safetensors file of a header alone."""
    size = 2 * ffn * dim
    header = {f"blocks.{i}.ffn.0.weight": {"dtype": "BF16", "shape": [ffn, dim],
                                           "data_offsets": [i * size, (i + 1) * size]} for i in range(blocks)}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with file.open("wb") as out:
        out.write(len(content).to_bytes(8, "little") + content)
        out.truncate(8 + len(content) + blocks * size)
    return file


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("weights", [ALL, LOW_RANK])
def test_the_memory_of_a_step_is_what_was_planned(weights, checkpointing, tmp_path):
    """By PyTorch's own allocator, for a model of none of the sizes that the estimate was made from; within 15 %."""
    import comfy.sd

    from support.peak_memory import allocated_peak

    sizes = TinyWan(dim=192, ffn_dim=512, heads=2, blocks=8, text_dim=64)
    loaded = comfy.sd.load_diffusion_model_state_dict(sizes.weights(), model_options={"dtype": torch.float32},
                                                      metadata=sizes.metadata())
    wan = Wan(loaded.model, WITH_GRADIENTS)
    example = Example(tiny.random(16, 2, 40, 40), tiny.random(1, 16, 1, 40, 40), tiny.random(8, 64))
    made, settings = method(weights=weights, rank=8), TrainSettings(checkpointing=checkpointing)
    trainer = Trainer(made.begin(wan, 0, CPU), [example], settings)
    trainer.train_step()
    trainer.optimizer.zero_grad(set_to_none=True)
    measured = allocated_peak(trainer.train_step, tmp_path)
    size = size_of(wan)
    planned = activation_bytes(made, size, settings, 800, 400, 4) + 4 * made.parameters(size)
    assert planned == pytest.approx(measured, rel=0.15)
