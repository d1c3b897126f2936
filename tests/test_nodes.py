"""The nodes, loaded by ComfyUI's loader: their interface is frozen here, because workflows depend on it."""
import inspect
import subprocess
import sys

import pytest
import torch
from comfy_api.latest import io

import tiny
from support import pack
from support.environment import PACK

# node -> inputs and outputs, in the order that saved workflows rely on
INTERFACE = {
    "LoadStandIn": (["adapter"], ["STAND_IN"]),
    "FacePreprocess": (
        ["image", "preset", "detector", "which_face", "face_index", "no_face", "crop_scale", "size", "background",
         "parser", "download_missing", "min_score", "border_rule", "keep", "normalization", "feather", "level_eyes",
         "balance_colors", "face_box", "face_mask", "face_landmarks", "subject_mask"],
        ["IMAGE", "MASK", "IMAGE", "IMAGE", "STRING", "FACE_CROP"]),
    "FaceSwapPrepare": (
        ["images", "face", "detector", "which_face", "face_index", "smoothing", "hold_frames", "download_missing",
         "min_score", "face_box", "face_mask", "face_landmarks"], ["IMAGE", "MASK", "INT", "INT", "INT", "STRING"]),
    "FaceSwapEncode": (["images", "mask", "vae", "background", "mask_edge"], ["LATENT"]),
    "FaceSwapComposite": (["source", "images", "mask", "feather", "color_match", "color_region"], ["IMAGE"]),
    "ApplyIdentityBranch": (
        ["model", "stand_in", "vae", "reference_image", "reference_latent", "strength", "start_percent", "end_percent",
         "time_offset", "attention", "reference_mask", "region", "strength_schedule", "first_block", "last_block",
         "guidance", "guidance_scale", "normalize_references", "cache", "person", "preset"], ["MODEL"]),
    "StandInSampler": (
        ["model", "low_noise_model", "positive", "negative", "latent_image", "seed", "steps", "cfg", "sampler_name",
         "scheduler", "shift", "denoise", "boundary", "attention_map"],
        ["LATENT", "STRING", "IDENTITY_ATTENTION_MAP", "STRING"]),
    "IdentityReport": (
        ["images", "reference_image", "clip_vision", "embedder", "region", "min_score"],
        ["IMAGE", "IMAGE", "STRING", "STRING"]),
    "IdentityAttentionMap": (
        ["images", "attention_map", "person", "first_block", "last_block", "opacity", "trim_latent"],
        ["IMAGE", "MASK", "STRING"]),
    "PrepareTrainingData": (
        ["videos", "captions", "vae", "clip", "name", "width", "height", "frames", "fps", "references",
         "references_from", "lowest_similarity", "highest_similarity", "preset", "photo_size", "detector",
         "download_missing", "seed", "clip_vision", "method", "people", "noise_draws"],
        ["STAND_IN_TRAINING_DATA", "STRING"]),
    "LoadIDAnimator": (["adapter"], ["ID_ANIMATOR"]),
    "ApplyIDAnimator": (
        ["model", "id_animator", "clip_vision", "reference_image", "strength", "start_percent", "end_percent",
         "lora_strength", "person"], ["MODEL"]),
    "TrainStandIn": (
        ["model", "training_data", "name", "steps", "batch_size", "learning_rate", "rank", "expert", "shift", "ema",
         "checkpointing", "sample_every", "seed", "start_from", "vae"], ["STAND_IN", "IMAGE", "IMAGE"]),
    "TrainConcatID": (
        ["model", "training_data", "name", "variant", "weights", "steps", "batch_size", "learning_rate", "rank",
         "reference_dropout", "shift", "ema", "checkpointing", "sample_every", "seed", "concat_id", "vae"],
        ["MODEL", "CONCAT_ID", "IMAGE", "IMAGE"]),
    "LoadConcatID": (["file", "weight_dtype"], ["MODEL", "CONCAT_ID"]),
    "ApplyConcatID": (
        ["model", "concat_id", "latent", "vae", "reference_image", "reference_latent", "start_percent", "end_percent",
         "guidance", "guidance_scale", "person"], ["MODEL"]),
    "SavePerson": (
        ["photos", "name", "vae", "latent", "clip_vision", "preset", "which_face", "face_index", "replace",
         "download_missing", "detector", "min_score"], ["PERSON"]),
    "BestOfN": (
        ["images", "reference_image", "clip_vision", "seeds", "frames_per_video", "embedder", "region", "min_score",
         "most_copied"], ["IMAGE", "INT", "IMAGE", "STRING", "STRING"]),
    "RefineFacesPrepare": (
        ["images", "which_face", "face_index", "largest_face", "crop_scale", "size", "smoothing", "hold_frames",
         "download_missing", "detector", "min_score", "face_box", "face_mask", "face_landmarks"],
        ["IMAGE", "MASK", "FACE_TRACK", "STRING"]),
    "RefineFacesComposite": (
        ["source", "images", "mask", "face_track", "feather", "color_match", "color_region"], ["IMAGE", "IMAGE"]),
    "LoadPerson": (["person"], ["PERSON", "IMAGE", "IMAGE", "MASK", "FACE_CROP"]),
}
DEFAULTS = {
    "FacePreprocess": {"face_index": 0, "crop_scale": 1.5, "size": 512, "background": "preset",
                       "download_missing": False, "min_score": 0.5, "feather": 0, "level_eyes": False,
                       "balance_colors": False, "detector": "auto"},
    "FaceSwapPrepare": {"face_index": 0, "smoothing": 0.5, "hold_frames": 8, "download_missing": False,
                        "min_score": 0.5, "detector": "auto"},
    "FaceSwapComposite": {"feather": 12, "color_match": 1.0},
    "ApplyIdentityBranch": {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "time_offset": -1,
                            "attention": "auto", "first_block": 0, "last_block": -1, "guidance_scale": 1.0,
                            "normalize_references": False},
    "StandInSampler": {"steps": 20, "cfg": 5.0, "sampler_name": "euler", "scheduler": "flow_matching", "shift": 5.0,
                       "denoise": 1.0, "boundary": 0.875, "attention_map": False},
    "ApplyIDAnimator": {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "lora_strength": 1.0},
    "IdentityReport": {"min_score": 0.5},
    "IdentityAttentionMap": {"person": 0, "first_block": 0, "last_block": -1, "opacity": 0.6, "trim_latent": 0},
    "PrepareTrainingData": {"width": 832, "height": 480, "frames": 81, "fps": 25.0, "references": 5,
                            "lowest_similarity": 0.7, "highest_similarity": 0.9, "photo_size": 512, "detector": "auto",
                            "download_missing": False, "seed": 0, "people": 1, "noise_draws": 4},
    "ApplyConcatID": {"start_percent": 0.0, "end_percent": 1.0, "guidance_scale": 1.0},
    "BestOfN": {"frames_per_video": 0, "min_score": 0.5, "most_copied": 0.8},
    "RefineFacesPrepare": {"face_index": 0, "largest_face": 128, "crop_scale": 2.5, "size": 624, "smoothing": 0.5,
                           "hold_frames": 8, "download_missing": False, "detector": "auto", "min_score": 0.5},
    "RefineFacesComposite": {"feather": 24, "color_match": 1.0},
    "SavePerson": {"face_index": 0, "download_missing": False, "detector": "auto", "min_score": 0.5},
    "TrainStandIn": {"steps": 3000, "batch_size": 1, "learning_rate": 1e-4, "rank": 128, "shift": 1.0, "ema": 0.0,
                     "checkpointing": True, "sample_every": 500, "seed": 0},
    "TrainConcatID": {"variant": "AdaLN", "weights": "all", "steps": 3000, "batch_size": 1, "learning_rate": 1e-5,
                      "rank": 128, "reference_dropout": 0.1, "shift": 5.0, "ema": 0.0, "checkpointing": True,
                      "sample_every": 500, "seed": 0},
}


def schema(node_id):
    return pack.node_classes()[node_id].GET_SCHEMA()


def test_the_nodes_of_the_pack():
    assert set(pack.node_classes()) == set(INTERFACE)


@pytest.mark.parametrize("node_id", INTERFACE)
def test_interface(node_id):
    inputs, outputs = INTERFACE[node_id]
    found = schema(node_id)
    assert [each.id for each in found.inputs] == inputs
    assert [each.io_type for each in found.outputs] == outputs
    assert {each.id: each.default for each in found.inputs
            if each.id in DEFAULTS.get(node_id, {})} == DEFAULTS.get(node_id, {})


@pytest.mark.parametrize("node_id", INTERFACE)
def test_everything_is_explained(node_id):
    found = schema(node_id)
    assert found.description and found.category in ("Stand-In", "Stand-In/training")
    for each in (*found.inputs, *found.outputs):
        assert each.tooltip and each.tooltip.endswith("."), f"{node_id}.{each.id} needs a tooltip"


# what a user types into the page's search -> what must be among the answers
SEARCHED = {
    "stand in": set(INTERFACE), "stand-in": set(INTERFACE),
    "identity": {"FacePreprocess", "ApplyIdentityBranch", "ApplyConcatID", "ApplyIDAnimator", "IdentityReport"},
    "face": {"FacePreprocess", "ApplyIdentityBranch", "ApplyConcatID", "ApplyIDAnimator"},
    "likeness": {"IdentityReport", "BestOfN", "ApplyIdentityBranch", "ApplyConcatID", "ApplyIDAnimator"},
    "person": {"FacePreprocess", "SavePerson", "LoadPerson", "ApplyIdentityBranch", "ApplyConcatID", "ApplyIDAnimator"},
    "ipadapter": {"ApplyIdentityBranch", "ApplyIDAnimator"},
    "id": {"ApplyIdentityBranch"},
}


@pytest.mark.skipif("search_aliases" not in io.Schema.__dataclass_fields__, reason="this ComfyUI knows no aliases")
@pytest.mark.parametrize("words", SEARCHED)
def test_the_search_finds_what_a_user_means(words):
    assert {node_id for node_id in INTERFACE if words in schema(node_id).search_aliases} >= SEARCHED[words]


@pytest.mark.parametrize("node_id", INTERFACE)
def test_what_is_shown_comes_back(node_id):
    """ComfyUI sends it again with a result that it has already, for these two kinds of nodes alone."""
    found = schema(node_id)
    if "ui=" in inspect.getsource(pack.node_classes()[node_id].execute):
        assert found.is_output_node or getattr(found, "has_intermediate_output", True)


def test_defaults_are_the_engines():
    """A script that leaves a value out gets what the node shows."""
    stand_in, sampler = pack.module("standin_core.stand_in.applied"), pack.module("standin_core.sampler")
    branch = stand_in.Identity.__dataclass_fields__ | stand_in.RunSettings.__dataclass_fields__
    assert {name: branch[name].default for name in DEFAULTS["ApplyIdentityBranch"]} == DEFAULTS["ApplyIdentityBranch"]
    apply = inspect.signature(pack.module("standin_core.id_animator.apply").apply_face_tokens).parameters
    assert {name: apply[name].default for name in DEFAULTS["ApplyIDAnimator"]} == DEFAULTS["ApplyIDAnimator"]
    face, swap = pack.module("standin_core.face"), pack.module("standin_core.face_swap")
    for node_id, settings in (("StandInSampler", sampler.SamplerSettings), ("FacePreprocess", face.FaceSettings),
                              ("FaceSwapPrepare", swap.SwapSettings),
                              ("RefineFacesPrepare", swap.RefineSettings),
                              ("SavePerson", pack.module("standin_core.person").PersonSettings),
                              ("ApplyConcatID", pack.module("standin_core.concat_id.applied").AppendedReference)):
        fields = settings.__dataclass_fields__
        assert {name: fields[name].default for name in DEFAULTS[node_id]} == DEFAULTS[node_id]


@pytest.mark.parametrize("node_id, settings", [("FacePreprocess", "standin_core.face.FaceSettings"),
                                               ("FaceSwapPrepare", "standin_core.face_swap.SwapSettings"),
                                               ("RefineFacesPrepare", "standin_core.face_swap.RefineSettings"),
                                               ("SavePerson", "standin_core.person.PersonSettings")])
def test_first_choices_are_the_engines(node_id, settings):
    """A combo box without a default shows its first option."""
    module, _, name = settings.rpartition(".")
    fields = getattr(pack.module(module), name).__dataclass_fields__
    combos = {each.id: each for each in schema(node_id).inputs if each.io_type == "COMBO"}
    assert combos
    for combo in combos.values():
        assert (combo.default or combo.options[0]) == fields[combo.id].default


def execute(node_id, **inputs):
    return pack.node_classes()[node_id].execute(**inputs)


def test_pictures_are_counted_when_the_first_is_done(bars):
    """Until then the engine has not checked what came, which may have no number."""
    batches = [[], []]
    done = pack.module("nodes.shared").per_picture(*batches)
    batches[0] += ["first", "second"]
    batches[1] += ["third"]
    for _ in range(3):
        done()
    assert bars[0] == (1, 3) and bars[-1] == (3, 3)


def test_adapters_are_found_beside_loras(tmp_path, monkeypatch):
    import folder_paths
    import safetensors.torch

    from small_world.tiny_models import ADAPTER, adapter_weights

    pack.node_classes()
    safetensors.torch.save_file(adapter_weights(), tmp_path / ADAPTER)
    assert set(folder_paths.get_folder_paths("loras")) <= set(folder_paths.get_folder_paths("stand_in"))
    folder_paths.add_model_folder_path("stand_in", str(tmp_path))
    try:
        options = next(each for each in schema("LoadStandIn").inputs if each.id == "adapter").options
        assert ADAPTER in options
        (adapter,) = execute("LoadStandIn", adapter=ADAPTER).args
    finally:
        folder_paths.folder_names_and_paths["stand_in"][0].remove(str(tmp_path))
    assert (adapter.name, len(adapter.blocks)) == (ADAPTER, 4)


def test_the_model_works_in_core_samplers():
    """ApplyIdentityBranch alone, with a reference latent, in SamplerCustomAdvanced and in KSampler."""
    import comfy.samplers
    import nodes
    from comfy_extras.nodes_custom_sampler import BasicGuider, BasicScheduler, RandomNoise, SamplerCustomAdvanced

    adapter = pack.module("standin_core.stand_in.adapter").parse_adapter(tiny.adapter_weights(), "a")
    model = tiny.load()
    (patched,) = execute("ApplyIdentityBranch", model=model, stand_in=adapter, strength=1.0, start_percent=0.0,
                         end_percent=1.0, time_offset=-1, attention="auto",
                         reference_latent={"samples": tiny.random(1, 16, 8, 16)}).args
    latent = {"samples": torch.zeros(tiny.LATENT)}
    ksampler = [nodes.KSampler().sample(each, 7, 3, 1.0, "euler", "simple", tiny.prompt(), tiny.prompt(), latent)[0]
                for each in (model, patched)]
    assert not torch.equal(ksampler[0]["samples"], ksampler[1]["samples"])
    sigmas = BasicScheduler.execute(patched, "simple", 3, 1.0).args[0]
    custom = SamplerCustomAdvanced.execute(
        RandomNoise.execute(7).args[0], BasicGuider.execute(patched, tiny.prompt()).args[0],
        comfy.samplers.sampler_object("euler"), sigmas, latent).args[0]
    assert torch.equal(custom["samples"], ksampler[1]["samples"])


def test_import_is_light():
    """Beyond what ComfyUI has loaded anyway: no skimage, facexlib, numba, scipy; nothing printed; no logging set up."""
    program = (
        "import sys, logging; sys.argv = ['main.py', '--cpu']\n"
        "import comfy.options; comfy.options.enable_args_parsing()\n"
        "import utils, nodes, server, comfy.samplers, latent_preview, asyncio\n"
        "before, handlers = set(sys.modules), list(logging.root.handlers)\n"
        f"assert asyncio.run(nodes.load_custom_node({str(PACK)!r}))\n"
        "assert logging.root.handlers == handlers\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "heavy = new & {'skimage', 'facexlib', 'numba', 'peft', 'transformers', 'pandas', 'matplotlib'}\n"
        "assert not heavy, heavy\n"
        "sys.stdout.write('loaded')\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=pack.COMFYUI)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "loaded"


@pytest.mark.parametrize("given, runs", [
    ({}, "own scale"), ({"preset": "custom"}, "own scale"), ({"preset": "paper"}, "both passes"),
    ({"preset": "closer likeness"}, "positive pass")])
def test_a_preset_sets_the_guidance(given, runs):
    """The other inputs stay as they are, and so does guidance where no preset is named."""
    (patched,) = identified(guidance="own scale", guidance_scale=2.0, **given).args
    (expected,) = identified(guidance=runs, guidance_scale=2.0).args
    (before,) = identified(guidance="own scale", guidance_scale=2.0).args
    found, wanted, plain = map(sampled, (patched, expected, before))
    assert torch.equal(found, wanted)
    assert torch.equal(found, plain) == (runs == "own scale")


def test_an_unknown_preset_is_refused():
    with pytest.raises(pack.module("standin_core.errors").UserError,
                       match="preset must be one of custom, paper, closer likeness, but is fastest"):
        identified(preset="fastest")


def identified(**inputs):
    adapter = pack.module("standin_core.stand_in.adapter").parse_adapter(tiny.adapter_weights(), "a")
    return execute("ApplyIdentityBranch", model=tiny.load(), stand_in=adapter, strength=1.0, start_percent=0.0,
                   end_percent=1.0, time_offset=-1, attention="auto",
                   reference_latent={"samples": tiny.random(1, 16, 8, 16)}, **inputs)


def sampled(model):
    import nodes
    return nodes.KSampler().sample(model, 7, 2, 4.0, "euler", "simple", tiny.prompt(), tiny.prompt(),
                                   {"samples": torch.zeros(tiny.LATENT)})[0]["samples"]
