"""Training in a real server: core's dataset node, the two nodes of the pack, and the adapter at work, in one graph."""
import numpy as np
import PIL.Image
import pytest

from small_world.tiny_models import ADAPTER, DIFFUSION_MODEL, TEXT_ENCODER, VAE
from standin_core.stand_in.adapter import load_adapter
from support.comfyui_server import PromptFailed

STEPS = 3


def graph(people, **training):
    def node(kind, **inputs):
        return {"class_type": kind, "inputs": inputs}

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


def with_sampling(prompt, adapter):
    """The same model with an adapter, sampled for one step; frames are saved as pictures."""
    def node(kind, **inputs):
        return {"class_type": kind, "inputs": inputs}

    return {**prompt,
            "photo": node("EmptyImage", width=64, height=64, batch_size=1, color=0x906040),
            "branch": node("ApplyIdentityBranch", model=["model", 0], stand_in=adapter, vae=["vae", 0],
                           reference_image=["photo", 0], strength=1.0, start_percent=0.0, end_percent=1.0,
                           time_offset=-1, attention="auto", first_block=0, last_block=-1, guidance="both passes",
                           guidance_scale=1.0, normalize_references=False, cache="auto"),
            "words": node("CLIPTextEncode", clip=["clip", 0], text="a person nods"),
            "latent": node("EmptyHunyuanLatentVideo", width=64, height=48, length=9, batch_size=1),
            "sampler": node("StandInSampler", model=["branch", 0], positive=["words", 0], negative=["words", 0],
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
    ({"name": "../elsewhere"}, "needed is one for a file, without folders"),
    ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ({"name": "of_people", "rank": 4, "steps": 50}, "is there already, and not of this training")])
def test_what_cannot_be(server, people, changes, words):
    server.run(graph(people))
    with pytest.raises(PromptFailed) as failure:
        server.run(graph(people, **changes))
    assert words in str(failure.value)
