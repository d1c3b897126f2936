"""Damaged, lying and malicious files of weights: an adapter of sound numbers, or one sentence that names the file."""
import io
import json
import math
import os
import re
import signal
import struct
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from small_world.tiny_models import adapter_weights
from standin_core.errors import UserError
from standin_core.stand_in.adapter import load_adapter
from standin_core.weights import LONGEST_KEY, MOST_BYTES, MOST_SHARING, read_weights

LONGEST_SENTENCE = 1500
MOST_SECONDS = 5  # of the process's own time
KEYS = sorted(adapter_weights())


def saved(content, legacy=False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


SAFETENSORS, ARCHIVE, LEGACY = (safetensors.torch.save(adapter_weights()), saved(adapter_weights()),
                                saved(adapter_weights(), legacy=True))
FILES = [("a.safetensors", SAFETENSORS), ("a.ckpt", ARCHIVE), ("a.pt", LEGACY)]
HEADER = 8 + struct.unpack("<Q", SAFETENSORS[:8])[0]


def load(name: str, content: bytes):
    """The adapter of a file with this content, or None where it is refused as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        began = time.process_time()
        try:
            return load_adapter(path)
        except UserError as error:
            assert name in str(error) and len(str(error)) < LONGEST_SENTENCE and str(error).isprintable()
        finally:
            assert time.process_time() - began < MOST_SECONDS
    return None


def assert_sound(adapter):
    assert adapter.rank > 0 and adapter.dim > 0
    for block in adapter.blocks:
        for low_rank in (block.q, block.k, block.v):
            assert low_rank.down.shape == (adapter.rank, adapter.dim) == low_rank.up.shape[::-1]
            assert torch.isfinite(low_rank(torch.zeros(1, adapter.dim))).all()
            assert torch.isfinite(low_rank.down).all() and torch.isfinite(low_rank.up).all()
            assert not low_rank.down.requires_grad and not low_rank.up.requires_grad


@st.composite
def damaged(draw):
    """A good file that was cut, or some bytes of which are others."""
    name, content = draw(st.sampled_from(FILES))
    if draw(st.booleans()):
        return name, content[:draw(st.integers(0, len(content) - 1))]
    data = bytearray(content)
    last = draw(st.sampled_from([8, HEADER, len(data)])) - 1  # the beginning says how to read the rest
    for place in draw(st.lists(st.integers(0, last), min_size=1, max_size=20)):
        data[place] = draw(st.integers(0, 255))
    return name, bytes(data)


@given(damaged())
@examples("damaged files of weights", 150, 5000)
def test_damage(file):
    adapter = load(*file)
    if adapter is not None:
        assert_sound(adapter)


ANY_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))


@given(st.sampled_from(KEYS), st.sampled_from(["dtype", "shape", "data_offsets"]), ANY_JSON)
@examples("files of weights whose header lies", 80, 2500)
def test_a_header_that_lies(key, field, value):
    header = json.loads(SAFETENSORS[8:HEADER])
    header[key][field] = value
    adapter = load("a.safetensors", with_header(json.dumps(header)))
    if adapter is not None:
        assert_sound(adapter)


def with_header(text: str, data: bytes = SAFETENSORS[HEADER:]) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


def entry(**changes) -> dict:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


def one(**changes) -> str:
    return json.dumps({"a": entry(**changes)})


LYING = {
    "a name twice": (f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry(data_offsets=[4, 8]))}}}', 8,
                     "has a twice in its header"),
    "a field twice": (one()[:-2] + ', "shape": [1]}}', 4, "has shape twice in its header"),
    **{f"metadata {said}": (f'{{"__metadata__": {said}, {one()[1:]}', 4, "has metadata that is not text")
       for said in ("[]", "0", '""', "false", "5", '["a"]', '{"a": 1}')},
    **{f"dtype {dtype}": (one(dtype=dtype, data_offsets=[0, size], shape=[2 if dtype == "F4" else 1]), size,
                          f"has a tensor of dtype {dtype} (a), in which nothing is computed: take the file in fp32")
       for dtype, size in (("F4", 1), ("F8_E8M0", 1), ("F9", 2))},
    "a gap": (one(data_offsets=[4, 8]), 8, "has tensors that do not lie one behind the other (a)"),
    "a negative size": (json.dumps({"a": entry(), "b": entry(data_offsets=[4, 3])}), 4,
                        "has tensors that do not lie one behind the other (b)"),
    "less data": (one(), 1, "is cut off: a would end 3 bytes behind its end"),
    "more data": (one(), 8, "has something behind its tensors"),
}


@pytest.mark.parametrize("what", LYING)
def test_a_header_that_is_no_safetensors(tmp_path, what):
    text, size, words = LYING[what]
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_header(one(), bytes(4)))
    assert list(read_weights(path, "").content) == ["a"]
    path.write_bytes(with_header(text, bytes(size)))
    with pytest.raises(UserError, match="^" + re.escape(f"a.safetensors {words}")):
        read_weights(path, "")


def test_a_header_that_says_that_there_are_no_metadata(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(with_header('{"__metadata__": null, ' + one()[1:], bytes(4)))
    assert safetensors.torch.load_file(tmp_path / "a.safetensors") == {"a": torch.zeros(1)}
    found = read_weights(tmp_path / "a.safetensors", "")
    assert found.content == {"a": torch.zeros(1)} and found.metadata == {}


def test_a_header_of_more_than_any_has(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2**40) + SAFETENSORS[8:])
    with pytest.raises(UserError, match=r"^a\.safetensors is damaged or no safetensors: its header would have 1,099"):
        read_weights(tmp_path / "a.safetensors", "")


def as_parameter(value):
    return torch.nn.Parameter(value)


# what a pickle can hold in the place of a tensor, and whether that may pass
ODD = {
    "sparse": (torch.Tensor.to_sparse, False), "compressed": (torch.Tensor.to_sparse_csr, False),
    "without data": (lambda value: value.to("meta"), False), "complex": (lambda value: value + 0j, False),
    "nested": (lambda value: torch.nested.nested_tensor([value[0], value[1]]), False),
    "quantized": (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), False),
    "of int64": (torch.Tensor.long, False), "of fp8": (lambda value: value.to(torch.float8_e4m3fn), False),
    "huge": (lambda value: torch.ones(1).expand(*(10**9 if side == 64 else side for side in value.shape)), False),
    "empty": (lambda value: value[:0], False), "flat": (torch.Tensor.flatten, False),
    "a number": (lambda value: 1.0, False), "None": (lambda value: None, False),
    "fp16": (torch.Tensor.half, True), "a parameter": (as_parameter, True)}


@given(st.sampled_from(sorted(ODD)), st.sets(st.sampled_from(KEYS), min_size=1), st.booleans(), st.booleans())
@examples("files of weights with odd tensors", 80, 2500)
def test_tensors_that_are_none(what, keys, wrapped, legacy):
    change, passes = ODD[what]
    weights = adapter_weights()
    with torch.inference_mode(False):
        content = {key: change(value.clone()) if key in keys else value for key, value in weights.items()}
    try:
        data = saved({"state_dict": content} if wrapped else content, legacy)
    except (RuntimeError, NotImplementedError):  # torch writes it in one of the two formats alone
        return
    adapter = load("a.ckpt", data)
    assert (adapter is not None) is passes
    if passes:
        assert_sound(adapter)


@pytest.mark.parametrize("word", ["sparse", "without data", "complex", "nested", "quantized"])
def test_a_refusal_says_which_tensor_is_odd_and_how(tmp_path, word):
    change, _ = ODD[word]
    with torch.inference_mode(False):
        data = saved({"fine": torch.ones(4, 4), "odd": change(torch.ones(4, 4))})
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(UserError, match=rf"^a\.ckpt has a tensor that is {word} \(odd\)"):
        read_weights(tmp_path / "a.ckpt", "")


def test_parameters_are_read_as_plain_tensors(tmp_path):
    """Also where gradients are kept, as in a training."""
    with torch.inference_mode(False):
        (tmp_path / "a.ckpt").write_bytes(saved({"state_dict": {"a": as_parameter(torch.ones(4))}}))
        found = read_weights(tmp_path / "a.ckpt", "").content["a"]
    assert not found.requires_grad and torch.equal(found, torch.ones(4))


def test_tensors_that_share_their_data(tmp_path):
    """Weights and a copy of them do; a few bytes that claim to be a thousand tensors are refused."""
    shared = torch.ones(100_000)
    for count in (MOST_SHARING, MOST_SHARING + 1):
        (tmp_path / f"{count}.ckpt").write_bytes(saved({f"tensor {i}": shared for i in range(count)}))
    assert len(read_weights(tmp_path / f"{MOST_SHARING}.ckpt", "").content) == MOST_SHARING
    with pytest.raises(UserError, match=r"bytes and claims tensors of 2,000,000 \(tensor 0\)"):
        read_weights(tmp_path / f"{MOST_SHARING + 1}.ckpt", "")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name, save", [("a.safetensors", safetensors.torch.save), ("a.ckpt", saved)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_that_are_not_finite(tmp_path, value, name, save, dtype):
    weights = {key: tensor.to(dtype) for key, tensor in adapter_weights().items()}
    weights[KEYS[5]][-1, -1] = value
    (tmp_path / name).write_bytes(save(weights))
    with pytest.raises(UserError, match=rf"{name} has values that are not finite \(NaN or infinite, in {KEYS[5]}\)"):
        load_adapter(tmp_path / name)


BESIDE = {
    "Lightning": ("state_dict", {"callbacks": {f"ModelCheckpoint{{'monitor': {'loss' * LONGEST_KEY}}}": {
        "kth_value": torch.tensor(math.inf), "best_model_path": "a\nb"}}, "epoch": 3}),
    "DeepSpeed": ("module", {"best loss": torch.tensor(math.nan), "rng": torch.ones(4).to_sparse()}),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("trainer", BESIDE)
def test_what_a_trainer_keeps_beside_the_weights_is_none_of_them(tmp_path, trainer, legacy):
    container, beside = BESIDE[trainer]
    weights = adapter_weights()
    (tmp_path / "a.ckpt").write_bytes(saved({container: weights, **beside}, legacy))
    assert_sound(load_adapter(tmp_path / "a.ckpt"))
    weights[KEYS[5]][-1, -1] = math.nan
    (tmp_path / "a.ckpt").write_bytes(saved({container: weights, **beside}, legacy))
    with pytest.raises(UserError, match=rf"a\.ckpt has values that are not finite \(NaN or infinite, in {KEYS[5]}\)"):
        load_adapter(tmp_path / "a.ckpt")


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_of_many_tensors(tmp_path, trained, legacy):
    """As many as the model of SD1.5 has."""
    weights = {f"model.diffusion_model.input_blocks.{i}.1.transformer_blocks.0.attn2.to_out.0.weight": torch.ones(1)
               for i in range(1200)}
    beside = {name: {i: torch.ones(1) for i in range(1200)} for name in ("ema", "exp_avg", "exp_avg_sq", "master")}
    content = {"state_dict": weights, **(beside if trained else {})}
    (tmp_path / "a.ckpt").write_bytes(saved(content, legacy))
    assert read_weights(tmp_path / "a.ckpt", "").content == weights


@pytest.mark.parametrize("number", ["1000", "20000000", "9" * 5000, "00", "٣", "1_0", "-1"])
@pytest.mark.parametrize("alone", [True, False])
def test_block_numbers_that_no_model_has(number, alone):
    odd = {f"blocks.{number}.self_attn.q_loras.down.weight": torch.zeros(4, 64)}
    assert load("a.ckpt", saved(odd if alone else adapter_weights() | odd)) is None


@pytest.mark.parametrize("key", ["x" * (LONGEST_KEY + 1), "a\nb", "\x1b[31m", "x" * 1_000_000])
def test_names_that_no_tensor_has(tmp_path, key):
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save({key: torch.zeros(1)}))
    with pytest.raises(UserError, match=r"^a\.safetensors has the name .*, which no tensor has") as error:
        read_weights(tmp_path / "a.safetensors", "")
    assert len(str(error.value)) < LONGEST_SENTENCE and str(error.value).isprintable()


def test_the_longest_name_of_a_tensor(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save({"x" * LONGEST_KEY: torch.zeros(1)}))
    assert list(read_weights(tmp_path / "a.safetensors", "").content) == ["x" * LONGEST_KEY]


def test_rank_zero():
    assert load("a.ckpt", saved({key: value[:0] if "down" in key else value[:, :0]
                                 for key, value in adapter_weights().items()})) is None


def test_an_archive_that_would_unpack_into_more_than_it_has(tmp_path):
    """100 MB of zeros are refused by what the archive says of itself, before they are there."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/version", "3")
        archive.writestr("archive/data.pkl", bytes(100 << 20))
    (tmp_path / "bomb.ckpt").write_bytes(out.getvalue())
    with pytest.raises(UserError, match=r"bomb\.ckpt has [0-9,]+ bytes and claims to unpack into 104,857,601"):
        load_adapter(tmp_path / "bomb.ckpt")


@pytest.mark.parametrize("archived", [True, False])
def test_a_pickle_that_goes_on_and_on(archived):
    """16 MB of operations without a tensor, which torch would take half a minute and 1 GB for."""
    pickled = b"\x80\x02" + b"(" * (16 << 20) + b"."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/version", "3")
        archive.writestr("archive/data.pkl", pickled)
    assert load("a.ckpt", out.getvalue() if archived else pickled) is None


def test_a_file_larger_than_any_adapter(tmp_path):
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # takes no room on the disk
    with pytest.raises(UserError, match=rf"a\.safetensors has {MOST_BYTES + 1:,} bytes"):
        load_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo], ids=["a device", "a pipe"])
@pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")
def test_what_has_no_end(tmp_path, name, make):
    """It is refused and not read: a device goes on for ever, and a pipe waits."""
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} must be a file, but is a pipe or a device"):
        load_adapter(tmp_path / name)


def test_state_that_holds_itself():
    content = {}
    content["state_dict"] = content
    assert load("a.ckpt", saved(content)) is None


@pytest.mark.parametrize("name", ["A.SAFETENSORS", "a.Sft", "new\nline.safetensors", "名前.safetensors",
                                  " .safetensors", os.fsdecode(b"bad\xff\xfe.safetensors")])
def test_names_of_good_files(tmp_path, name):
    (tmp_path / name).write_bytes(SAFETENSORS)
    adapter = load_adapter(tmp_path / name)
    assert_sound(adapter)
    assert adapter.name.isprintable()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/nowhere"), lambda path: None])
def test_what_is_no_file(tmp_path, make):
    make(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors cannot be opened \(.*\): a Stand-In adapter is a"):
        load_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name, content", FILES)
def test_a_file_that_is_cut_short_later_changes_nothing(tmp_path, name, content):
    """In a process of its own, which a touch of lost pages would end with a signal."""
    (tmp_path / name).write_bytes(content)
    adapter = load_adapter(tmp_path / name)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        os.truncate(tmp_path / name, 0)
        kept = adapter.blocks[0].q.down
        os._exit(0 if torch.equal(kept, adapter_weights()["blocks.0.self_attn.q_loras.down.weight"]) else 1)
    assert os.waitpid(child, 0)[1] == 0
