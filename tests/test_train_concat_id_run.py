"""Train Concat-ID as its node calls the engine: on models that ComfyUI's loaders made, from shards to the file."""
import dataclasses
import json

import comfy.sd
import nodes
import pytest
import safetensors
import safetensors.torch
import torch

import tiny
from small_world.tiny_models import TinyWan, adapter_weights, concat_id_weights, lora_weights
from standin_core.train.data.recipe import AS_CROPPED, TO_CLIP
from standin_core.train.data.shards import Example, write_shards
from support import pack
from tolerances import relative_rms

NAME, PLAIN, VACE, ADALN = "mine", "wan.safetensors", "vace.safetensors", "adaln.safetensors"
STEPS = 60
KINDS = [{}, {"variant": "first stage"}, {"weights": "low rank", "rank": 4}]


def part(name):
    return pack.module(f"standin_core.{name}")


@pytest.fixture
def files(diffusion_models):
    """A plain Wan, a VACE and an AdaLN, as a user has them."""
    for name, weights in ((PLAIN, tiny.WAN.weights()), (VACE, tiny.WAN.vace_weights()),
                          (ADALN, concat_id_weights(tiny.WAN))):
        safetensors.torch.save_file(weights, diffusion_models / name, tiny.WAN.metadata())
    return diffusion_models


@pytest.fixture
def examples():
    """Two clips with one caption and opposite contents, which the photo alone tells apart."""
    photo, context = tiny.random(16, 1, 1, 1, seed=2).expand(16, 1, 6, 10), tiny.random(5, tiny.WAN.text_dim, seed=3)
    return {f"clip {sign:+}": Example(video=(sign * photo).repeat(1, 3, 1, 1), photos=sign * photo[None],
                                      context=context) for sign in (1, -1)}


def shards_of(folder, examples, fit=TO_CLIP):
    list(write_shards(folder, list(examples), lambda missing: iter(examples.items()), fit))
    return folder


@pytest.fixture
def shards(tmp_path, examples):
    return shards_of(tmp_path / "data" / "shards", examples)


def loaded(name=PLAIN):
    return nodes.UNETLoader().load_unet(name, "default")[0]


def with_record(file=ADALN):
    return pack.node_classes()["LoadConcatID"].execute(file=file, weight_dtype="default").args


def trained(model, shards, start_from=None, steps=1, on_step=lambda step, loss: None, kind=None, **settings):
    training = part("concat_id.training")
    return training.train_concat_id(
        model, shards, training.ConcatIDSettings(NAME, **(kind or {})),
        part("train.settings").TrainSettings(steps=steps, warmup=1, **settings), on_step, start_from=start_from)


def refusal(*args, **kwargs):
    with pytest.raises(part("errors").UserError) as refused:
        trained(*args, **kwargs)
    return str(refused.value)


def velocity(model, concat_id, photo, noise, context):
    """Through Apply Concat-ID."""
    applied = pack.node_classes()["ApplyConcatID"].execute(
        model=model, concat_id=concat_id, latent={"samples": noise}, start_percent=0.0, end_percent=1.0,
        reference_latent={"samples": model.model.process_latent_out(photo)}, guidance="both passes",
        guidance_scale=1.0).args[0]
    return tiny.velocity(applied, noise, context)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_learns_a_clip_by_its_photo(files, shards, examples, kind):
    """The loss falls; what comes back are the model and the record of the file, which know each clip by its photo. The
    model that came in samples as before."""
    model, losses = loaded(), []
    before = tiny.sample(model)[0]
    made, concat_id, folder = trained(
        model, shards, steps=STEPS, on_step=lambda step, loss: losses.append(loss), kind=kind,
        learning_rate=2e-2 if "rank" in kind else 2e-3)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert len((folder / "loss.jsonl").read_text(encoding="utf-8").splitlines()) == STEPS
    assert folder == shards.parent / "runs" / NAME and (concat_id.own is None) == ("variant" in kind)
    noise = tiny.random(1, 16, 3, 6, 10, seed=9)
    for example in examples.values():
        by_its_own, by_the_other = (
            float((velocity(made, concat_id, photo, noise, example.context[None]) - (noise - example.video)).square()
                  .mean()) for photo in (example.photos, -example.photos))
        assert by_the_other > 2 * by_its_own
    _, again = with_record(f"{NAME}.safetensors")
    assert again.sha256 == concat_id.sha256 and torch.equal(tiny.sample(model)[0], before)


def test_it_goes_on(files, shards):
    """More steps of the same training begin where it stopped, and replace its file."""
    reached = []
    for steps in (2, 4):
        trained(loaded(), shards, steps=steps, on_step=lambda step, loss: reached.append(step))
        with safetensors.safe_open(files / f"{NAME}.safetensors", "pt") as file:
            assert (file.metadata()["steps"], file.metadata()["base_model"]) == (str(steps), PLAIN)
            assert json.loads(file.metadata()["config"]) == json.loads(tiny.WAN.metadata()["config"])
    assert reached == [1, 2, 3, 4]


def test_from_a_concat_id(files, shards):
    """It begins with the modulation of that file: one step of nearly nothing leaves it there."""
    model, record = with_record()
    _, concat_id, _ = trained(model, shards, record, learning_rate=1e-9)
    for found, began in zip((concat_id.own.weight, concat_id.own.blocks, concat_id.marks),
                            (record.own.weight, record.own.blocks, record.marks), strict=True):
        assert relative_rms(found, began) < 1e-6
    assert relative_rms(record.own.weight, tiny.WAN.weights()["time_projection.1.weight"]) > 0.1


def test_two_people(files, tmp_path, examples):
    """The data say how many."""
    two = {name: dataclasses.replace(example, photos=torch.cat((example.photos, -example.photos), dim=2))
           for name, example in examples.items()}
    _, concat_id, _ = trained(loaded(), shards_of(tmp_path / "data" / "shards", two))
    assert concat_id.references == 2


def test_models_that_it_refuses(files, shards):
    model, record = with_record()
    assert "concat_id is not connected" in refusal(model, shards)
    assert "concat_id is not connected" in refusal(model.clone(), shards)
    assert "the model does not have the weights of adaln.safetensors" in refusal(
        tiny.load(TinyWan(text_dim=32, seed=5).weights()), shards, record)
    assert "variant is first stage" in refusal(model, shards, record, kind={"variant": "first stage"})
    assert "takes more than noise and text" in refusal(loaded(VACE), shards)
    assert not list(files.glob(f"{NAME}*"))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("inference", [True, False])
def test_the_model_that_comes_in_stays_as_it_is(files, shards, kind, inference):
    """However it was loaded: in ComfyUI's inference mode, or outside of it."""
    with torch.inference_mode(inference):
        model = comfy.sd.load_diffusion_model(str(files / PLAIN), {"dtype": torch.bfloat16})
        network, flags = model.model.diffusion_model, ("comfy_cast_weights", "training")
        before = {name: (tensor, tensor.clone(), tensor.device, tensor.requires_grad)
                  for name, tensor in network.named_parameters()}
        modules = [(type(each), {flag: getattr(each, flag, None) for flag in flags}) for each in network.modules()]
        trained(model, shards, kind=kind, learning_rate=1e-2)
    after = dict(network.named_parameters())
    assert after.keys() == before.keys()
    for name, (tensor, values, device, requires_grad) in before.items():
        found = after[name]
        assert found is tensor and (found.dtype, found.device, found.requires_grad) == (
            values.dtype, device, requires_grad), name
        assert torch.equal(found, values), name
    assert modules == [(type(each), {flag: getattr(each, flag, None) for flag in flags}) for each in network.modules()]


@pytest.mark.parametrize("load", [comfy.sd.load_lora_for_models, comfy.sd.load_bypass_lora_for_models],
                         ids=["on the weights", "beside the layers"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_model_with_a_lora_is_refused(files, shards, load, kind):
    """It would be in the file too, or the training would not see it."""
    model, _ = load(loaded(), None, lora_weights(), 1.0, 0.0)
    words = refusal(model, shards, kind=kind)
    assert words.startswith("the model has a LoRA or another patch on it") and "put the LoRA on the trained" in words


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."], ids=["native", "of a checkpoint"])
def test_an_adaln_file_through_load_diffusion_model_is_refused(files, shards, prefix):
    """Its own modulation is lost there; the record of Load Concat-ID has it, and the training begins with that."""
    safetensors.torch.save_file({prefix + key: tensor for key, tensor in concat_id_weights(tiny.WAN).items()},
                                files / ADALN, tiny.WAN.metadata())
    words = refusal(loaded(ADALN), shards)
    assert words.startswith("adaln.safetensors is an AdaLN Concat-ID") and "load it with Load Concat-ID" in words
    _, record = with_record()
    _, concat_id, _ = trained(loaded(ADALN), shards, record, learning_rate=1e-9)
    assert relative_rms(concat_id.own.weight, record.own.weight) < 1e-6


def test_a_model_whose_file_is_gone_is_refused(files, shards):
    model = loaded()
    (files / PLAIN).unlink()
    assert "wan.safetensors cannot be read as weights (FileNotFoundError): put the file back" in refusal(model, shards)


def with_stand_in(model):
    adapter = part("stand_in.adapter").parse_adapter(adapter_weights(), "tiny_stand_in.safetensors", sha256="0" * 64)
    return part("stand_in.apply").apply_identity_branch(model, adapter, tiny.random(1, 16, 1, 8, 16))


def with_concat_id(model):
    latent = {"samples": torch.zeros(tiny.LATENT)}
    return part("concat_id.apply").apply_concat_id(
        model, with_record(PLAIN)[1], latent, latent={"samples": tiny.random(1, 16, 1, *tiny.LATENT[-2:])})


@pytest.mark.parametrize("identity", [with_stand_in, with_concat_id])
def test_a_model_with_an_identity_is_refused(files, shards, identity):
    """By both trainings, also behind another patch."""
    model = identity(loaded()).clone()
    words = "the model has an identity on it already"
    assert words in refusal(model, shards)
    training = part("stand_in.training")
    with pytest.raises(part("errors").UserError, match=words):
        training.train_adapter(model, shards, training.AdapterSettings(NAME), part("train.settings").TrainSettings(),
                               lambda step, loss: None)


def test_data_of_the_other_method_are_refused(files, tmp_path, examples):
    """Though their sizes would fit."""
    for_stand_in, for_concat_id = (shards_of(tmp_path / f"data {fit}" / "shards", examples, fit)
                                   for fit in (AS_CROPPED, TO_CLIP))
    assert "encoded as they were cropped, at 80x48" in refusal(loaded(), for_stand_in)
    training = part("stand_in.training")
    with pytest.raises(part("errors").UserError, match="fitted to the clip, as Concat-ID needs them"):
        training.train_adapter(loaded(), for_concat_id, training.AdapterSettings(NAME),
                               part("train.settings").TrainSettings(), lambda step, loss: None)
