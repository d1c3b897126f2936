"""The user's Cancel ends every loop over photos, frames, packets and files at its next turn, and not at its end."""
import struct
import threading
import time

import av
import comfy.model_management
import folder_paths
import numpy as np
import pytest
import safetensors.torch
import torch

import faces
from standin_core.concat_id.model import load_concat_id
from standin_core.evaluation import CompareSettings, compare
from standin_core.face import SFACE, YUNET, FaceSettings, crop_faces, load_detector
from standin_core.face.models import RETINAFACE
from standin_core.face_swap import RefineSettings, enlarge_small_face, enlarged, refine
from standin_core.files import sha256_of
from standin_core.train.checkpoints import resume
from standin_core.train.data.dropped import Unusable
from standin_core.train.data.manifest import Clip
from standin_core.train.data.pairs import PairSettings, pair
from standin_core.train.data.video import decoded
from support import moving_photo, pack

pytestmark = pytest.mark.usefixtures("models_dir")
Interrupted = comfy.model_management.InterruptProcessingException


@pytest.fixture(autouse=True)
def not_cancelled():
    comfy.model_management.interrupt_current_processing(False)
    yield
    comfy.model_management.interrupt_current_processing(False)


def cancel():
    comfy.model_management.interrupt_current_processing(True)


class CancelsWhenRead(dict):
    """A face box; reading it is when the user cancels."""

    read = 0

    def __getitem__(self, key):
        type(self).read += key == "width"
        cancel()
        return super().__getitem__(key)


def test_many_photos():
    box = CancelsWhenRead(x=180, y=80, width=90, height=100)
    photos = faces.as_image(*[faces.astronaut()] * 3)
    with pytest.raises(Interrupted):
        crop_faces(photos, FaceSettings(size=64, parser="none"), [[box], [box], [box]])
    assert CancelsWhenRead.read == 1


def test_a_face_that_is_enlarged(monkeypatch):
    """Cancelled when it was found in the last frame: no mask is drawn. Cancelled later: no square is cut."""
    images, box = torch.rand(5, 64, 80, 3), {"x": 30, "y": 22, "width": 16, "height": 16}
    settings = RefineSettings(size=64, largest_face=20)
    monkeypatch.setattr(refine, "ellipse", lambda *_: pytest.fail("a mask was drawn"))
    with pytest.raises(Interrupted):
        enlarge_small_face(images, settings, face_box=[*[[box]] * 4, [CancelsWhenRead(box)]])
    monkeypatch.undo()
    track = enlarge_small_face(images, settings, face_box=[[box]] * 5).track
    cancel()
    with pytest.raises(Interrupted):
        enlarged(images, track, 64)


@pytest.fixture
def sface(models_dir):
    """An embedder that OpenCV runs: where ComfyUI runs a network, it asks for the user's Cancel itself."""
    faces.put(models_dir, YUNET, SFACE)
    return CompareSettings("sface")


NOBODY = torch.zeros(4, 96, 96, 3)


def test_a_long_video_beside_a_photo(sface):
    turns = []

    def progress():
        turns.append(1)
        cancel()

    with pytest.raises(Interrupted):
        compare(NOBODY, faces.as_image(faces.marked(96, 96, ("red", 40, 40, 8))), sface, progress=progress)
    assert len(turns) == 1


def test_many_photos_beside_a_video(sface):
    """The first of them would be refused."""
    cancel()
    with pytest.raises(Interrupted):
        compare(NOBODY, NOBODY, sface)


def test_a_video_that_is_read(tmp_path):
    moving_photo.write_video(tmp_path / "a.mp4", moving_photo.video(24, 160, 120))
    frames = decoded(tmp_path / "a.mp4", 16.0)
    next(frames)
    cancel()
    with pytest.raises(Interrupted):
        next(frames)


def test_pairs_and_hashes(tmp_path):
    clip = Clip("a.mp4", 0, "a person", ("a.png",))
    cancel()
    with pytest.raises(Interrupted):
        pair([clip], {"a.png": np.ones(3, np.float32)}, PairSettings(), 1)
    (tmp_path / "a").write_bytes(b"weights")
    cancel()
    with pytest.raises(Interrupted):
        sha256_of(tmp_path / "a", comfy.model_management.throw_exception_if_processing_interrupted)


def test_a_model_whose_tensors_are_looked_through(tmp_path):
    """The first of them would be refused."""
    safetensors.torch.save_file({"a": torch.full((4,), torch.nan)}, tmp_path / "a.safetensors")
    cancel()
    with pytest.raises(Interrupted):
        load_concat_id(tmp_path / "a.safetensors")


TENSORS, SIDE = 16, 2048  # 256 MB, which take a second to read, to hash and to look through


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Files that are long to read: by their endings, the same zeros."""
    pack.node_classes()  # loads the pack, which takes a second too
    files = {ending: tmp_path_factory.mktemp("large") / f"a{ending}" for ending in (".safetensors", ".pt")}
    zeros = {f"tensor {i}": torch.zeros(SIDE, SIDE) for i in range(TENSORS)}
    safetensors.torch.save_file(zeros, files[".safetensors"])
    torch.save(zeros, files[".pt"])
    return files


def by_node(node, folder, widget, **others):
    def load(file, models_dir, monkeypatch):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(file.parent)], {file.suffix}))
        pack.node_classes()[node].execute(**{widget: file.name, **others})
    return load


def as_retinaface(file, models_dir, monkeypatch):
    (models_dir / "facexlib").mkdir()
    (models_dir / "facexlib" / RETINAFACE.name).symlink_to(file)
    load_detector("retinaface", 0.5)


def as_checkpoint(file, models_dir, monkeypatch):
    resume(None, file)


@pytest.mark.parametrize("ending, load", [
    (".safetensors", by_node("LoadStandIn", "stand_in", "adapter")),
    (".pt", by_node("LoadStandIn", "stand_in", "adapter")),
    (".safetensors", by_node("LoadIDAnimator", "id_animator", "adapter")),
    (".safetensors", by_node("LoadConcatID", "diffusion_models", "file", weight_dtype="default")),
    (".pt", by_node("LoadConcatID", "diffusion_models", "file", weight_dtype="default")),
    (".safetensors", by_node("LoadPerson", "stand_in/people", "person")),
    (".pt", as_retinaface), (".pt", as_checkpoint),
], ids=["Stand-In", "Stand-In, pickled", "ID-Animator", "Concat-ID", "Concat-ID, pickled", "a person", "RetinaFace",
        "a checkpoint"])
def test_weights_that_are_read(large, models_dir, monkeypatch, ending, load):
    """Cancelled soon after the beginning, from another thread, as the server does."""
    cancelled = []
    timer = threading.Timer(0.02, lambda: (cancelled.append(time.monotonic()), cancel()))
    timer.start()
    with pytest.raises(Interrupted):
        load(large[ending], models_dir, monkeypatch)
    assert time.monotonic() - cancelled[0] < 1


def written(path, stamps, codec):
    """A video of 160x120 pixels whose frames have these time stamps, in sixteenths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for picture, stamp in zip(moving_photo.video(len(stamps), 160, 120), stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = stamp
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_video_with_a_pause_of_a_day(tmp_path):
    """As many frames would be made up as fit into it."""
    written(tmp_path / "gap.mkv", [*range(23), 16 * 86400], "libx264")
    frames = decoded(tmp_path / "gap.mkv", 16.0)
    with pytest.raises(Unusable, match=r"cannot be read: after 1\.4 s, the next frame is stamped 86400\.0 s"):
        assert sum(1 for _ in frames) < 30
    written(tmp_path / "short.mkv", [*range(12), *range(12 + 48, 24 + 48)], "libx264")  # three seconds
    assert sum(1 for _ in decoded(tmp_path / "short.mkv", 16.0)) == 72


def test_a_pause_among_frames_without_stamps(tmp_path):
    """Which MPEG-TS may have: two bits of a packet's header say whether stamps follow."""
    file = tmp_path / "gap.ts"
    written(file, [*range(12), *range(12 + 16 * 60, 24 + 16 * 60)], "libx264")
    data = bytearray(file.read_bytes())
    headers = [place for place in range(len(data) - 8) if data[place:place + 4] == b"\0\0\1\xe0"]
    for place in headers[8:16]:
        data[place + 7] &= 0b00111111
    file.write_bytes(data)
    with pytest.raises(Unusable, match="and a pause is at most 5 s"):
        sum(1 for _ in decoded(file, 16.0))


def test_a_video_that_claims_huge_frames(tmp_path):
    """Its header says so; no memory is taken for them."""
    file = tmp_path / "huge.avi"
    written(file, range(3), "rawvideo")
    whole = file.read_bytes()
    sizes = whole.index(b"strf") + 12  # behind the length of the chunk and of the header, as AVI has it
    assert struct.unpack("<II", whole[sizes:sizes + 8]) == (160, 120)
    file.write_bytes(whole[:sizes] + struct.pack("<II", 16384, 8192) + whole[sizes + 8:])
    with pytest.raises(Unusable, match="it claims frames of 16384x8192 pixels, at most 67108864 are read"):
        next(decoded(file, 16.0))
