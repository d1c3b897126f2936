"""Training in a real server: core's dataset node, the pack's nodes, and what was trained at work, in one graph."""
import numpy as np
import PIL.Image
import pytest

from small_world.tiny_models import ADAPTER, CONCAT_ID, DIFFUSION_MODEL, TEXT_ENCODER, VAE
from standin_core.stand_in.adapter import load_adapter
from support.comfyui_server import PromptFailed

STEPS = 3


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(people, **training):
    return {
        "videos": node("LoadVideoTextDataSetFromFolder", folder=people),
        "vae": node("VAELoader", vae_name=VAE),
        "clip": node("CLIPLoader", clip_name=TEXT_ENCODER, type="wan", device="default"),
        "model": node("UNETLoader", unet_name=DIFFUSION_MODEL, weight_dtype="default"),
        "data": node("PrepareTrainingData", videos=["videos", 0], captions=["videos", 1], vae=["vae", 0],
                     clip=["clip", 0], name="people", width=64, height=48, frames=9, fps=16.0, references=1,
                     references_from="same video", lowest_similarity=0.7, highest_similarity=0.9,
                     preset="Stand-In inference", photo_size=64, detector="cascade", download_missing=False, seed=0),
        "training": node("TrainStandIn", **{
            "model": ["model", 0], "training_data": ["data", 0], "name": "of_people", "steps": STEPS, "batch_size": 2,
            "learning_rate": 1e-2, "rank": 8, "expert": "single", "shift": 1.0, "ema": 0.0, "checkpointing": True,
            "sample_every": 2, "seed": 0, "vae": ["vae", 0], **training}),
    }


def concat_id_graph(people, data=(), **training):
    """data: what differs in Prepare Training Data."""
    prompt = graph(people)
    prompt["data"]["inputs"] |= {"name": "for_concat_id", "method": "Concat-ID", "noise_draws": 2, **dict(data)}
    prompt["training"] = node("TrainConcatID", **{
        "model": ["model", 0], "training_data": ["data", 0], "name": "concat_id_of_people", "variant": "AdaLN",
        "weights": "all", "steps": STEPS, "batch_size": 2, "learning_rate": 1e-3, "rank": 8, "reference_dropout": 0.1,
        "shift": 5.0, "ema": 0.0, "checkpointing": True, "sample_every": 2, "seed": 0, "vae": ["vae", 0], **training})
    return prompt


def with_sampling(prompt, adapter):
    """The same model with an adapter, sampled for one step; frames are saved as pictures."""
    return sampled(prompt, node(
        "ApplyIdentityBranch", model=["model", 0], stand_in=adapter, vae=["vae", 0], reference_image=["photo", 0],
        strength=1.0, start_percent=0.0, end_percent=1.0, time_offset=-1, attention="auto", first_block=0,
        last_block=-1, guidance="both passes", guidance_scale=1.0, normalize_references=False, cache="auto"))


def with_concat_id(prompt, loader):
    """The two outputs of a node, a reference on them, and the frames as above."""
    return sampled(prompt, node(
        "ApplyConcatID", model=[loader, 0], concat_id=[loader, 1], latent=["latent", 0], vae=["vae", 0],
        reference_image=["photo", 0], start_percent=0.0, end_percent=1.0, guidance="both passes", guidance_scale=1.0))


def sampled(prompt, applied):
    """applied: the node that puts an identity on a model."""
    return {**prompt, "applied": applied,
            "photo": node("EmptyImage", width=64, height=64, batch_size=1, color=0x906040),
            "words": node("CLIPTextEncode", clip=["clip", 0], text="a person nods"),
            "latent": node("EmptyHunyuanLatentVideo", width=64, height=48, length=9, batch_size=1),
            "sampler": node("StandInSampler", model=["applied", 0], positive=["words", 0], negative=["words", 0],
                            latent_image=["latent", 0], seed=1, steps=1, cfg=1.0, sampler_name="euler",
                            scheduler="flow_matching", shift=5.0, denoise=1.0, boundary=0.875, attention_map=False),
            "frames": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
            "saved": node("SaveImage", images=["frames", 0], filename_prefix="trained")}


def pictures(server, result):
    return np.stack([np.asarray(PIL.Image.open(server.path_of(item))) for item in result.outputs["saved"]["images"]])


def test_from_videos_to_a_video(server, people):
    """What Train Stand-In hands on is what Load Stand-In reads from the file that it wrote."""
    result = server.run(with_sampling(graph(people), ["training", 0]))
    assert "2 videos, 4 clips" in result.outputs["data"]["text"][0]
    sizes = [PIL.Image.open(server.path_of(item)).size for item in result.outputs["training"]["images"]]
    assert sizes == [(960, 360), (48 + 4 * 64, 4 * (48 + 4))]
    adapter = load_adapter(server.base / "models" / "stand_in" / "of_people.safetensors")
    assert adapter.rank == 8
    loaded = with_sampling({key: node for key, node in graph(people).items() if key in ("vae", "clip", "model")} | {
        "adapter": {"class_type": "LoadStandIn", "inputs": {"adapter": "of_people.safetensors"}}}, ["adapter", 0])
    other = {**loaded, "adapter": {"class_type": "LoadStandIn", "inputs": {"adapter": ADAPTER}}}
    found, again, another = (pictures(server, server.run(prompt)) for prompt in (
        with_sampling(graph(people), ["training", 0]), loaded, other))
    assert np.array_equal(found, again) and not np.array_equal(found, another)


def test_the_model_is_as_it_was(server, people):
    """After a training in the same server, the same seed gives the same frames."""
    plain = with_sampling({key: node for key, node in graph(people).items() if key in ("vae", "clip", "model")} | {
        "adapter": {"class_type": "LoadStandIn", "inputs": {"adapter": ADAPTER}}}, ["adapter", 0])
    before = pictures(server, server.run(plain))
    server.run(graph(people, name="another_run", seed=5))
    plain["sampler"]["inputs"]["seed"] = 2
    server.run(plain)  # so that the server does not answer from its cache
    plain["sampler"]["inputs"]["seed"] = 1
    assert np.array_equal(pictures(server, server.run(plain)), before)


def test_more_steps_go_on(server, people):
    server.run(graph(people))
    server.run(graph(people, steps=STEPS + 2))
    lines = (server.base / "output" / "stand_in_training" / "people" / "runs" / "of_people" / "loss.jsonl").read_text()
    assert [f'"step": {step},' in line for step, line in enumerate(lines.splitlines(), start=1)] == [True] * 5


@pytest.mark.parametrize("changes, words", [
    ({"name": "../elsewhere"}, "must be one for a file, without folders"),
    ({"learning_rate": 0.0}, "learning_rate must be a finite number of more than 0, but is 0"),
    ({"name": "of_people", "rank": 4, "steps": 50}, "is there already and comes from another training")])
def test_what_cannot_be(server, people, changes, words):
    server.run(graph(people))
    with pytest.raises(PromptFailed) as failure:
        server.run(graph(people, **changes))
    assert words in str(failure.value)


def without_training(people):
    return {key: each for key, each in graph(people).items() if key in ("vae", "clip", "model")}


def test_concat_id_from_videos_to_a_video(server, people):
    """What Train Concat-ID hands on is what Load Concat-ID reads from the file that it wrote. The model that came in
    samples as before.
    """
    plain = with_sampling(without_training(people) | {"adapter": node("LoadStandIn", adapter=ADAPTER)}, ["adapter", 0])
    before = pictures(server, server.run(plain))
    result = server.run(with_concat_id(concat_id_graph(people), "training"))
    sizes = [PIL.Image.open(server.path_of(item)).size for item in result.outputs["training"]["images"]]
    assert sizes == [(960, 360), (5 * 64, 4 * (48 + 4))]  # the photo is as large as a frame
    loaded = with_concat_id(without_training(people) | {
        "loader": node("LoadConcatID", file="concat_id_of_people.safetensors", weight_dtype="default")}, "loader")
    other = {**loaded, "loader": node("LoadConcatID", file=CONCAT_ID, weight_dtype="default")}
    found, again, another = (pictures(server, answer) for answer in (result, server.run(loaded), server.run(other)))
    assert np.array_equal(found, again) and not np.array_equal(found, another)
    for seed in (2, 1):  # so that the server does not answer from its cache
        plain["sampler"]["inputs"]["seed"] = seed
        after = pictures(server, server.run(plain))
    assert np.array_equal(after, before)


@pytest.mark.parametrize("data, lines", [
    ({}, []),
    ({"noise_draws": 7}, ["Stand-In sets aside noise_draws 7 (it has 0)"]),
    ({"preset": "Concat-ID"}, ["Stand-In sets aside photo_size 64 (it has 448)"]),
    ({"method": "Concat-ID", "noise_draws": 1, "preset": "Concat-ID", "photo_size": 448}, []),
    ({"method": "Concat-ID", "noise_draws": 1, "fps": 25.0}, [
        "Concat-ID sets aside preset Stand-In inference (it has Concat-ID), photo_size 64 (it has 448)",
        "fps is 25 as set; the Concat-ID authors use 16"])])
def test_the_report_says_what_the_method_does_not_read(server, people, data, lines):
    prompt = {key: each for key, each in graph(people).items() if key in ("videos", "vae", "clip", "data")}
    prompt["data"]["inputs"] |= {"name": "-".join(map(str, data.values())) or "plain", **data}
    prompt["shown"] = node("PreviewAny", source=["data", 1])
    result = server.run(prompt)
    counted, *found = result.outputs["data"]["text"][0].splitlines()
    assert counted.startswith("2 videos") and [line for line in found if not line.startswith("dropped")] == lines
    assert result.outputs["shown"]["text"] == result.outputs["data"]["text"]


def test_concat_id_goes_on_from_a_concat_id(server, people):
    prompt = concat_id_graph(people, name="from_another")
    prompt["model"] = node("LoadConcatID", file=CONCAT_ID, weight_dtype="default")
    with pytest.raises(PromptFailed, match="concat_id is not connected"):
        server.run(prompt)
    prompt["training"]["inputs"]["concat_id"] = ["model", 1]
    server.run(prompt)
    assert (server.base / "models" / "diffusion_models" / "from_another.safetensors").is_file()


@pytest.mark.parametrize("changes, words", [
    ({"data": {"method": "Stand-In", "name": "people"}}, "as they were cropped, at 64x64, but Concat-ID"),
    ({"data": {"name": "people"}}, "was made with other settings (face)"),
    ({"data": {"method": "Stand-In", "name": "two people", "people": 2}}, "only Concat-ID is trained on several"),
    ({"weights": "low rank", "rank": 4, "name": "concat_id_of_people"},
     "is there already and comes from another training"),
    ({"model": ["applied", 0]}, "the model has an identity on it already")])
def test_what_concat_id_cannot_be(server, people, changes, words):
    server.run(graph(people))
    server.run(concat_id_graph(people))
    prompt = concat_id_graph(people, **changes)
    branch = with_sampling({"adapter": node("LoadStandIn", adapter=ADAPTER)}, ["adapter", 0])
    with pytest.raises(PromptFailed) as failure:
        server.run({**prompt, **{key: branch[key] for key in ("adapter", "photo", "applied")}})
    assert words in str(failure.value)


def test_stand_in_refuses_data_of_concat_id(server, people):
    prompt = graph(people, name="another_adapter")
    prompt["data"] = concat_id_graph(people)["data"]
    with pytest.raises(PromptFailed, match="the data's photos are fitted to the clip, as Concat-ID needs them"):
        server.run(prompt)
