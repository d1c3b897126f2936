"""ID-Animator with ComfyUI-AnimateDiff-Evolved itself, where it is installed: nothing of it comes with this pack.

tests/test_id_animator.py has the same numbers without it, with temporal transformers of its own.
"""
import asyncio
import json
import sys

import folder_paths
import nodes
import pytest
import safetensors.torch
import torch

import sd15
from golden_cases import load_case
from sd15 import ONE_CALL, WHOLE_LOOP, check, largest_difference
from support import pack
from support.comfyui_server import node_id
from support.environment import PACK

NAME = "ComfyUI-AnimateDiff-Evolved"
FOLDER = next((folder for folder in (pack.COMFYUI / "custom_nodes").glob("*") if folder.name.lower() == NAME.lower()),
              None)
pytestmark = pytest.mark.skipif(FOLDER is None, reason=f"{NAME} is not in ComfyUI's custom_nodes")


@pytest.fixture(scope="module")
def moving():
    return load_case(sd15.MOTION)


@pytest.fixture(scope="module")
def evolved(moving, tmp_path_factory):
    """Its nodes' functions by class name, and its motion model of the golden data."""
    assert asyncio.run(nodes.load_custom_node(str(FOLDER), module_parent="custom_nodes"))

    def run(name, **inputs):
        kind = nodes.NODE_CLASS_MAPPINGS[name]
        return getattr(kind(), kind.FUNCTION)(**inputs)[0]

    folder = tmp_path_factory.mktemp("motion")
    safetensors.torch.save_file(sd15.in_fp32(moving.folder / "motion.safetensors"), folder / "mm_small.safetensors")
    folder_paths.add_model_folder_path("animatediff_models", str(folder))
    module = sys.modules[f"{nodes.NODE_CLASS_MAPPINGS['ADE_LoadAnimateDiffModel'].__module__.rpartition('.')[0]}"
                         ".motion_module_ad"]
    kind, width = module.MotionModule, moving.settings["block_out_channels"][0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MotionModule", lambda _, **kwargs: kind(width, **kwargs))  # it knows 320 to 1280
        motion_model = run("ADE_LoadAnimateDiffModel", model_name="mm_small.safetensors")
    yield run, motion_model
    folder_paths.folder_names_and_paths["animatediff_models"][0].remove(str(folder))


def moves(evolved, model, **options):
    run, motion_model = evolved
    return run("ADE_UseEvolvedSampling", model=model, beta_schedule="autoselect",
               m_models=run("ADE_ApplyAnimateDiffModelSimple", motion_model=motion_model), **options)


@pytest.mark.parametrize("order", ["face first", "face last"])
def test_a_face_in_motion(moving, evolved, order):
    model = sd15.unet(moving)
    if order == "face first":
        patched = moves(evolved, sd15.with_tokens(model, moving, "a", strength=0.8))
    else:
        patched = sd15.with_tokens(moves(evolved, model), moving, "a", strength=0.8)
    check(sd15.predictions(patched, moving), moving, 0.8)
    sampled, _ = sd15.whole_loop(patched, moving)
    assert largest_difference(sampled, moving.io["sampled"]) < WHOLE_LOOP


def test_context_windows(moving, evolved):
    """Each window is what a run of its frames alone is."""
    run, _ = evolved
    options = run("ADE_StandardStaticContextOptions", context_length=3, context_overlap=0, fuse_method="flat")
    faced = sd15.with_tokens(sd15.unet(moving), moving, "a", strength=0.8)
    ((found, _),) = sd15.predictions(moves(evolved, faced, context_options=options), moving, timesteps=(951,))
    alone = [sd15.predictions(moves(evolved, faced), moving, latent=part, timesteps=(951,))[0][0]
             for part in moving.io["latent"].chunk(2)]
    assert largest_difference(found, torch.cat(alone)) < ONE_CALL


def test_the_template(moving, evolved):
    """What the template's sampler gets, by its own links and values, is the authors' in the place of its files."""
    run, motion_model = evolved
    prompt = json.loads((PACK / "workflows" / "api" / "face_in_a_short_video.json").read_text(encoding="utf-8"))
    faced, passed = sd15.with_tokens(sd15.unet(moving), moving, "a", strength=0.8), []

    def made(link):
        node = prompt[link[0]]
        passed.append(node["class_type"])
        if node["class_type"] == "ApplyIDAnimator":
            return faced
        if node["class_type"] == "ADE_LoadAnimateDiffModel":
            assert link[1] == 0 and node["inputs"].keys() == {"model_name"}
            return motion_model
        return run(node["class_type"], **{
            name: made(value) if isinstance(value, list) else value for name, value in node["inputs"].items()})

    patched = made(prompt[node_id(prompt, "KSampler")]["inputs"]["model"])
    assert sorted(passed) == ["ADE_ApplyAnimateDiffModelSimple", "ADE_LoadAnimateDiffModel", "ADE_UseEvolvedSampling",
                              "ApplyIDAnimator"]
    check(sd15.predictions(patched, moving), moving, 0.8)


def test_the_page_draws_these_nodes(evolved):
    """The nodes that stand in for the pack where the template is laid out have its inputs and outputs."""
    from support import animatediff_nodes

    def inputs(kind, part):
        """Name -> type; a choice is a list, of what is installed."""
        return {name: "a choice" if isinstance(of[0], list) else of[0]
                for name, of in kind.INPUT_TYPES().get(part, {}).items()}

    for name, drawn in animatediff_nodes.NODE_CLASS_MAPPINGS.items():
        real = nodes.NODE_CLASS_MAPPINGS[name]
        for part in ("required", "optional"):
            assert inputs(drawn, part) == inputs(real, part), name
        assert drawn.RETURN_TYPES == real.RETURN_TYPES
