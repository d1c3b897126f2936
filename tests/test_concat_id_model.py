"""Concat-ID's files: each form loads to the same model, and everything else gives one helpful sentence."""
import hashlib
import json
import math
import os
import pickle
import re

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import safetensors.torch
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from concat_id import record
from packed import pack_layers, scaled_fp8

import tiny
from pickles import Opens
from small_world.tiny_models import TinyWan, adapter_weights, concat_id_weights, lora_weights
from standin_core.concat_id.apply import apply_concat_id
from standin_core.concat_id.model import IN_A_BLOCK, OUTSIDE_BLOCKS, REFERENCES, load_concat_id, parse_concat_id
from standin_core.errors import UserError
from standin_core.weights import MOST_BYTES
from support import pack
from tolerances import WHOLE_RUN, assert_close, relative_rms


def weights(adaln=True):
    return concat_id_weights(tiny.WAN, adaln)


def save(path, weights, wrapped=None):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path, metadata=tiny.WAN.metadata())
    elif wrapped == "legacy":  # PyTorch's format before 1.6, which is no archive
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    elif wrapped == "module":  # as DeepSpeed writes it, with more beside
        torch.save({"module": weights, "global_steps": 7, "best_loss": torch.tensor(math.inf)}, path)
    else:
        torch.save({wrapped: weights, "best_loss": torch.tensor(math.inf)} if wrapped else weights, path)
    return path


@pytest.fixture
def told_sizes(monkeypatch):
    """A .pt has no metadata, by which ComfyUI is told the number of heads and the text encoder of a tiny model."""
    detect = comfy.model_detection.model_config_from_unet

    def detected(sd, prefix, *args, **kwargs):
        return detect(sd, prefix, *args, **{**kwargs, "metadata": tiny.WAN.metadata()})

    monkeypatch.setattr(comfy.model_detection, "model_config_from_unet", detected)


FORMS = {
    "safetensors": ("a.safetensors", None, ""),
    "flat": ("a.pt", None, ""),
    "legacy": ("a.pt", "legacy", ""),
    "state_dict": ("a.pt", "state_dict", ""),
    "DeepSpeed": ("a.pt", "module", ""),
    "of a checkpoint": ("a.safetensors", None, "model.diffusion_model."),
}


@pytest.mark.parametrize("adaln", [False, True], ids=["first stage", "AdaLN"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file(tmp_path, told_sizes, form, adaln):
    name, wrapped, prefix = FORMS[form]
    path = save(tmp_path / name, {prefix + key: value for key, value in weights(adaln).items()}, wrapped)
    model, concat_id = load_concat_id(path, {"dtype": torch.float32})
    state = model.model.diffusion_model.state_dict()
    native = tiny.WAN.weights()
    assert state.keys() == native.keys() and all(torch.equal(state[key], native[key]) for key in native)
    assert (concat_id.name, concat_id.references) == (name, 1)
    assert concat_id.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert concat_id.variant == ("AdaLN" if adaln else "first stage")
    if adaln:
        assert torch.equal(concat_id.own.weight, weights()["time_projection_ref.1.weight"])
        assert torch.equal(concat_id.own.bias, weights()["time_projection_ref.1.bias"])
        assert all(torch.equal(concat_id.own.blocks[i:i + 1], weights()[f"blocks.{i}.modulation_ref"])
                   for i in range(tiny.WAN.blocks))


def sampled(model, concat_id):
    return tiny.sample(apply_concat_id(model, concat_id, {"samples": torch.zeros(tiny.LATENT)}, latent={
        "samples": tiny.random(1, 16, 1, *tiny.LATENT[-2:])}))[0]


def layouts_beside_layers(file):
    """As ComfyUI saves the layers of a scaled fp8 file."""
    layout = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    for key in [key for key in file if key.endswith(".scale_weight")]:
        layer = key.removesuffix(".scale_weight")
        file |= {f"{layer}.weight_scale": file.pop(key), f"{layer}.comfy_quant": layout.clone()}
    return {key: tensor for key, tensor in file.items() if not key.endswith("scaled_fp8")}, {}


def layouts_in_metadata(file):
    file, _ = layouts_beside_layers(file)
    layers = {key.removesuffix(".comfy_quant"): {"format": "float8_e4m3fn"} for key in list(file)
              if key.endswith(".comfy_quant") and file.pop(key) is not None}
    return file, {"_quantization_metadata": json.dumps({"layers": layers})}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."], ids=["native", "of a checkpoint"])
@pytest.mark.parametrize("form", [lambda file: (file, {}), layouts_beside_layers, layouts_in_metadata],
                         ids=["one mark for all", "beside the layers", "in the metadata"])
@pytest.mark.parametrize("adaln", [False, True], ids=["first stage", "AdaLN"])
def test_a_scaled_fp8_file(tmp_path, caplog, adaln, form, prefix):
    """The same as a file of the values that its tensors stand for, those of the reference too."""
    file, values = scaled_fp8(weights(adaln), prefix)
    file, said = form(file)
    path = tmp_path / "scaled.safetensors"
    safetensors.torch.save_file(file, path, metadata={**tiny.WAN.metadata(), **said})
    model, concat_id = load_concat_id(path)
    assert isinstance(model.model.diffusion_model.blocks[0].ffn[0].weight, QuantizedTensor)
    assert concat_id.own is None or torch.equal(concat_id.own.weight, values["time_projection_ref.1.weight"])
    assert "unexpected" not in caplog.text
    found = sampled(model, concat_id)
    assert_close(found, sampled(*load_concat_id(save(tmp_path / "plain.safetensors", values))), WHOLE_RUN)
    assert relative_rms(found, sampled(*load_concat_id(save(tmp_path / "first.safetensors", weights(adaln))))) > 1e-3
    again = model.cached_patcher_init[0](*model.cached_patcher_init[1])
    assert torch.equal(sampled(again, concat_id), found)


@pytest.mark.parametrize("layout", sorted(QUANT_ALGOS.keys() - {"convrot_w4a4"}))  # whose layers are of 256 at least
def test_every_layout_of_comfyui(tmp_path, layout):
    """The reference's projection and a layer of a block, both as ComfyUI's own layer writes them."""
    file = weights()
    for name in ("time_projection_ref.1", "blocks.1.ffn.0"):
        linear = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Linear(*file[f"{name}.weight"].shape[::-1])
        linear.quant_format = layout
        linear.weight = torch.nn.Parameter(QuantizedTensor.from_float(
            file[f"{name}.weight"], QUANT_ALGOS[layout]["comfy_tensor_layout"]), requires_grad=False)
        linear.bias.data = file[f"{name}.bias"]
        file |= {f"{name}.{key}": tensor for key, tensor in linear.state_dict().items()}
        expected = linear.weight.dequantize()
    model, concat_id = load_concat_id(save(tmp_path / "a.safetensors", file), {"dtype": torch.float32})
    assert torch.equal(model.model.diffusion_model.blocks[1].ffn[0].weight.dequantize(), expected)
    original = weights()["time_projection_ref.1.weight"]
    assert concat_id.own.weight.shape == original.shape and 0 < relative_rms(concat_id.own.weight, original) < 0.2


def spoilt(change):
    file, _ = layouts_beside_layers(scaled_fp8(weights())[0])
    change(file)
    return file


def layout_as(key, text):
    return lambda file: file.update({f"{key}.comfy_quant": torch.tensor(list(text), dtype=torch.uint8)})


UNREADABLE = {
    "scales without a layout": (
        lambda file: [file.pop(key) for key in list(file) if key.endswith(".comfy_quant")],
        "has 42 tensors that no Concat-ID has (the first is blocks.0.cross_attn.k.weight_scale)"),
    "an unknown layout of the reference": (layout_as("time_projection_ref.1", b'{"format": "fp3"}'),
                                           "has quantised layers that ComfyUI cannot read ('fp3')"),
    "an unknown layout of a block": (layout_as("blocks.0.ffn.0", b'{"format": "fp3"}'),
                                     "has tensors that do not fit together, or other sizes in its metadata ('fp3')"),
    "a layout that is no JSON": (layout_as("blocks.0.ffn.0", b"{"),
                                 "has tensors that do not fit together, or other sizes in its metadata (Expecting"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_quantised_layers_that_cannot_be_read(tmp_path, name):
    change, words = UNREADABLE[name]
    with pytest.raises(UserError, match=re.escape(f"a.safetensors {words}")):
        load_concat_id(save(tmp_path / "a.safetensors", spoilt(change)))


def test_a_gguf_file(tmp_path):
    """Its own loader reads it, and the record comes from another file of the same model."""
    path = tmp_path / "first_stage.pt"
    path.write_bytes(b"GGUF\3\0\0\0" + bytes(200))
    with pytest.raises(UserError, match=r"first_stage\.pt cannot be read as weights"):
        load_concat_id(path)
    model, expected = tiny.load(), sampled(tiny.load(), record(adaln=True))
    pack_layers(model)
    assert_close(sampled(model, record(adaln=True)), expected, WHOLE_RUN)
    block = model.model.diffusion_model.blocks[0]
    block.modulation = torch.nn.Parameter(block.modulation.detach().view(torch.uint8), requires_grad=False)
    applied(model, adaln=True)  # what cannot be compared is not refused


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(tmp_path, dtype):
    path = save(tmp_path / "a.safetensors", {key: value.to(dtype) for key, value in weights().items()})
    model, concat_id = load_concat_id(path, {"dtype": torch.float32})
    assert concat_id.own.blocks.dtype == dtype
    apply_concat_id(model, concat_id, {"samples": torch.zeros(tiny.LATENT)},
                    latent={"samples": torch.zeros(1, 16, 1, *tiny.LATENT[-2:])})


def test_the_published_files_have_825_and_857_tensors():
    """On meta tensors, of the sizes of Wan 1.3B."""
    with torch.device("meta"):
        wan = comfy.ldm.wan.model.WanModel(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, text_dim=4096,
                                           operations=comfy.ops.disable_weight_init)
    native = wan.state_dict()
    assert len(native) == 825 == len(OUTSIDE_BLOCKS) + 30 * len(IN_A_BLOCK)
    own = {"time_projection_ref.1.weight": torch.empty(9216, 1536, device="meta"),
           "time_projection_ref.1.bias": torch.empty(9216, device="meta"),
           **{f"blocks.{i}.modulation_ref": torch.empty(1, 6, 1536, device="meta") for i in range(30)}}
    assert parse_concat_id(dict(native), "first_stage.pt")[1].own is None
    found, concat_id = parse_concat_id({**native, **own}, "second_stage_adaln.pt")
    assert len({**native, **own}) == 857 and found.keys() == native.keys()
    assert sum(each.numel() for each in (concat_id.own.weight, concat_id.own.bias, concat_id.own.blocks)) == 14_441_472


def i2v():
    return {**weights(), "patch_embedding.weight": torch.zeros(64, 36, 1, 2, 2)}


def with_(key, tensor):
    return {**weights(), key: tensor}


def without(key):
    return {name: tensor for name, tensor in weights().items() if name != key}


MISFITS = {
    "a LoRA": (lora_weights, "is an ordinary LoRA: load it with LoraLoaderModelOnly, and choose a Concat-ID file"),
    "a Stand-In adapter": (adapter_weights, "is a Stand-In adapter: load it with Load Stand-In"),
    "a 14B model": (lambda: {**weights(), "patch_embedding.weight": torch.zeros(5120, 16, 1, 2, 2)},
                    "text-to-video of 1.3B, but is a Wan of width 5120, so a 14B model"),
    "an image-to-video model": (i2v, "takes 36 channels, so an image-to-video"),
    "the image embedding of one": (lambda: with_("img_emb.proj.0.weight", torch.zeros(4)), "so an image-to-video"),
    "Wan 2.2's 5B": (lambda: {**weights(), "patch_embedding.weight": torch.zeros(64, 48, 1, 2, 2)},
                     "takes 48 channels"),
    "VACE": (lambda: TinyWan(text_dim=32).vace_weights(), "text-to-video of 1.3B, but is a VACE model"),
    "another control": (lambda: with_("control_adapter.conv.weight", torch.zeros(4)),
                        "has 1 tensors that no Concat-ID has (the first is control_adapter.conv.weight)"),
    "a text encoder": (lambda: {"shared.weight": torch.zeros(4)}, "is not a Wan model under its native names"),
    "nothing": (dict, "is not a Wan model under its native names: it holds no tensors"),
    "a native tensor lost": (lambda: without("blocks.2.ffn.0.bias"), "lacks 1 of the 129 tensors that a Concat-ID"),
    "a block of the reference lost": (lambda: without("blocks.1.modulation_ref"),
                                      "lacks 1 of the 129 tensors that a Concat-ID of 4 blocks has (the first is "
                                      "blocks.1.modulation_ref)"),
    "the projection lost": (lambda: without("time_projection_ref.1.weight"), "time_projection_ref.1.weight"),
    "another width of the reference": (lambda: with_("blocks.0.modulation_ref", torch.zeros(1, 6, 32)),
                                       "blocks.0.modulation_ref must be [1, 6, 64], but is [1, 6, 32]"),
    "modulation of another shape": (lambda: with_("blocks.2.modulation", torch.zeros(6, 64)),
                                    "blocks.2.modulation must be [1, 6, 64], but is [6, 64]"),
    "no block": (lambda: {name: tensor for name, tensor in weights().items() if not name.startswith("blocks.")},
                 "that a Concat-ID of 1 blocks has"),
    "a flat patch embedding": (lambda: with_("patch_embedding.weight", torch.zeros(64)),
                               "patch_embedding.weight must be [C, 16, 1, 2, 2], but is [64]"),
    "numbers for names": (lambda: {1: torch.zeros(2)}, "other things than named tensors, so it is no"),
    "something else than tensors": (lambda: {"epoch": 3, "lr": 0.1}, "other things than named tensors, so it is no"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits(name):
    make, words = MISFITS[name]
    with pytest.raises(UserError, match=re.escape(words)):
        parse_concat_id(make(), "x.pt")


@pytest.mark.parametrize("references", ["0", "-1", "two", "1.5", "9" * 5000])
def test_numbers_of_references_that_cannot_be(references):
    with pytest.raises(UserError, match="trained with, from 1 to 99"):
        parse_concat_id(weights(), "x.pt", metadata={REFERENCES: references})


def test_weights_that_are_not_finite(tmp_path):
    path = save(tmp_path / "a.safetensors", with_("head.modulation", torch.full((1, 2, 64), torch.nan)))
    with pytest.raises(UserError, match=r"a\.safetensors has values that are not finite .*head\.modulation"):
        load_concat_id(path)


def test_tensors_that_do_not_fit_together(tmp_path):
    path = save(tmp_path / "a.safetensors", with_("blocks.1.ffn.0.weight", torch.zeros(5, 5)))
    with pytest.raises(UserError, match="has tensors that do not fit together"):
        load_concat_id(path)


def test_a_malicious_pickle_is_not_run(tmp_path):
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"blocks.0.modulation": Opens(tmp_path / "opened")}))
    with pytest.raises(UserError, match=r"evil\.pt cannot be read as weights"):
        load_concat_id(path)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("form", ["safetensors", "flat", "legacy"])
def test_a_file_that_is_cut_off(tmp_path, form):
    name, wrapped, _ = FORMS[form]
    path = save(tmp_path / name, weights(), wrapped)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=re.escape(f"{name} cannot be read as weights")):
        load_concat_id(path)


def test_a_file_larger_than_any_that_is_read_whole(tmp_path):
    with (tmp_path / "a.pt").open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # takes no room on the disk
    with pytest.raises(UserError, match=rf"a\.pt has {MOST_BYTES + 1:,} bytes, and such files have at most"):
        load_concat_id(tmp_path / "a.pt")


def and_then(read, happens):
    """A reader after which something happens."""
    def reading(*args, **kwargs):
        content = read(*args, **kwargs)
        happens()
        return content

    return reading


@pytest.mark.parametrize("become", [lambda path, other: other.replace(path), lambda path, other: path.unlink()],
                         ids=["replaced", "removed"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_file_that_changes_while_it_is_read(tmp_path, told_sizes, monkeypatch, name, become):
    """Its hash would be that of another file than was loaded."""
    path = save(tmp_path / name, weights())
    other = save(tmp_path / f"other_{name}", concat_id_weights(TinyWan(text_dim=32, seed=9)))

    reader = (torch, "load") if name == "a.pt" else (comfy.utils, "load_torch_file")
    monkeypatch.setattr(*reader, and_then(getattr(*reader), lambda: become(path, other)))
    with pytest.raises(UserError, match=rf"^{name} was replaced, changed or removed since its reading began: run the"):
        load_concat_id(path)


@pytest.mark.parametrize("when", ["before", "while it is read"])
def test_a_file_that_changes_before_its_model_is_loaded_again(tmp_path, monkeypatch, when):
    """ComfyUI would go on with the weights of another file, and the pack with the record of the first."""
    path = save(tmp_path / "a.safetensors", weights())
    model, _ = load_concat_id(path)
    other = save(tmp_path / "other.safetensors", concat_id_weights(TinyWan(text_dim=32, seed=9)))
    assert model.clone(force_deepcopy=True).cached_patcher_init == model.cached_patcher_init
    if when == "before":
        other.replace(path)
    else:
        monkeypatch.setattr(comfy.utils, "load_torch_file", and_then(comfy.utils.load_torch_file,
                                                                     lambda: other.replace(path)))
    with pytest.raises(UserError, match=r"^a\.safetensors was replaced, changed or removed since its reading began"):
        model.clone(force_deepcopy=True)


def test_a_file_that_is_written_again_is_read_again(tmp_path, monkeypatch):
    """As a training writes it, under the same name and of the same size: ComfyUI runs the node again."""
    _, extensions = folder_paths.folder_names_and_paths["diffusion_models"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    node, found = pack.node_classes()["LoadConcatID"], []
    for seed in (1, 2):
        save(tmp_path / "a.safetensors", concat_id_weights(TinyWan(text_dim=32, seed=seed)))
        os.utime(tmp_path / "a.safetensors", (seed, seed))  # the clock of a disk may be coarse
        inputs = {"file": "a.safetensors", "weight_dtype": "default"}
        fingerprint = node.fingerprint_inputs(**inputs)
        assert fingerprint == node.fingerprint_inputs(**inputs)
        found.append((fingerprint, node.execute(**inputs).args[1].sha256))
    (before, old), (after, new) = found
    assert before != after and old != new


def test_comfyui_can_make_the_model_anew(tmp_path):
    """As it does for torch.compile under dynamic VRAM, and for a second device."""
    model, concat_id = load_concat_id(save(tmp_path / "a.safetensors", weights()), {"dtype": torch.float32})
    patched = apply_concat_id(model, concat_id, {"samples": torch.zeros(tiny.LATENT)},
                              latent={"samples": tiny.random(1, 16, 1, *tiny.LATENT[-2:])})
    wanted, _ = tiny.sample(patched)
    for copy in (patched.deepclone_multigpu(new_load_device=torch.device("cpu")),
                 patched.clone(disable_dynamic=True, force_deepcopy=True)):
        assert copy.model is not patched.model
        found, (report,) = tiny.sample(copy)
        assert torch.equal(found, wanted) and report.identity_calls == tiny.STEPS


def applied(model, adaln):
    return apply_concat_id(model, record(adaln), {"samples": torch.zeros(tiny.LATENT)},
                           latent={"samples": tiny.random(1, 16, 1, *tiny.LATENT[-2:])})


def test_an_adaln_file_through_load_diffusion_model(tmp_path):
    """It loses its 32 tensors there: right beside its own concat_id, and refused beside another file's."""
    native = TinyWan(text_dim=32, seed=7)
    path = save(tmp_path / "second_stage_adaln.safetensors", concat_id_weights(native))
    model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32})
    with pytest.raises(UserError, match="drops its AdaLN tensors: connect both outputs of Load Concat-ID"):
        applied(model, adaln=False)
    right, concat_id = load_concat_id(path, {"dtype": torch.float32})
    given = {"samples": torch.zeros(tiny.LATENT)}, None, None, {"samples": tiny.random(1, 16, 1, *tiny.LATENT[-2:])}
    found, expected = (tiny.sample(apply_concat_id(each, concat_id, *given))[0] for each in (model, right))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_model_is_known_again_in_every_dtype(dtype):
    applied(tiny.load(dtype=dtype), adaln=True)
    with pytest.raises(UserError, match="the model does not have the weights of tiny_concat_id"):
        applied(tiny.load(TinyWan(text_dim=32, seed=11).weights(), dtype=dtype), adaln=True)


def test_a_model_is_known_again_while_a_lora_is_loaded():
    """Also one for all that a block has."""
    model = tiny.load()
    patches = {key: ("diff", (torch.ones_like(tensor),)) for key, tensor in model.model.state_dict().items()
               if ".blocks." in key}
    assert model.add_patches(patches)
    comfy.model_management.load_models_gpu([model])
    assert not torch.equal(model.model.diffusion_model.blocks[0].ffn[0].bias, tiny.WAN.weights()["blocks.0.ffn.0.bias"])
    applied(model, adaln=True)
    comfy.model_management.unload_all_models()


def test_another_model_is_refused():
    with pytest.raises(UserError, match="is a Wan of 4 blocks and width 64, the model has 2 blocks and width 64"):
        wan = TinyWan(text_dim=32, blocks=2)
        applied(comfy.sd.load_diffusion_model_state_dict(wan.weights(), metadata=wan.metadata()), adaln=True)
    vace = comfy.sd.load_diffusion_model_state_dict(tiny.WAN.vace_weights(), metadata=tiny.WAN.metadata())
    with pytest.raises(UserError, match="takes more than noise and text"):
        applied(vace, adaln=True)
