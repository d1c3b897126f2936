"""ID-Animator: agreement with the authors' implementation, and the identity beside what else people put on SD1.5."""
import json

import comfy.context_windows
import comfy.ops
import comfy.patcher_extension
import comfy.samplers
import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

import faces
import sd15
import tiny
from golden_cases import load_case
from motion import with_motion
from sd15 import ONE_CALL, WHOLE_LOOP, check, largest_difference
from small_world.tiny_models import random_weights
from standin_core.errors import UserError
from standin_core.face import aligned
from standin_core.face.geometry import Enlarged, alignment
from standin_core.id_animator.adapter import load_adapter, parse_adapter
from standin_core.id_animator.apply import apply_photos
from standin_core.id_animator.photo import keys_values, tokens_of_photos
from standin_core.id_animator.resampler import face_tokens
from standin_core.report import as_json, as_text
from support import pack

# the authors' adapter by the numbers of ComfyUI's blocks, in the order of diffusers' list
BLOCKS = [("input", number) for number in (1, 2, 4, 5, 7, 8)] + [
    ("output", number) for number in range(3, 12)] + [("middle", 0)]


@pytest.fixture(scope="module")
def case():
    return load_case(sd15.STILL)


@pytest.fixture(scope="module")
def model(case):
    return sd15.unet(case)


@pytest.fixture(scope="module")
def adapter(case):
    return load_adapter(case.folder / "animator.safetensors")


def test_without_an_adapter(case, model):
    check(sd15.predictions(model, case), case, kinds=("cond",))


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_aligned_face(case, name):
    """OpenCV 4.10 computed it; OpenCV 5 differs by up to 1 level, and by up to 4 at the black border."""
    found = aligned(case.io[f"photo.{name}"].numpy(), case.io[f"points.{name}"].double().numpy())
    differences = abs(found.astype(int) - case.io[f"face_crop.{name}"].numpy())
    assert differences.max() <= 4
    assert (differences > 1).mean() < 0.01


def test_the_preset(case):
    """Face Preprocess from photo and key points: the aligned face, enlarged by Pillow, black beside the photo."""
    photo, points = case.io["photo.a"].numpy(), case.io["points.a"].double().numpy()
    found = faces.crop(photo, preset="ID-Animator",
                       given={"face_landmarks": faces.landmarks([(points, 1.0)], size=photo.shape[:2])})
    by_hand = PIL.Image.fromarray(aligned(photo, points)).resize((224, 224), PIL.Image.Resampling.BICUBIC)
    assert np.array_equal(faces.as_uint8(found.image[0]), np.asarray(by_hand))
    assert largest_difference(found.image, sd15.face("a")) < 6 / 255
    assert "aligned by its five points" in found.verdict and "background kept" in found.verdict


def test_a_mask_stays_between_0_and_1_as_it_is_enlarged():
    mask = torch.zeros(1, 512, 512)
    mask[..., :225] = 1
    found = faces.crop(faces.astronaut(), preset="ID-Animator", given={
        "face_landmarks": faces.landmarks([(faces.KEYPOINTS, 1.0)]), "subject_mask": mask})
    alpha = found.rgba[0, 100, :, 3]
    assert alpha[0] == 1 and alpha[-1] == 0 and bool((alpha.diff() <= 0).all())


def test_points_go_where_the_pixels_of_an_enlarged_crop_go():
    photo, points = np.zeros((300, 260, 3), np.uint8), [[90, 110], [150, 105], [125, 150], [100, 180], [148, 176]]
    place = Enlarged(alignment(np.array(points, float)), 224)
    cv2.circle(photo, (125, 150), 6, (255, 255, 255), -1)
    weight = place.cut(photo, 0)[..., 0].astype(float)
    rows, columns = np.mgrid[:224, :224]
    centre = [(weight * each).sum() / weight.sum() for each in (columns, rows)]
    assert np.allclose(place.to_crop(np.array([[125.0, 150.0]]))[0], centre, atol=0.3)


def test_face_tokens(case, adapter):
    for name in ("a", "b", "zero"):
        tokens = face_tokens(adapter.resampler, adapter.depth, case.io[f"clip_hidden.{name}"])
        assert largest_difference(tokens, case.io[f"face_tokens.{name}"]) < ONE_CALL


def test_keys_and_values(case, adapter):
    """From the pixels of the face crop, and of pixels that are 0 after normalisation."""
    faces = keys_values(adapter, tokens_of_photos(adapter, sd15.clip_vision(), sd15.face("a")))
    of_zero = case.io["face_tokens.zero"]
    assert len(faces) == 16
    for number, (key, value) in enumerate(faces):
        index = 2 * number + 1
        assert largest_difference(key[:1], case.io[f"k_face.{index}"]) < ONE_CALL
        assert largest_difference(value[:1], case.io[f"v_face.{index}"]) < ONE_CALL
        projection = adapter.projections[number]
        assert largest_difference(key[1:], of_zero @ projection.key.float().T) < ONE_CALL
        assert largest_difference(value[1:], of_zero @ projection.value.float().T) < ONE_CALL


@pytest.mark.parametrize("scale", [0.7, 1.0])
def test_predictions(case, model, scale):
    check(sd15.predictions(sd15.with_face(model, case, strength=scale), case), case, scale)


def test_the_low_rank_weights_alone(case, model):
    found = sd15.predictions(sd15.with_face(model, case, strength=0.0), case)
    assert largest_difference(found[0][0], case.io["lora_only.0"]) < ONE_CALL


def test_two_photos(case, model):
    patched = sd15.with_face(model, case, "a", "b", strength=case.settings["scales"][0])
    assert largest_difference(sd15.predictions(patched, case)[0][0], case.io["two_photos.0"]) < ONE_CALL


def test_a_whole_loop(case, model):
    patched = sd15.with_face(model, case, strength=case.settings["loop_scale"])
    sampled, (report,) = sd15.whole_loop(patched, case)
    assert largest_difference(sampled, case.io["sampled"]) < WHOLE_LOOP
    assert (report.model, report.steps, report.identity_calls) == ("SD15", 4, report.model_calls)


def test_through_the_nodes(case, model, monkeypatch):
    import folder_paths

    nodes = pack.node_classes()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "id_animator", ([str(case.folder)], {".safetensors"}))
    (adapter,) = nodes["LoadIDAnimator"].execute(adapter="animator.safetensors").args
    (patched,) = nodes["ApplyIDAnimator"].execute(
        model=model, id_animator=adapter, clip_vision=sd15.clip_vision(), reference_image=sd15.face("a"), strength=0.7,
        start_percent=0.0, end_percent=1.0, lora_strength=1.0).args
    check(sd15.predictions(patched, case), case, 0.7)
    sampled, _ = sd15.whole_loop(patched, case)
    assert largest_difference(sampled, case.io["sampled"]) < WHOLE_LOOP


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -1.0, 2.5])
def test_a_number_by_a_link(case, strength):
    """ComfyUI does not hold it against the widget."""
    adapter = pack.module("standin_core.id_animator.adapter").load_adapter(case.folder / "animator.safetensors")
    with pytest.raises(pack.module("standin_core.errors").UserError,
                       match=rf"lora_strength must be a finite number from 0 to 2, but is {strength:g}"):
        pack.node_classes()["ApplyIDAnimator"].execute(
            model=None, id_animator=adapter, clip_vision=None, reference_image=None, lora_strength=strength)


# beside other things


def test_cfg_1_and_one_picture(case, model):
    """One condition alone in a call, of one picture."""
    patched = sd15.with_face(model, case, strength=0.7)
    found = sd15.predictions(patched, case, cfg=1.0, latent=case.io["latent"][2:3])
    for k, (prediction,) in enumerate(found):
        assert largest_difference(prediction, case.io[f"cond.0.7.{k}"][2:3]) < ONE_CALL


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_cfg(case, model, style):
    """Three conditions of which the positive one is the last; the others read the face of nobody."""
    patched = sd15.with_face(model, case, strength=0.7)
    positive, negative = case.conditioning("positive"), case.conditioning("negative")
    (guider,) = DualCFGGuider.execute(patched, positive, negative, negative, 3.0, 2.0, style).args
    cond, uncond = case.io["cond.0.7.0"], case.io["uncond.0.7.0"]
    # regular: n + 2 (m - n) + 3 (p - m); nested: n + 2 (m + 3 (p - m) - n); the middle is the negative here
    factor = 3.0 if style == "regular" else 6.0
    (found, *_) = sd15.probe(guider, case.io["latent"], case.io["timesteps"][:1])
    assert largest_difference(found, uncond + factor * (cond - uncond)) < factor * ONE_CALL


def another_face(case, place):
    """Keys and values of another adapter, for one of the places."""
    width = case.io[f"k_face.{2 * place + 1}"].shape[-1]
    return tiny.random(1, 5, width, seed=place), tiny.random(1, 5, width, seed=100 + place)


def attend(q, k, v, options):
    return optimized_attention(q, k.expand(len(q), -1, -1), v.expand(len(q), -1, -1), options["n_heads"],
                               attn_precision=options["attn_precision"])


def with_replacements(model, case, depth):
    """As IP-Adapters do it: the text's attention and half of another face's, in the place of every cross-attention.

    depth: () for a replacement of the block, (0,) for one of its first transformer, which ComfyUI prefers.
    """
    patched = model.clone()
    for place, block in enumerate(BLOCKS):
        def replacement(q, k, v, options, place=place):
            return attend(q, k, v, options) + 0.5 * attend(q, *another_face(case, place), options)

        options = patched.model_options["transformer_options"] = {**patched.model_options["transformer_options"]}
        replaced = options["patches_replace"] = {**options.get("patches_replace", {})}
        replaced["attn2"] = {**replaced.get("attn2", {}), (*block, *depth): replacement}
    return patched


@pytest.fixture(scope="module")
def beside_another_face(case, model):
    """The equation written out: in each cross-attention the text, 0.7 of the face, and half of the other one."""
    base, adapter = (sd15.in_fp32(case.folder / f"{name}.safetensors") for name in ("base", "animator"))
    low_rank = {}
    for place, (name, number) in enumerate(BLOCKS):
        path = "middle_block.1" if name == "middle" else f"{name}_blocks.{number}.1"
        for which in ("to_q", "to_k", "to_v", "to_out"):
            key = f"{path}.transformer_blocks.0.attn2.{which}{'.0' if which == 'to_out' else ''}.weight"
            up, down = (adapter[f"module.adapter_modules.{2 * place + 1}.{which}_lora.{factor}.weight"]
                        for factor in ("up", "down"))
            low_rank[key] = base[key] + up @ down
    merged = sd15.unet(case, changed=low_rank)
    for place, block in enumerate(BLOCKS):
        key, value = (case.io[f"{which}_face.{2 * place + 1}"] for which in "kv")

        def all_three(q, k, v, options, place=place, key=key, value=value):
            return (attend(q, k, v, options) + 0.7 * attend(q, key, value, options)
                    + 0.5 * attend(q, *another_face(case, place), options))

        merged.set_model_attn2_replace(all_three, *block)
    return [positive for (positive,) in sd15.predictions(merged, case, cfg=1.0)]


@pytest.mark.parametrize("depth", [(), (0,)], ids=["of the block", "of its transformer"])
@pytest.mark.parametrize("order", ["face first", "face last"])
def test_another_nodes_cross_attention(case, model, beside_another_face, order, depth):
    if order == "face first":
        patched = with_replacements(sd15.with_face(model, case, strength=0.7), case, depth)
    else:
        patched = sd15.with_face(with_replacements(model, case, depth), case, strength=0.7)
    found = sd15.predictions(patched, case, cfg=1.0)
    for (prediction,), expected in zip(found, beside_another_face, strict=True):
        assert largest_difference(prediction, expected) < ONE_CALL
    assert largest_difference(found[0][0], case.io["cond.0.7.0"]) > 1000 * ONE_CALL


LORA_KEY = "input_blocks.2.1.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize("order", ["face first", "face last"])
def test_an_ordinary_lora(case, model, order):
    """On a weight to which the adapter adds too: as if it had been merged beforehand."""
    up, down = tiny.random(32, 3, seed=1), tiny.random(3, 32, seed=2) / 8
    base = sd15.in_fp32(case.folder / "base.safetensors")[f"{LORA_KEY}.weight"]
    merged = sd15.unet(case, changed={f"{LORA_KEY}.weight": base + 0.8 * up @ down})
    lora = {f"diffusion_model.{LORA_KEY}.lora_{which}.weight": weight for which, weight in (("up", up), ("down", down))}

    def with_lora(model):
        return comfy.sd.load_lora_for_models(model, None, lora, 0.8, 0.0)[0]

    patched = (with_lora(sd15.with_face(model, case, strength=0.7)) if order == "face first"
               else sd15.with_face(with_lora(model), case, strength=0.7))
    (expected, *_), (found, *_) = (sd15.predictions(each, case)
                                   for each in (sd15.with_face(merged, case, strength=0.7), patched))
    for a, b, name in zip(found, expected, ("cond", "uncond")):
        assert largest_difference(a, b) < ONE_CALL
        assert largest_difference(a, case.io[f"{name}.0.7.0"]) > 100 * ONE_CALL


def test_an_area_beside_the_positive_prompt(case, model):
    """ComfyUI gives the negative prompt that area too, by a copy of the condition: it reads the face of nobody."""
    patched, found = sd15.with_face(model, case, strength=0.7), []

    def note(args):
        found.append([(args["input"] - each) / args["sigma"][0] for each in args["conds_out"]])
        return args["conds_out"]

    patched.set_model_sampler_pre_cfg_function(note)
    guider = comfy.samplers.CFGGuider(patched)
    ((context, _),) = case.conditioning("positive")
    guider.set_conds([[context, {"area": (16, 16, 0, 0), "strength": 1.0}]], case.conditioning("negative"))
    guider.set_cfg(2.0)
    sd15.probe(guider, case.io["latent"], case.io["timesteps"])
    check(found, case, 0.7)


def test_context_windows_of_pictures(case, model):
    """ComfyUI's own, along the batch: pictures do not know of each other, so nothing changes."""
    patched = sd15.with_face(model, case, strength=0.7)
    patched.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("flat"), context_length=2, context_overlap=0,
        context_stride=1, closed_loop=False, dim=0)
    comfy.context_windows.create_prepare_sampling_wrapper(patched)
    check(sd15.predictions(patched, case), case, 0.7)


def test_tiles(case, model):
    """As ComfyUI-TiledDiffusion cuts them: every tile of every condition in one batch, tile after tile."""
    def tiled(apply_model, args):
        tiles = torch.cat(args["input"].chunk(2, dim=-1))
        found = apply_model(tiles, args["timestep"].repeat(2), **args["c"] | {
            "c_crossattn": args["c"]["c_crossattn"].repeat(2, 1, 1)})
        return torch.cat(found.chunk(2), dim=-1)

    patched = sd15.with_face(model, case, strength=0.7)
    halves = [sd15.predictions(patched, case, latent=half) for half in case.io["latent"].chunk(2, dim=-1)]
    patched.set_model_unet_function_wrapper(tiled)
    for found, *expected in zip(sd15.predictions(patched, case), *halves, strict=True):
        for which, prediction in enumerate(found):
            assert largest_difference(prediction, torch.cat([half[which] for half in expected], dim=-1)) < ONE_CALL
    _, (report,) = sd15.whole_loop(patched, case)
    assert report.video_grid == (4, 16, 8)


@pytest.mark.parametrize("change, words", [
    (lambda options: {key: value for key, value in options.items() if key != "uuids"},
     "the model was called by something other than ComfyUI's sampler"),
    (lambda options: options | {"uuids": 3 * options["uuids"]},
     r"a batch of 8, but ComfyUI's sampler made one of 24 \(6 prompts with 4 latents each\)"),
], ids=["no prompts", "a part of the batch"])
def test_a_call_that_does_not_say_which_prompt_is_which(case, model, change, words):
    patched = sd15.with_face(model, case)
    patched.set_model_unet_function_wrapper(lambda apply_model, args: apply_model(
        args["input"], args["timestep"],
        **args["c"] | {"transformer_options": change(args["c"]["transformer_options"])}))
    with pytest.raises(UserError, match=words):
        sd15.predictions(patched, case)


@pytest.mark.parametrize("start, end, calls", [(0.0, 0.5, 2), (0.5, 1.0, 2), (0.9, 0.95, 0)])
def test_start_and_end_percent(case, model, start, end, calls):
    """Only the face has a window: outside of it are the low-rank weights alone."""
    patched = sd15.with_face(model, case, strength=0.7, start_percent=start, end_percent=end)
    _, (report,) = sd15.whole_loop(patched, case)
    assert report.identity_calls == calls * report.model_calls // 4
    found = sd15.predictions(patched, case, timesteps=(951, 251))
    expected = [f"cond.0.7.{k}" if inside else None for k, inside in enumerate((start == 0.0, end == 1.0))]
    for (prediction, _), name in zip(found, expected):
        if name is not None:
            assert largest_difference(prediction, case.io[name]) < ONE_CALL
    if start > 0:
        assert largest_difference(found[0][0], case.io["lora_only.0"]) < ONE_CALL
    assert ("identity not applied" in as_text(report)) == (calls == 0)


def sampled(model, case):
    return sd15.whole_loop(model, case)[0]


def test_nothing_is_left_on_the_model(case, model):
    """Base model bit for bit after a run, after an exception in one, and where both strengths are 0."""
    plain, kinds = sampled(model, case), [type(module) for module in model.model.modules()]
    patched = sd15.with_face(model, case, strength=0.7)
    assert not torch.equal(sampled(patched, case), plain)
    assert torch.equal(sampled(model, case), plain)

    def interrupt(*args):
        raise KeyboardInterrupt

    interrupted = patched.clone()
    interrupted.set_model_attn2_replace(interrupt, "middle", 0)
    with pytest.raises(KeyboardInterrupt):
        sampled(interrupted, case)
    assert [type(module) for module in model.model.modules()] == kinds
    assert torch.equal(sampled(model, case), plain)
    assert torch.equal(sampled(sd15.with_face(model, case, strength=0.0, lora_strength=0.0), case), plain)
    assert model.model_options["transformer_options"] == {} and not model.patches


def test_half_the_low_rank_weights(case, model):
    """They are as linear in their strength as a LoRA's."""
    patched = sd15.with_face(model, case, strength=0.0, lora_strength=0.5)
    up, down = (sd15.in_fp32(case.folder / "animator.safetensors")[
        f"module.adapter_modules.31.to_out_lora.{which}.weight"] for which in ("up", "down"))
    path = "middle_block.1.transformer_blocks.0.attn2.to_out.0.weight"
    weight = patched.patch_weight_to_device(f"diffusion_model.{path}", return_weight=True)
    base = sd15.in_fp32(case.folder / "base.safetensors")[path]
    assert largest_difference(weight, base + 0.5 * up @ down) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(case, dtype):
    """Weights with the low rank merged are rounded, as with any LoRA: 5e-3 of outputs of order 1 in bf16."""
    patched = sd15.with_face(sd15.unet(case, dtype), case, strength=0.7)
    ((found, _), *_) = sd15.predictions(patched, case)
    effect = largest_difference(case.io["cond.0.7.0"], case.io["lora_only.0"])
    assert largest_difference(found, case.io["cond.0.7.0"]) < 0.2 * effect


def test_the_report(case, model):
    _, (report,) = sd15.whole_loop(sd15.with_face(model, case, "a", "b", strength=0.7, end_percent=0.5), case)
    text, (record,) = as_text(report), json.loads(as_json([report]))
    assert text.splitlines()[0] == (
        f"SD15: identity read in {report.identity_calls} of {report.model_calls} model calls")
    assert "16 face tokens of the mean of 2 photos, read by 16 cross-attentions in 4 frames or pictures" in text
    assert "identity of animator.safetensors (rank 4)" in text.splitlines()
    assert "strength 0.7 from 0 to 0.5, low-rank weights 1 in every step" in text
    (identity,) = record["identities"]
    assert (identity["adapter_file"], identity["photos"], identity["adapter_rank"]) == ("animator.safetensors", 2, 4)
    assert len(identity["adapter_sha256"]) == 64  # in the record, and not in the words
    assert "sha256" not in text and record["video_grid"] == [4, 16, 16]


def test_a_run_is_logged_where_nobody_listens(case, model, caplog):
    with caplog.at_level("INFO", logger="standin_core.runs"):
        sd15.predictions(sd15.with_face(model, case), case)
    assert "SD15: identity read in" in caplog.text


# refusals


def test_another_kind_of_model(adapter):
    with pytest.raises(UserError, match="the model must be an SD1"):
        apply_photos(tiny.load(), adapter, sd15.clip_vision(), sd15.face("a"))


def test_a_unet_of_another_size(case, adapter):
    other = load_case(sd15.MOTION)
    with pytest.raises(UserError, match=r"animator\.safetensors is for 16 cross-attentions of widths 32, 64 that read "
                                        "text of width 32, but the model has 16 cross-attentions of widths 32 that"):
        apply_photos(sd15.unet(other), adapter, sd15.clip_vision(), sd15.face("a"))


def test_applied_twice(case, model):
    with pytest.raises(UserError, match="reads an ID-Animator identity already"):
        sd15.with_face(sd15.with_face(model, case), case)


def test_another_encoder(case, model):
    weights = sd15.in_fp32(case.folder / "animator.safetensors")
    key = "module.image_proj_model.proj_in.weight"
    wide = parse_adapter(weights | {key: torch.zeros(len(weights[key]), 48)}, "wide.ckpt")
    with pytest.raises(UserError, match=r"gives features of width 32, wide\.ckpt takes 48: load the ViT-H"):
        apply_photos(model, wide, sd15.clip_vision(), sd15.face("a"))


IMAGES = {
    "no photo": (torch.zeros(0, 224, 224, 3), r"reference_image must have the shape .*, but has \[0, 224, 224, 3\]"),
    "no batch": (torch.zeros(224, 224, 3), r"reference_image must have the shape .*, but has \[224, 224, 3\]"),
    "two channels": (torch.zeros(1, 224, 224, 2), r"reference_image must have the .*, but has \[1, 224, 224, 2\]"),
    "of bytes": (torch.full((1, 224, 224, 3), 255.0), "the values of reference_image must lie "
                                                      "between 0 and 1, but are from 255 to 255"),
    "not finite": (torch.full((1, 224, 224, 3), torch.nan), "the values of reference_image must be finite"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_are_none(model, adapter, name):
    image, words = IMAGES[name]
    with pytest.raises(UserError, match=words):
        apply_photos(model, adapter, sd15.clip_vision(), image)


def test_grey_and_transparent_photos(model, adapter):
    """One channel is grey, and a fourth is left out."""
    grey = sd15.face("a")[..., :1]
    three = grey.expand(-1, -1, -1, 3)
    tokens = []
    for image in (grey, three, torch.cat((three, torch.zeros_like(grey)), dim=-1)):
        patched = apply_photos(model, adapter, sd15.clip_vision(), image)
        (wrapper,) = patched.get_wrappers(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "id_animator")
        tokens.append(wrapper.identity.faces[0][0])
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[1], tokens[2])


@pytest.mark.parametrize("controls, words", [
    ({"strength": -1.0}, "strength must be a finite number from 0 to 1000, but is -1"),
    ({"strength": torch.nan}, "strength must be a finite number from 0 to 1000, but is nan"),
    ({"start_percent": torch.nan}, "start_percent must be a finite number from 0 to 1, but is nan"),
    ({"start_percent": 0.5, "end_percent": 0.5}, "would never be read"),
])
def test_controls_that_cannot_be(case, model, controls, words):
    with pytest.raises(UserError, match=words):
        sd15.with_face(model, case, **controls)


# motion


@pytest.fixture(scope="module")
def moving():
    return load_case(sd15.MOTION)


@pytest.fixture(scope="module")
def still_model(moving):
    return sd15.unet(moving)


@pytest.fixture(scope="module")
def motion(moving):
    return sd15.in_fp32(moving.folder / "motion.safetensors")


def moves(model, moving, motion, order, **settings):
    settings.setdefault("strength", 0.8)
    if order == "face first":
        return with_motion(sd15.with_tokens(model, moving, "a", **settings), motion)
    return sd15.with_tokens(with_motion(model, motion), moving, "a", **settings)


def test_motion_alone_is_the_authors(moving, still_model, motion):
    """So that what follows says something: the temporal transformers of the tests are AnimateDiff's."""
    check(sd15.predictions(with_motion(still_model, motion), moving), moving, kinds=("cond",))


@pytest.mark.parametrize("order", ["face first", "face last"])
def test_a_face_in_motion(moving, still_model, motion, order):
    patched = moves(still_model, moving, motion, order)
    check(sd15.predictions(patched, moving), moving, 0.8)
    sampled, _ = sd15.whole_loop(patched, moving)
    assert largest_difference(sampled, moving.io["sampled"]) < WHOLE_LOOP


def test_two_photos_in_motion(moving, still_model, motion):
    patched = sd15.with_tokens(with_motion(still_model, motion), moving, "mean", strength=0.8)
    assert largest_difference(sd15.predictions(patched, moving)[0][0], moving.io["two_photos.0"]) < ONE_CALL


def test_context_windows(moving, still_model, motion):
    """As AnimateDiff-Evolved slices them: each window is what a run of its frames alone is, bit for bit."""
    def halves(executor, model, conds, x, timestep, options):
        windows = [executor(model, conds, part, timestep[:len(part)], options) for part in x.chunk(2)]
        return [torch.cat(each) for each in zip(*windows)]

    patched = moves(still_model, moving, motion, "face first")
    windowed = patched.clone()
    windowed.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "windows", halves)
    found = sd15.predictions(windowed, moving, timesteps=(951,))
    alone = [sd15.predictions(patched, moving, latent=part, timesteps=(951,)) for part in moving.io["latent"].chunk(2)]
    for which in range(2):
        assert torch.equal(found[0][which], torch.cat([each[0][which] for each in alone]))
    assert largest_difference(found[0][0], moving.io["cond.0.8.0"]) > 100 * ONE_CALL


# torch.compile


class Graphs(list):
    """torch.compile's backend "eager", and every graph that it was given."""

    def __call__(self, graph, inputs, **_):
        self.append(graph)
        return graph.forward


@pytest.fixture(scope="module")
def of_one_level(case):
    """A U-Net of one level and one residual block, which is compiled in seconds, and an adapter for its four places."""
    net = UNetModel(image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1], dropout=0,
                    channel_mult=(1,), transformer_depth=[1], transformer_depth_output=[1, 1],
                    transformer_depth_middle=1, num_heads=8, use_spatial_transformer=True, context_dim=32, legacy=False,
                    operations=comfy.ops.disable_weight_init)
    weights = sd15.in_fp32(case.folder / "animator.safetensors")
    small = {key: value for key, value in weights.items() if "image_proj_model" in key}
    for new, old in ((1, 1), (3, 25), (5, 27), (7, 31)):  # of the same width
        prefix = f"module.adapter_modules.{old}."
        small |= {f"module.adapter_modules.{new}.{key.removeprefix(prefix)}": value
                  for key, value in weights.items() if key.startswith(prefix)}
    with torch.inference_mode():  # as ComfyUI loads, and merges low-rank weights: torch.compile tells the two apart
        return sd15.load(random_weights(net, seed=0), 32, 32), parse_adapter(small, "small.safetensors")


@pytest.mark.parametrize("guards", [None, skip_torch_compile_dict], ids=["all guards", "as core's node"])
def test_torch_compile(case, of_one_level, guards):
    """Off, on, off, another photo and strength, a window: right each time, and compiled twice, with a face and without.

    ComfyUI's node drops the guards on ``transformer_options``, where the cross-attentions' replacements are.
    """
    torch.compiler.reset()
    model, adapter = of_one_level
    compilations, latent = Graphs(), tiny.random(2, 4, 8, 8)

    def predicted(patched):
        return torch.cat([each for step in sd15.predictions(patched, case, latent=latent) for each in step])

    def applied(name, **settings):
        return apply_photos(model, adapter, sd15.clip_vision(), sd15.face(name), **settings)

    graphs = []
    for each in (model.clone(), applied("a", strength=0.7), model.clone(), applied("b", strength=0.3),
                 applied("a", end_percent=0.5)):
        expected = predicted(each)
        set_torch_compile_wrapper(each, backend=compilations, fullgraph=True,
                                  options=None if guards is None else {"guard_filter_fn": guards})
        assert largest_difference(predicted(each), expected) < ONE_CALL
        graphs.append(len(compilations))
    if guards is not None:
        assert graphs == [1, 2, 2, 2, 2]
