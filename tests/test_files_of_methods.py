"""Damaged and lying files of Concat-ID, ID-Animator and people: sound content, or one sentence that names the file."""
import ctypes
import functools
import json
import math
import mmap
import os
import signal
import struct
import tempfile
import time
from pathlib import Path

import comfy.memory_management
import comfy_aimdo.model_mmap
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import faces
import tiny
from examples import examples
from golden_cases import GOLDEN
from small_world.tiny_models import concat_id_weights
from standin_core.concat_id.model import REFERENCES, load_concat_id
from standin_core.errors import UserError
from standin_core.id_animator.adapter import load_adapter
from standin_core.person import PersonSettings, load_person, make_person, save_person
from standin_core.person.file import content_sha256

LONGEST_SENTENCE = 1500
MOST_SECONDS = 5  # of the process's own time


weights = functools.cache(functools.partial(concat_id_weights, tiny.WAN))


def concat_id(metadata=None) -> bytes:
    return safetensors.torch.save(weights(), metadata=metadata or tiny.WAN.metadata())


@functools.cache
def person() -> bytes:
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "anna.safetensors"
        made, _ = make_person("Anna", faces.as_image(faces.astronaut()), PersonSettings(detector="cascade"))
        save_person(made, path)
        return path.read_bytes()


def check_concat_id(loaded):
    model, record = loaded
    assert record.marks.shape == (tiny.WAN.blocks, 6, tiny.WAN.dim) and record.marks.is_floating_point()
    assert 1 <= record.references <= 99 and all(
        each.is_floating_point() for each in (record.own.weight, record.own.bias, record.own.blocks))
    assert all(torch.isfinite(each.float()).all() for each in model.model.diffusion_model.state_dict().values())


def check_adapter(adapter):
    parts = (adapter.resampler.values(), adapter.low_rank.values(),
             [each for place in adapter.projections for each in (place.key, place.value)])
    assert all(each.numel() and torch.isfinite(each.float()).all() for part in parts for each in part)


def check_person(found):
    for crop in found.crops.values():
        assert len(crop.image) == len(crop.faces) == len(found.photos)
        assert crop.image.min() >= 0 and crop.image.max() <= 1


# kind -> (what a good file holds, its loader, what is true of whatever it lets through)
KINDS = {"Concat-ID": (functools.cache(concat_id), load_concat_id, check_concat_id),
         "ID-Animator": (functools.cache((GOLDEN / "id_animator_small" / "animator.safetensors").read_bytes),
                         load_adapter, check_adapter),
         "person": (person, load_person, check_person)}


def loaded(kind: str, content: bytes):
    """What the loader makes of a file with this content, or None where it is refused as it should be."""
    _, load, check = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(content)
        began = time.process_time()
        try:
            found = load(path)
        except UserError as error:
            assert "a.safetensors" in str(error) and len(str(error)) < LONGEST_SENTENCE and str(error).isprintable()
            return None
        finally:
            assert time.process_time() - began < MOST_SECONDS
        check(found)
        return found


def header(content: bytes) -> tuple[dict, bytes]:
    """What a safetensors says of itself, and its data."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def joined(says: dict, data: bytes) -> bytes:
    text = json.dumps(says).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_file(kind):
    """Or a loader that refuses everything would do for the tests below."""
    assert loaded(kind, KINDS[kind][0]()) is not None


@given(st.sampled_from(sorted(KINDS)), st.data())
@examples("damaged files of other methods and of people", 40, 5000)
def test_damage(kind, data):
    content = bytearray(KINDS[kind][0]())
    if data.draw(st.booleans()):
        loaded(kind, bytes(content[:data.draw(st.integers(0, len(content) - 1))]))
        return
    last = data.draw(st.sampled_from([8, 3000, len(content)])) - 1
    for place in data.draw(st.lists(st.integers(0, last), min_size=1, max_size=20)):
        content[place] = data.draw(st.integers(0, 255))
    loaded(kind, bytes(content))


ANY_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))


@given(st.sampled_from(sorted(KINDS)), st.sampled_from(["dtype", "shape", "data_offsets"]), ANY_JSON, st.data())
@examples("files of other methods whose header lies", 40, 2500)
def test_a_header_that_lies(kind, field, value, data):
    says, tensors = header(KINDS[kind][0]())
    says[data.draw(st.sampled_from(sorted(says.keys() - {"__metadata__"})))][field] = value
    loaded(kind, joined(says, tensors))


@given(st.sampled_from(sorted(weights())), st.lists(st.integers(0, 80), max_size=5))
@examples("Concat-ID files with a tensor of another shape", 40, 2500)
def test_a_model_with_a_tensor_of_another_shape(key, shape):
    wanted = list(weights()[key].shape)
    changed = {**weights(), key: torch.zeros(shape if math.prod(shape) < 10**6 else [])}
    content = safetensors.torch.save(changed, metadata=tiny.WAN.metadata())
    assert (loaded("Concat-ID", content) is not None) is (shape == wanted)


CONFIG = st.builds(lambda inner: json.dumps({"transformer": inner}), ANY_JSON | st.dictionaries(
    st.sampled_from(["num_heads", "text_dim", "num_layers", "dim", "image_model", "model_type", "more"]),
    ANY_JSON | st.sampled_from([4, 32, 10**6, "flux"])))
SAID = st.dictionaries(st.sampled_from(["config", "_quantization_metadata", REFERENCES, "format"]),
                       CONFIG | st.text(max_size=8) | st.builds(json.dumps, ANY_JSON))


@given(SAID)
@examples("Concat-ID files whose metadata lie", 40, 2500)
def test_a_model_whose_metadata_lie(said):
    loaded("Concat-ID", concat_id({**tiny.WAN.metadata(), **said}))


@pytest.mark.parametrize("key, value", [("num_layers", 10**6), ("image_model", "flux"), ("num_heads", 2.0)])
def test_metadata_do_not_decide_what_is_built(tmp_path, key, value):
    """ComfyUI would build a million blocks of a file of four."""
    told = json.loads(tiny.WAN.metadata()["config"])["transformer"]
    path = tmp_path / "a.safetensors"
    path.write_bytes(concat_id({"config": json.dumps({"transformer": {**told, key: value}})}))
    with pytest.raises(UserError, match=rf"other sizes in its metadata \(its metadata set {key}\)"):
        load_concat_id(path)


@pytest.mark.parametrize("key", ["blocks.1.modulation", "blocks.1.modulation_ref", "time_projection_ref.1.weight"])
def test_whole_numbers_where_the_pack_computes(tmp_path, key):
    safetensors.torch.save_file({name: tensor.int() if name == key else tensor
                                 for name, tensor in weights().items()}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=rf"a\.safetensors: {key} must hold floating point numbers, but is torch.int32"):
        load_concat_id(tmp_path / "a.safetensors")


@pytest.mark.parametrize("key, said", [
    ("faces", []), ("faces", [{}]), ("faces", [{"measured": True}]), ("faces", 5),
    ("faces", [{"measured": "yes", "cut_out": [1]}]), ("verdicts", ["good"]), ("verdicts", None)])
def test_a_person_of_whom_something_else_is_said(tmp_path, key, said):
    """With the hash that belongs to it, as anyone can write it."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(person())
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as opened:
        metadata = {**opened.metadata(), key: json.dumps(dict.fromkeys(("stand_in", "concat_id", "id_animator"), said))}
    del metadata["sha256"]
    safetensors.torch.save_file(tensors, path, metadata=metadata | {"sha256": content_sha256(tensors, metadata)})
    with pytest.raises(UserError, match=r"a\.safetensors cannot be read as weights"):
        load_person(path)


def test_a_damaged_person_in_the_way_of_another(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(person())
    anna = load_person(path)
    path.write_bytes(person()[:1000])
    with pytest.raises(UserError, match=r"cannot be read as weights .*: choose another name, or switch replace on\.$"):
        save_person(anna, path)
    save_person(anna, path, replace=True)
    assert load_person(path).name == "Anna"


class OnTheProcessor:
    """``comfy_aimdo.model_mmap.ModelMMAP`` without a graphics card: a private mapping of the file."""

    def __init__(self, path):
        self.handle = os.open(path, os.O_RDONLY)
        self.pages = mmap.mmap(self.handle, 0, access=mmap.ACCESS_COPY)

    def get(self):
        return ctypes.addressof(ctypes.c_char.from_buffer(self.pages))

    def get_file_handle(self):
        return self.handle


@pytest.mark.parametrize("metadata", [5, "a", ["a"], 0, "", [], False, {REFERENCES: 5}, {REFERENCES: None},
                                      {"config": {"a": "b"}}], ids=str)
def test_metadata_that_are_no_texts(tmp_path, monkeypatch, metadata):
    """With dynamic VRAM, ComfyUI reads a safetensors by a loader of its own, which does not look at them."""
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(comfy_aimdo.model_mmap, "ModelMMAP", OnTheProcessor)
    says, data = header(concat_id())
    (tmp_path / "a.safetensors").write_bytes(joined({**says, "__metadata__": metadata}, data))
    with pytest.raises(UserError, match=r"^a\.safetensors has metadata that is not text"):
        load_concat_id(tmp_path / "a.safetensors")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process of its own takes the signal")
def test_a_model_that_is_cut_short_after_it_was_loaded(tmp_path):
    """Nothing of the pack's is the mapped file any more, whose lost pages would end the process."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(concat_id())
    model, record = load_concat_id(path)
    kept = [record.marks, record.own.weight, record.own.bias, record.own.blocks,
            *model.model.diffusion_model.state_dict().values()]
    sums = [each.double().sum() for each in kept]
    child = os.fork()
    if not child:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        os.truncate(path, 0)
        os._exit(0 if all(each.double().sum() == expected for each, expected in zip(kept, sums)) else 1)
    assert os.waitpid(child, 0)[1] == 0
