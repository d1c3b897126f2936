"""A training run on the disk: its files, its plan, its configuration, and going on wherever it was stopped."""
import dataclasses
import datetime
import functools
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import PIL.Image
import pytest
import safetensors
import safetensors.torch
import torch

import tiny
from small_world.tiny_models import TinyWan, vae_weights
from standin_core.concat_id.training import LAYERS, ConcatIDSettings
from standin_core.errors import UserError
from standin_core.face import FaceSettings
from standin_core.files import read_lines
from standin_core.methods import TRAINED
from standin_core.sampler import SamplerSettings
from standin_core.stand_in.adapter import load_adapter, parse_adapter
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.training import AdapterSettings, StandInMethod, train_adapter
from standin_core.train import MethodSettings, SampleSettings, TrainSettings
from standin_core.train.checkpoints import CHECKPOINT, TrainingRun
from standin_core.train.config import parse_config, read_config
from standin_core.train.data.shards import CachedExamples, Example, write_shards
from standin_core.train.loop import Trainer
from standin_core.train.memory import activation_bytes, model_size, size_of, tokens
from standin_core.train.pictures import loss_picture
from standin_core.train.plan import plan
from standin_core.train.samples import sample_grid
from standin_core.train.session import training_run
from standin_core.wan import Wan
from support import pack
from support.environment import PACK
from support.peak_memory import allocated_peak

RANK = 16
ADAPTER = AdapterSettings("mine", rank=RANK)
SETTINGS = TrainSettings(steps=6, batch_size=2, learning_rate=1e-3, warmup=2, ema=0.5, seed=3)


@pytest.fixture(autouse=True)
def as_comfyui_executes():
    """Not under inference mode, under which nothing has a gradient."""


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode(False):
        return tiny.load()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    made = {f"clip {i}": Example(video=tiny.random(16, 3, 8, 12, seed=10 * i),
                                 photos=tiny.random(2, 16, 1, 8, 16, seed=10 * i + 1),
                                 context=tiny.random(5, tiny.WAN.text_dim, seed=10 * i + 2)) for i in range(3)}
    list(write_shards(folder, list(made), lambda missing: ((name, made[name]) for name in made)))
    return folder


def started(model, shards, folder, settings=SETTINGS, start_from=None, **others):
    return training_run(model, StandInMethod(ADAPTER, start_from), shards, folder, settings,
                        **{"samples": SampleSettings(every=2), "base_model": "tiny", **others})


@pytest.fixture(scope="module")
def whole(model, shards, tmp_path_factory):
    """A run that was never stopped, with the weights and the losses of every step."""
    with torch.inference_mode(False):
        run = started(model, shards, tmp_path_factory.mktemp("whole"))
        return run, [(step, loss, {key: tensor.detach().clone() for key, tensor in run.trainer.weights.items()})
                     for step, loss in run.steps()]


@pytest.mark.parametrize("stop, how", [(1, "closed"), (2, "closed"), (2, "exception"), (3, "exception"), (5, "closed")])
def test_it_goes_on_wherever_it_was_stopped(model, shards, whole, tmp_path, stop, how):
    """Bit for bit: losses, weights, moving average."""
    first = started(model, shards, tmp_path)
    steps = first.steps()
    found = [next(steps) for _ in range(stop)]
    if how == "closed":
        steps.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            steps.throw(KeyboardInterrupt())
    second = started(model, shards, tmp_path)
    found += list(second.steps())
    run, expected = whole
    assert found == [(step, loss) for step, loss, _ in expected]
    assert all(torch.equal(tensor, expected[-1][2][key]) for key, tensor in second.trainer.weights.items())
    assert all(torch.equal(tensor, run.trainer.average[key]) for key, tensor in second.trainer.average.items())
    lines = read_lines(tmp_path / "loss.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == found


def test_it_goes_on_after_a_kill(model, shards, whole, tmp_path):
    """Nothing could be saved then but what the last checkpoint holds; the losses after it are taken out."""
    first = started(model, shards, tmp_path)
    steps = first.steps()
    for _ in range(5):
        next(steps)
    kept = (tmp_path / CHECKPOINT).read_bytes()  # of step 4
    steps.close()
    (tmp_path / CHECKPOINT).write_bytes(kept)
    (tmp_path / "mine_000002.safetensors.part").mkdir()
    (tmp_path / "mine_000002.safetensors.part" / ".tmpWtbnql").write_bytes(kept[:100])  # as safetensors leaves it
    second = started(model, shards, tmp_path)
    assert [step for step, _ in second.steps()] == [5, 6]
    _, expected = whole
    assert all(torch.equal(tensor, expected[-1][2][key]) for key, tensor in second.trainer.weights.items())
    assert [line["step"] for line in read_lines(tmp_path / "loss.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_that_is_done_does_nothing_more(model, shards, whole):
    run, _ = whole
    assert list(started(model, shards, run.folder).steps()) == []
    longer = started(model, shards, run.folder, dataclasses.replace(SETTINGS, steps=7))
    steps = longer.steps()
    assert next(steps)[0] == 7


def test_what_a_run_leaves(whole, model, tmp_path):
    """Files of every other step, whose weights are the moving average; what they say of themselves."""
    run, _ = whole
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    assert {"checkpoint.pt", "loss.jsonl", "loss.png", "mine_000002.safetensors", "mine_000004.safetensors",
            "mine_000006.safetensors"} <= names and not list(run.folder.rglob("*.part"))
    run.finish(tmp_path / "models" / "mine.safetensors")
    adapter = load_adapter(tmp_path / "models" / "mine.safetensors")
    assert adapter.rank == RANK and torch.equal(
        adapter.blocks[1].k.up, run.trainer.average["blocks.1.self_attn.k_loras.up.weight"])
    with safetensors.safe_open(tmp_path / "models" / "mine.safetensors", "pt") as file:
        said = file.metadata()
    assert {key: said[key] for key in ("base_model", "rank", "expert", "steps", "skipped_steps")} == {
        "base_model": "tiny", "rank": str(RANK), "expert": "single", "steps": "6", "skipped_steps": "0"}


def test_pictures_of_what_it_makes_by_now(model, shards, tmp_path):
    """A row of a photo and four frames for each example, in which the identity is read."""
    import comfy.sd

    vae = comfy.sd.VAE(sd=vae_weights())
    settings = SampleSettings(every=2, count=2, steps=2)
    run = started(model, shards, tmp_path, dataclasses.replace(SETTINGS, steps=2, learning_rate=0.5), samples=settings,
                  vae=vae)
    before = run.draw()
    list(run.steps())
    after = np.asarray(PIL.Image.open(tmp_path / "samples" / "step_000002.png"))
    assert after.shape == before.shape == (2 * (64 + 4), 128 + 4 * 96, 3)
    assert np.array_equal(before[:64, :128], after[:64, :128])  # the photo
    assert (before[:64, 128:] != after[:64, 128:]).any()


def test_pictures_show_what_is_saved(model, shards, tmp_path):
    """The moving average, not the weights of the moment."""
    import comfy.sd

    vae, example = comfy.sd.VAE(sd=vae_weights()), CachedExamples(shards)[0]
    run = started(model, shards, tmp_path, dataclasses.replace(SETTINGS, steps=2, learning_rate=0.5),
                  samples=SampleSettings(count=1, steps=2, shift=4.0), vae=vae)
    list(run.steps())
    of_average, of_weights = (
        sample_grid(model, functools.partial(apply_identity_branch, model, parse_adapter(weights, "trained")), vae,
                    [example], SamplerSettings(SETTINGS.seed, 2, 5.0, shift=4.0))
        for weights in (run.trainer.average, run.trainer.weights))
    assert np.array_equal(run.draw(), of_average) and not np.array_equal(of_average, of_weights)


def test_pictures_of_the_low_noise_expert_begin_with_the_clip(model, shards):
    """It knows no more noise than its own; with hardly any, the clip is what comes out."""
    import comfy.sd

    vae, examples = comfy.sd.VAE(sd=vae_weights()), CachedExamples(shards)
    applied = functools.partial(apply_identity_branch, model, tiny.adapter())
    grids = [sample_grid(model, applied, vae, [examples[0]], SamplerSettings(1, 2, 1.0, shift=5.0), noise_to)
             for noise_to in (1.0, 0.875, 0.05)]
    with torch.no_grad():
        clip = vae.decode(model.model.process_latent_out(examples[0].video[None]))[0]
    shown = torch.cat(list(clip[[0, 3, 5, 8]]), dim=1).clamp(0, 1)
    assert np.abs(grids[2][:64, 128:] / 255 - shown.numpy()).mean() < 0.02
    assert not np.array_equal(grids[0], grids[1])


@pytest.mark.parametrize("kind", ["VACE", "image to video"])
def test_models_that_take_more_are_refused(shards, tmp_path, kind):
    weights = tiny.WAN.vace_weights() if kind == "VACE" else tiny.WAN.weights()
    if kind == "image to video":
        weights["patch_embedding.weight"] = torch.zeros(tiny.WAN.dim, 36, 1, 2, 2)
    other = tiny.load(weights)
    with pytest.raises(UserError, match="takes more than noise and text"):
        started(other, shards, tmp_path)


@pytest.mark.parametrize("settings, lighter", [
    ({}, "fewer frames, a smaller picture or weights in fp8"),  # as the node trains, which has no "together"
    ({"checkpointing": False, "together": 2},
     "fewer frames, a smaller picture, checkpointing, together 1 or weights in fp8"),
], ids=str)
def test_out_of_memory_names_the_settings_that_would_help(model, shards, tmp_path, monkeypatch, settings, lighter):
    import folder_paths

    def on_step(step, loss):
        raise torch.OutOfMemoryError("4 GB asked for")

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "stand_in", ([str(tmp_path / "models")], set()))
    data = shutil.copytree(shards, tmp_path / "data" / "one")
    with pytest.raises(UserError) as caught:
        train_adapter(model, data, ADAPTER, dataclasses.replace(SETTINGS, **settings), on_step)
    assert str(caught.value) == (f"the device is out of memory (4 GB asked for): take {lighter}; scripts/train.py "
                                 "--dry-run says how much each needs.")


def test_an_adapter_of_another_training_is_not_overwritten(model, shards, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "stand_in", ([str(tmp_path / "models")], set()))
    file = tmp_path / "models" / "mine.safetensors"
    mine = shutil.copytree(shards, tmp_path / "data" / "one")
    settings, losses = dataclasses.replace(SETTINGS, steps=1), []

    def train(folder, seed=3):
        return train_adapter(model, folder, ADAPTER, dataclasses.replace(settings, seed=seed),
                             lambda step, loss: losses.append(loss))

    adapter, _ = train(mine)
    assert adapter.sha256 == load_adapter(file).sha256 and len(losses) == 1
    train(mine)  # is done, and writes the same again
    kept = file.read_bytes()
    other = shutil.copytree(shards, tmp_path / "data" / "two")
    with pytest.raises(UserError, match="is there already and comes from another training"):
        train(other)
    assert len(losses) == 1 and file.read_bytes() == kept
    assert torch.equal(load_adapter(file).blocks[0].v.up, adapter.blocks[0].v.up)


def test_a_bad_clip_is_passed_over_and_counted(model, tmp_path):
    good = Example(tiny.random(16, 3, 8, 12), tiny.random(1, 16, 1, 8, 16), tiny.random(5, tiny.WAN.text_dim))
    bad = dataclasses.replace(good, video=torch.full_like(good.video, torch.nan))
    trainer = Trainer(StandInMethod(ADAPTER).begin(Wan(model.model), 0, torch.device("cpu")), [good, bad, good, good],
                      dataclasses.replace(SETTINGS, steps=8, batch_size=1))
    run = TrainingRun(trainer, tmp_path, "mine")
    losses = [loss for _, loss in run.steps()]
    skipped = sum(math.isnan(loss) for loss in losses)
    assert 0 < skipped < 8 and all(torch.isfinite(tensor).all() for tensor in trainer.weights.values())
    with safetensors.safe_open(tmp_path / "mine_000008.safetensors", "pt") as file:
        assert file.metadata()["skipped_steps"] == str(skipped)


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on the size of files")
def test_a_full_disk_keeps_the_last_checkpoint(model, shards, tmp_path):
    run = started(model, shards, tmp_path)
    steps = run.steps()
    for _ in range(3):
        next(steps)
    kept = (tmp_path / CHECKPOINT).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, limits[1]))
    try:
        with pytest.raises(UserError, match=r"step 4 could not be written to .*make room there"):
            next(steps)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / CHECKPOINT).read_bytes() == kept
    assert [step for step, _ in started(model, shards, tmp_path).steps()] == [3, 4, 5, 6]


def test_going_on_from_an_adapter(model, shards, whole, tmp_path):
    run, _ = whole
    given = run.folder / "mine_000006.safetensors"
    new = started(model, shards, tmp_path, start_from=load_adapter(given))
    assert all(torch.equal(tensor, run.trainer.average[key]) for key, tensor in new.trainer.weights.items())
    weights = safetensors.torch.load_file(given)
    safetensors.torch.save_file({key: tensor for key, tensor in weights.items() if not key.startswith("blocks.3")},
                                tmp_path / "short.safetensors")
    with pytest.raises(UserError, match="is for a Wan of 3 blocks"):
        started(model, shards, tmp_path, start_from=load_adapter(tmp_path / "short.safetensors"))


def test_a_checkpoint_of_other_data_is_refused(model, shards, whole, tmp_path):
    run, _ = whole
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    with pytest.raises(UserError, match=r"a training with other settings \(base_model, data\): .*take another name"):
        next(started(model, other, run.folder, base_model="another").steps())


def test_a_loss_picture(tmp_path):
    """The mean is drawn over the losses; a gap where there was no number."""
    losses = [1.0 - i / 200 + (0.1 if i % 2 else -0.1) for i in range(100)]
    losses[50:60] = [None] * 10
    drawn = np.asarray(loss_picture(losses))
    assert drawn.shape == (360, 960, 3)
    blue, orange = ((drawn == colour).all(axis=-1) for colour in ((31, 96, 180), (214, 110, 20)))
    inside = slice(44, 320)
    assert blue[inside, 60:400].any(axis=0).mean() > 0.9 and orange[inside, 60:930].any(axis=0).mean() > 0.85
    gap = slice(60 + int(880 * 51 / 99), 60 + int(880 * 58 / 99))
    assert not blue[inside, gap].any()
    assert np.asarray(loss_picture([0.5])).shape == np.asarray(loss_picture([None])).shape == (360, 960, 3)


CONFIG = """
    [files]
    videos = "films"
    data = "data"
    diffusion_model = "wan.safetensors"
    text_encoder = "umt5.safetensors"
    vae = "vae.safetensors"
    [adapter]
    name = "mine"
    expert = "high noise"
    [data]
    fps = 16
    [data.face]
    parser = "none"
    [pairs]
    lowest = 0.6
    [train]
    steps = 100
"""


def test_a_configuration(tmp_path):
    (tmp_path / "mine.toml").write_text(textwrap.dedent(CONFIG), encoding="utf-8")
    config = read_config(tmp_path / "mine.toml", TRAINED)
    assert config.files.videos == str(tmp_path / "films") and config.files.vae == "vae.safetensors"
    assert (config.data.fps, config.data.width, config.data.face.parser, config.pairs.lowest, config.pairs.highest) == (
        16.0, 832, "none", 0.6, 0.9)
    assert (config.train.steps, config.train.noise_from, config.train.noise_to) == (100, 0.875, 1.0)
    assert config.method == "stand_in" and config.settings.rank == 128 and config.samples.every == 500
    low = parse_config(table(adapter={"name": "mine", "expert": "low noise"}, train={"ema": 0}), TRAINED).train
    assert (low.noise_from, low.noise_to, low.ema) == (0.0, 0.875, 0.0) and type(low.ema) is float


def table(**changes):
    given = {"files": dict.fromkeys(("videos", "data", "diffusion_model", "text_encoder", "vae"), "x"),
             "adapter": {"name": "mine"}}
    return {**given, **changes}


@pytest.mark.parametrize("changes, words", [
    ({"trian": {}}, "the file has 'trian', which nothing reads; it may have method, files, adapter, data"),
    ({"train": {"step": 1}}, r"\[train\] has 'step'"),
    ({"train": {"steps": "many"}}, r"\[train\] steps must be .*, but is 'many'"),
    ({"train": {"steps": 1.5}}, r"\[train\] steps must be a valid integer.*, but is 1.5"),
    ({"train": {"steps": "3"}}, r"\[train\] steps must be a valid integer, but is '3'"),
    ({"train": {"cosine": 1}}, r"\[train\] cosine must be a valid boolean, but is 1"),
    ({"train": {"learning_rate": True}}, r"\[train\] learning_rate must be a valid number, but is True"),
    ({"train": {"seed": datetime.date(2026, 1, 1)}}, r"\[train\] seed must be a valid integer, but is '2026-01-01'"),
    ({"train": {"learning_rate": -math.inf}}, "learning_rate must be a finite number of more than 0, but is -inf"),
    ({"train": 5}, r"^\[train\] must be a table, but is 5\.$"), ({"files": {}}, r"\[files\] lacks 'videos'"),
    ({"files": {}}, r"\[files\] lacks 'vae'"),
    ({"data": {"face": {"crop": 1}}}, r"\[data.face\] has 'crop', which nothing reads; it may have preset, detector"),
    ({"data": {"face": {"detector": "dlib"}}}, "detector must be one of auto, .*, but is dlib"),
    ({"adapter": {"name": "../mine"}}, "must be one for a file"),
    ({"adapter": {"name": ""}}, "the name must be .*, but '' is empty"),
    ({"adapter": {"name": "mine", "rank": 0}}, "rank must be a whole number of at least 1, but is 0: the authors"),
    ({"method": "standin"}, r"^method must be one of stand_in \(an adapter for Load Stand-In\).*, but is 'standin'"),
    ({"method": ["stand_in"]}, r"^method must be one of .*, but is \['stand_in'\]"),
    ({"photos": {"fit": "tight"}}, "fit must be one of as cropped, to the clip, but is tight"),
    ({"photos": {"noise_draws": -1}}, "noise_draws must be a whole number of at least 0, but is -1"),
    ({"data": {"photos_from": "nowhere"}}, "photos_from must be one of outside the clip, the clip, but is nowhere"),
    ({"photos": {"noise_mean": math.nan}}, "noise_mean must be a finite number, but is nan"),
    ({"samples": {"steps": 0}}, "steps must be a whole number of at least 1, but is 0"),
    ({"samples": {"count": -2}}, "count must be a whole number of at least 1, but is -2"),
    ({"samples": {"shift": math.inf}}, "shift must be .*, but is inf"),
    ({"data": {"face": {"crop_scale": math.nan}}}, "crop_scale must be .*, but is nan"),
    ({"pairs": {"embedder": "facenet"}}, "embedder must be one of .*, but is facenet"),
    ({"train": {"reference_dropout": 1.0}}, "reference_dropout must be .*, but is 1: 0.1 is usual"),
    ({"train": {"cosine": True, "linear": True}}, "cosine and linear cannot both be true"),
    ({"adapter": {"name": "mine", "expert": "both"}}, "expert must be one of .*, but is both"),
    ({"adapter": {"name": "mine", "expert": "low noise"}, "train": {"noise_to": 0.9}}, "which sets the noise levels"),
    ({"pairs": {"lowest": 0.9, "highest": 0.5}}, "similarity of pairs must be .*, but is 0.9 to 0.5")])
def test_configurations_that_make_no_sense(changes, words):
    with pytest.raises(UserError, match=words):
        parse_config(table(**changes), TRAINED)


@dataclasses.dataclass(frozen=True, slots=True)
class HeadSettings(MethodSettings):
    width: int = 3


class HeadMethod:
    """What a configuration asks of another method."""

    makes, table, Settings = "a head", "head", HeadSettings
    defaults = {"train": {"learning_rate": 1e-5, "shift": 5.0}, "data": {"face": {"size": 448}}}  # noqa: RUF012


def test_a_method_brings_its_own_part_of_the_configuration():
    """Its table, its sentences, and its authors' values where the file says nothing."""
    methods = {**TRAINED, "head": HeadMethod}
    given = {key: value for key, value in table(method="head").items() if key != "adapter"}
    config = parse_config({**given, "head": {"name": "mine", "width": 4}, "train": {"shift": 3.0}}, methods)
    assert (config.method, config.settings) == ("head", HeadSettings("mine", width=4))
    assert (config.train.learning_rate, config.train.shift, config.train.warmup) == (1e-5, 3.0, 100)
    assert (config.data.face.size, config.data.face.detector) == (448, FaceSettings().detector)
    for changes, words in (({"adapter": {"name": "mine"}}, "has 'adapter', which nothing reads; it may have method, "
                                                           "files, head, data"),
                           ({}, "the file lacks 'head'"),
                           ({"head": {"name": "mine", "rank": 4}}, r"\[head\] has 'rank', which nothing reads; it may "
                                                                   "have name, expert, width"),
                           ({"head": {"name": "mine", "width": "4"}},
                            r"\[head\] width must be a valid integer, but is '4'"),
                           ({"head": {"name": "mine"}, "train": 5}, r"\[train\] must be a table, but is 5")):
        with pytest.raises(UserError, match=words):
            parse_config({**given, **changes}, methods)


def test_a_configuration_that_is_no_toml(tmp_path):
    (tmp_path / "mine.toml").write_text("[files", encoding="utf-8")
    for name in ("mine.toml", "other.toml"):
        with pytest.raises(UserError, match="cannot be read"):
            read_config(tmp_path / name, TRAINED)


def test_the_experts_are_trained_where_the_sampler_uses_them():
    """Every noise level by one of the two, and the switch where Stand-In Sampler has it."""
    boundary = SamplerSettings(0, 20, 5.0).boundary
    expected = {"single": (0.0, 1.0), "low noise": (0.0, boundary), "high noise": (boundary, 1.0)}
    for expert, levels in expected.items():
        config = parse_config(table(adapter={"name": "mine", "expert": expert}), TRAINED)
        assert (config.train.noise_from, config.train.noise_to) == levels


@pytest.mark.parametrize("blocks, dim, ffn, millions", [(30, 1536, 8960, "35.4"), (40, 5120, 13824, "157.3")])
def test_the_plan_of_the_published_models(blocks, dim, ffn, millions, tmp_path):
    """From a header alone: its tensors are not there."""
    assert tokens(81, 480, 832) == 32760
    header = {f"blocks.{i}.ffn.0.weight": {"dtype": "F8_E4M3", "shape": [ffn, dim],
                                           "data_offsets": [i * ffn * dim, (i + 1) * ffn * dim]} for i in range(blocks)}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    file = tmp_path / "wan.safetensors"
    with file.open("wb") as out:
        out.write(len(content).to_bytes(8, "little") + content)
        out.truncate(8 + len(content) + blocks * ffn * dim)  # a sparse file
    words = plan(parse_config(table(), TRAINED), StandInMethod(AdapterSettings("mine")), file)
    assert f"rank 128: {millions} M parameters" in words and f"{blocks} blocks of {dim}" in words
    assert "81 frames at 25 fps, 832x480: 32,760 tokens" in words and "512x512: 1,024 tokens" in words
    assert "with checkpointing" in words and "3,000 steps of 1 on 1 device," in words


def test_the_plan_of_another_file(tmp_path):
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="has no blocks of a Wan"):
        model_size(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        model_size(tmp_path / "y.safetensors")


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_memory_of_a_step_is_what_was_planned(checkpointing, tmp_path):
    """By PyTorch's own allocator, for a model of none of the sizes that the estimate was made from; within 15 %."""
    import comfy.sd

    sizes = TinyWan(dim=192, ffn_dim=512, heads=2, blocks=8, text_dim=64)
    loaded = comfy.sd.load_diffusion_model_state_dict(sizes.weights(), model_options={"dtype": torch.float32},
                                                      metadata=sizes.metadata())
    wan = Wan(loaded.model)
    example = Example(tiny.random(16, 3, 40, 40), tiny.random(1, 16, 1, 20, 20), tiny.random(8, 64))
    method, settings = StandInMethod(AdapterSettings("mine", rank=8)), TrainSettings(checkpointing=checkpointing)
    trainer = Trainer(method.begin(wan, 0, torch.device("cpu")), [example], settings)
    trainer.train_step()
    trainer.optimizer.zero_grad(set_to_none=True)
    measured = allocated_peak(trainer.train_step, tmp_path)
    planned = activation_bytes(method, size_of(wan), settings, 1200, 100, 4) + 4 * method.parameters(size_of(wan))
    assert planned == pytest.approx(measured, rel=0.15)


SCRIPT = """
    import runpy, sys
    sys.path[:0] = [{pack!r}, {pack!r} + "/scripts"]
    from support.environment import import_comfyui
    {accelerator}
    import_comfyui("--cpu", "--base-directory", {base!r})
    from small_world import tiny_encoders  # lets ComfyUI load the tiny text encoder
    sys.argv = ["train.py", *sys.argv[1:]]
    runpy.run_path({pack!r} + "/scripts/train.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A ComfyUI base folder with tiny models, videos of a face, and a configuration."""
    from small_world.tiny_models import write_tiny_models
    from support import moving_photo

    base = tmp_path_factory.mktemp("base")
    write_tiny_models(base / "models")
    (base / "films").mkdir()
    frames = moving_photo.video(24, 160, 120)
    for name in ("one", "two"):
        moving_photo.write_video(base / "films" / f"{name}.mp4", frames)
        (base / "films" / f"{name}.txt").write_text("a person nods", encoding="utf-8")
    (base / "films" / "broken.mp4").write_bytes(b"no video")
    (base / "films" / "broken.txt").write_text("a person", encoding="utf-8")
    (base / "mine.toml").write_text(textwrap.dedent("""
        [files]
        videos = "films"
        data = "data"
        diffusion_model = "tiny_wan_t2v.safetensors"
        text_encoder = "tiny_umt5.safetensors"
        vae = "tiny_wan_vae.safetensors"
        [adapter]
        name = "mine"
        rank = 4
        [data]
        fps = 16
        width = 64
        height = 48
        frames = 9
        references = 1
        [data.face]
        detector = "cascade"
        parser = "none"
        size = 64
        [train]
        steps = 4
        batch_size = 2
        learning_rate = 1e-3
        [samples]
        every = 2
        count = 1
        steps = 1
        """), encoding="utf-8")
    return base


def command(base, *arguments, launch=()):
    """scripts/train.py as a user starts it, with ComfyUI told of the tiny text encoder."""
    script = base / "start.py"
    script.write_text(textwrap.dedent(SCRIPT).format(
        pack=str(PACK), base=str(base),
        accelerator="import accelerate; accelerate.Accelerator()" if launch else ""), encoding="utf-8")
    # what accelerate launch calls where there are GPUs; on a CPU it would start one process
    starter = [sys.executable, *(("-m", "torch.distributed.run", "--standalone", *launch) if launch else ())]
    return subprocess.run([*starter, str(script), *arguments], capture_output=True, text=True, cwd=base, timeout=600,
                          env={**os.environ, "ACCELERATE_USE_CPU": "true"})


@pytest.fixture(scope="module")
def trained(workplace):
    """What a dry run says, which leaves nothing, and then a whole training of a folder of videos."""
    dry = command(workplace, "mine.toml", "--dry-run")
    assert dry.returncode == 0 and not (workplace / "data").exists(), dry.stderr
    done = command(workplace, "mine.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    return dry, done


def test_the_command_line(workplace, trained):
    """The plan alone; a whole training; the same again finds everything done."""
    dry, done = trained
    assert "adapter     mine, rank 4: 0.0 M parameters, single" in dry.stdout
    assert "3 videos, 4 clips" in done.stdout
    assert "broken.mp4: 0 clips; whole video: cannot be read: after 0.0 s" in done.stdout
    assert "step 4 of 4: loss" in done.stdout
    adapter = load_adapter(workplace / "models" / "stand_in" / "mine.safetensors")
    assert (adapter.rank, adapter.dim, len(adapter.blocks)) == (4, tiny.WAN.dim, tiny.WAN.blocks)
    run = workplace / "data" / "runs" / "mine"
    assert {path.name for path in (run / "samples").iterdir()} == {"step_000002.png", "step_000004.png"}
    again = command(workplace, "mine.toml")
    assert again.returncode == 0 and "step" not in again.stdout.partition("memory")[2]


# what a user changes in the documented file, here for tiny models and videos
CHANGES = {
    '"my_videos"': '"films"', '"my_data"': '"data of concat_id"',
    '"wan2.1_t2v_1.3B_fp16.safetensors"': '"tiny_wan_t2v.safetensors"',
    '"umt5_xxl_fp16.safetensors"': '"tiny_umt5.safetensors"', '"wan_2.1_vae.safetensors"': '"tiny_wan_vae.safetensors"',
    'weights = "all"': 'weights = "low rank"\nrank = 4',
    "[data]": "[data]\nwidth = 64\nheight = 48\nframes = 9\nreferences = 1", '"insightface"': '"cascade"',
    '"bisenet"': '"none"', "steps = 3000": "steps = 2\nlearning_rate = 1e-2", "batch_size = 48": "batch_size = 2",
    "warmup = 150": "warmup = 1", "every = 500": "every = 2\ncount = 1\nsteps = 1"}


def test_concat_id_from_videos_to_a_sampled_video(workplace, monkeypatch):
    """By the command and the documented file; what it writes is loaded, applied and sampled, and it reads its photo."""
    import comfy.sd
    import folder_paths

    config = (PACK / "docs" / "training_concat_id.toml").read_text(encoding="utf-8")
    for documented, tiny_one in CHANGES.items():
        assert config.count(documented) == 1
        config = config.replace(documented, tiny_one)
    (workplace / "concat_id.toml").write_text(config, encoding="utf-8")
    done = command(workplace, "concat_id.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my_concat_id, variant AdaLN, weights low rank, rank 4:" in done.stdout and "step 2 of 2" in done.stdout
    assert (workplace / "data of concat_id" / "runs" / "my_concat_id" / "samples" / "step_000002.png").is_file()

    models = workplace / "models" / "diffusion_models"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(models)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("diffusion_models", None)
    with torch.inference_mode():
        model, concat_id = pack.node_classes()["LoadConcatID"].execute(
            file="my_concat_id.safetensors", weight_dtype="default").args
        before = safetensors.torch.load_file(models / "tiny_wan_t2v.safetensors")
        after = model.model.diffusion_model.state_dict()
        changed = {key for key, tensor in before.items() if not torch.equal(tensor, after[key].to(tensor.dtype))}
        assert changed == {f"blocks.{i}.{layer}.weight" for i in range(tiny.WAN.blocks) for layer in LAYERS}
        assert not torch.equal(concat_id.own.blocks, concat_id.marks)  # of which it was a copy
        vae, latent = comfy.sd.VAE(sd=vae_weights()), torch.zeros(1, 16, 3, 6, 8)
        prompt = [[tiny.random(1, 5, TinyWan().text_dim), {}]]

        def sampled(photo):
            applied = pack.node_classes()["ApplyConcatID"].execute(
                model=model, concat_id=concat_id, latent={"samples": latent}, vae=vae, reference_image=photo,
                start_percent=0.0, end_percent=1.0, guidance="both passes", guidance_scale=1.0).args[0]
            return tiny.sample(applied, latent, prompt, prompt, steps=1)

        (dark, (report,)), (light, _) = (sampled(torch.full((1, 32, 32, 3), value)) for value in (0.2, 0.8))
        assert report.identity_calls == report.model_calls > 0 and torch.isfinite(dark).all()
        assert (dark - light).abs().mean() > 1e-3
    folder_paths.filename_list_cache.pop("diffusion_models", None)


def test_the_documented_configurations():
    """The trainer reads both as they are. What Concat-ID's does not say has the values of its authors."""
    stand_in, concat_id = (read_config(PACK / "docs" / f"{name}.toml", TRAINED)
                           for name in ("training", "training_concat_id"))
    assert stand_in.settings == AdapterSettings("my_stand_in") and stand_in.files.videos.endswith("my_videos")
    assert (stand_in.data.frames, stand_in.train.batch_size, stand_in.train.shift) == (81, 48, 1.0)
    assert concat_id.settings == ConcatIDSettings("my_concat_id") and concat_id.pairs is None
    assert (concat_id.data.fps, concat_id.data.face.preset, concat_id.data.face.detector, concat_id.photos.fit) == (
        16.0, "Concat-ID", "insightface", "to the clip")
    assert (concat_id.train.batch_size, concat_id.train.shift, concat_id.train.reference_dropout) == (48, 5.0, 0.1)


def test_a_plan_needs_no_device(workplace):
    """Nor a driver of one, without which ComfyUI does not start by itself."""
    env = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    result = subprocess.run([sys.executable, str(PACK / "scripts" / "train.py"), "mine.toml", "--dry-run",
                             "--base-directory", str(workplace)], capture_output=True, text=True, cwd=workplace,
                            env={**env, "CUDA_VISIBLE_DEVICES": ""}, timeout=600)
    assert result.returncode == 0 and "memory      about" in result.stdout, result.stdout + result.stderr


def test_two_processes_train_as_one(workplace, trained):
    """The same steps shared by two processes of accelerate give the same adapter, but for the order of a sum."""
    config = (workplace / "mine.toml").read_text(encoding="utf-8")
    (workplace / "shared.toml").write_text(config.replace('name = "mine"', 'name = "shared"'), encoding="utf-8")
    shared = command(workplace, "shared.toml", launch=("--nproc-per-node", "2"))
    assert shared.returncode == 0, shared.stdout + shared.stderr
    assert "on 2 devices" in shared.stdout and shared.stdout.count("step 4 of 4") == 1
    first, second = (safetensors.torch.load_file(workplace / "models" / "stand_in" / f"{name}.safetensors")
                     for name in ("mine", "shared"))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=0, atol=2e-5)  # a fiftieth of a step of AdamW


def test_the_command_says_what_is_wrong(workplace):
    config = (workplace / "mine.toml").read_text(encoding="utf-8")
    (workplace / "bad.toml").write_text(config.replace("tiny_wan_t2v", "another"), encoding="utf-8")
    result = command(workplace, "bad.toml")
    assert result.returncode == 1 and "Traceback" not in result.stderr + result.stdout
    assert "stopped: there is no another.safetensors among ComfyUI's diffusion_models" in result.stdout
    assert "tiny_wan_t2v.safetensors" in result.stdout
