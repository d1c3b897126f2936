"""Face networks as files: where they are looked for, what is said when they are missing, and how they are fetched."""
import hashlib
import http.server
import io
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import comfy.model_management
import pytest
import torch
import torchvision

import faces
from pickles import Opens
from standin_core.errors import UserError
from standin_core.face.detectors import load_detector
from standin_core.face.download import download_if_missing
from standin_core.face.given import FETCHED
from standin_core.face.models import (
    ARCFACE,
    BISENET,
    FOLDERS,
    MODEL_FILES,
    RETINAFACE,
    SFACE,
    YUNET,
    ManagedNetwork,
    ModelFile,
    file_refusal,
    find_model,
)
from support import pack

pytestmark = pytest.mark.usefixtures("models_dir")


@pytest.mark.parametrize("folder", [*FOLDERS, "facexlib/parsing"])
def test_the_folders_of_other_packs_are_searched(models_dir, folder):
    assert find_model(BISENET.name) is None
    (models_dir / folder).mkdir(parents=True)
    (models_dir / folder / BISENET.name).touch()
    assert find_model(BISENET.name) == models_dir / folder / BISENET.name


def test_a_folder_from_extra_model_paths(models_dir, tmp_path_factory, monkeypatch):
    import folder_paths

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / BISENET.name).touch()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "facexlib", ([str(elsewhere)], set()))
    assert find_model(BISENET.name) == elsewhere / BISENET.name


def test_what_is_missing_is_said_in_full():
    """Name, size, hash, source page and folder."""
    for model_file, size, page in (
            (RETINAFACE, "109.5 MB", "https://github.com/xinntao/facexlib/releases/tag/v0.1.0"),
            (YUNET, "0.2 MB", "https://github.com/opencv/opencv_zoo/tree/47534e27c9851bb1128ccc0102f1145e27f23f98/"
                              "models/face_detection_yunet")):
        refusal = file_refusal(model_file)
        assert str(refusal) == (f"there is no {model_file.name} ({size}, SHA-256 {model_file.sha256}, from {page}, "
                                "into models/facexlib)")
    with pytest.raises(UserError, match=r"bisenet cannot run.*parsing_bisenet\.pth \(53\.3 MB"):
        faces.crop(faces.astronaut(), parser="bisenet")


def official_retinaface_keys() -> dict[str, tuple[int, ...]]:
    """The published layout, written down from its source (biubug6/Pytorch_Retinaface, retinaface.py and net.py): a
    ResNet-50 body, three levels of features of 256 channels, two anchors for each place.
    """
    keys = {f"body.{key}": tuple(value.shape) for key, value in torchvision.models.resnet50().state_dict().items()
            if not key.startswith("fc.")}

    def convolution(name, out, into, size):
        keys[f"{name}.0.weight"] = (out, into, size, size)
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            keys[f"{name}.1.{statistic}"] = (out,)
        keys[f"{name}.1.num_batches_tracked"] = ()

    for level, channels in enumerate((512, 1024, 2048), start=1):
        convolution(f"fpn.output{level}", 256, channels, 1)
    for merge in (1, 2):
        convolution(f"fpn.merge{merge}", 256, 256, 3)
    for level in (1, 2, 3):
        convolution(f"ssh{level}.conv3X3", 128, 256, 3)
        convolution(f"ssh{level}.conv5X5_1", 64, 256, 3)
        for name in ("conv5X5_2", "conv7X7_2", "conv7x7_3"):
            convolution(f"ssh{level}.{name}", 64, 64, 3)
    for head, values in (("ClassHead", 2), ("BboxHead", 4), ("LandmarkHead", 10)):
        for level in range(3):
            keys[f"{head}.{level}.conv1x1.weight"] = (2 * values, 256, 1, 1)
            keys[f"{head}.{level}.conv1x1.bias"] = (2 * values,)
    return {f"module.{key}": shape for key, shape in keys.items()}


def official_bisenet_keys() -> dict[str, tuple[int, ...]]:
    """The published layout (zllrunning/face-parsing.PyTorch, model.py): ResNet-18, attention refinement, fusion."""
    keys = {}

    def norm(name, channels):
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            keys[f"{name}.{statistic}"] = (channels,)
        keys[f"{name}.num_batches_tracked"] = ()

    def convolution(name, out, into, size):
        keys[f"{name}.conv.weight"] = (out, into, size, size)
        norm(f"{name}.bn", out)

    for key, value in torchvision.models.resnet18().state_dict().items():
        if not key.startswith("fc."):
            keys[f"cp.resnet.{key}"] = tuple(value.shape)
    for scale, channels in ((16, 256), (32, 512)):
        convolution(f"cp.arm{scale}.conv", 128, channels, 3)
        keys[f"cp.arm{scale}.conv_atten.weight"] = (128, 128, 1, 1)
        norm(f"cp.arm{scale}.bn_atten", 128)
        convolution(f"cp.conv_head{scale}", 128, 128, 3)
    convolution("cp.conv_avg", 128, 512, 1)
    convolution("ffm.convblk", 256, 256, 1)
    keys["ffm.conv1.weight"], keys["ffm.conv2.weight"] = (64, 256, 1, 1), (256, 64, 1, 1)
    for output, into, middle in (("conv_out", 256, 256), ("conv_out16", 128, 64), ("conv_out32", 128, 64)):
        convolution(f"{output}.conv", middle, into, 3)
        keys[f"{output}.conv_out.weight"] = (19, middle, 1, 1)
    return keys


def official_arcface_keys() -> dict[str, tuple[int, ...]]:
    """The published layout (TreB1eN/InsightFace_Pytorch, model.py): 24 blocks with squeeze and excitation."""
    keys = {"input_layer.0.weight": (64, 3, 3, 3), "input_layer.2.weight": (64,),
            "output_layer.3.weight": (512, 512 * 7 * 7), "output_layer.3.bias": (512,)}

    def norm(name, channels):
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            keys[f"{name}.{statistic}"] = (channels,)
        keys[f"{name}.num_batches_tracked"] = ()

    norm("input_layer.1", 64)
    norm("output_layer.0", 512)
    norm("output_layer.4", 512)
    into, block = 64, 0
    for channels, count in ((64, 3), (128, 4), (256, 14), (512, 3)):
        for _ in range(count):
            name = f"body.{block}"
            if into != channels:
                keys[f"{name}.shortcut_layer.0.weight"] = (channels, into, 1, 1)
                norm(f"{name}.shortcut_layer.1", channels)
            norm(f"{name}.res_layer.0", into)
            keys[f"{name}.res_layer.1.weight"] = (channels, into, 3, 3)
            keys[f"{name}.res_layer.2.weight"] = (channels,)
            keys[f"{name}.res_layer.3.weight"] = (channels, channels, 3, 3)
            norm(f"{name}.res_layer.4", channels)
            keys[f"{name}.res_layer.5.fc1.weight"] = (channels // 16, channels, 1, 1)
            keys[f"{name}.res_layer.5.fc2.weight"] = (channels, channels // 16, 1, 1)
            into, block = channels, block + 1
    return keys


def networks():
    from facexlib.detection.retinaface import RetinaFace
    from facexlib.parsing.bisenet import BiSeNet
    from facexlib.recognition.arcface_arch import Backbone

    return {"retinaface": (RETINAFACE, official_retinaface_keys(),
                           RetinaFace(network_name="resnet50", device=torch.device("cpu"))),
            "bisenet": (BISENET, official_bisenet_keys(), BiSeNet(num_class=19)),
            "arcface": (ARCFACE, official_arcface_keys(), Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"))}


@pytest.mark.parametrize("which", ["retinaface", "bisenet", "arcface"])
def test_the_official_layout_loads(models_dir, which):
    """A file of these keys and shapes, strictly; and their bytes are the published file's but for its index."""
    model_file, keys, network = networks()[which]
    weights = {key: torch.full(shape, 0.5) if shape else torch.tensor(7) for key, shape in keys.items()}
    payload = sum(value.numel() * value.element_size() for value in weights.values())
    assert 0.985 * model_file.size < payload < model_file.size
    (models_dir / "facexlib").mkdir()
    torch.save(weights, models_dir / "facexlib" / model_file.name)
    loaded = ManagedNetwork(network, model_file).network.state_dict()
    assert set(loaded) == {key.removeprefix("module.") for key in keys}
    assert all(torch.equal(loaded[key.removeprefix("module.")], value) for key, value in weights.items())


def page(path):
    path.write_text("<!DOCTYPE html><html>Not found</html>")


def other_keys(path):
    torch.save({"weight": torch.zeros(1)}, path)


def no_weights(path):
    torch.save([1, 2, 3], path)


def empty(path):
    path.touch()


@pytest.mark.parametrize("write", [page, other_keys, no_weights, empty])
def test_a_file_that_is_something_else(models_dir, write):
    (models_dir / "facexlib").mkdir()
    write(models_dir / "facexlib" / RETINAFACE.name)
    with pytest.raises(UserError, match=r"(cannot be read|is broken).*: delete .*, and get detection_Resnet50_Final"):
        faces.crop(faces.astronaut(), size=64)


def pointer(path):
    """What git fetches of opencv_zoo without git-lfs."""
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{YUNET.sha256}\nsize {YUNET.size}\n")


def another_network(path):
    shutil.copy(faces.MADE[SFACE], path)


def cut_off(path):
    path.write_bytes(faces.MADE[YUNET].read_bytes()[:2000])


@pytest.mark.parametrize("write", [page, pointer, another_network, cut_off, empty])
def test_an_onnx_file_that_is_something_else(models_dir, write):
    (models_dir / "facexlib").mkdir()
    write(models_dir / "facexlib" / YUNET.name)
    with pytest.raises(UserError, match=r"is broken or another model: delete .*, and get face_detection_yunet"):
        faces.crop(faces.astronaut(), size=64)


def test_nothing_in_a_file_is_run(models_dir):
    """A pickle that would write a file when loaded is refused."""
    (models_dir / "facexlib").mkdir()
    torch.save({"weight": Opens(models_dir / "opened")}, models_dir / "facexlib" / RETINAFACE.name)
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_detector("retinaface", 0.5)
    assert not (models_dir / "opened").exists()


def test_the_memory_manager_has_the_network(models_dir):
    """It is on ComfyUI's list while it is used, and ComfyUI can drop it; the next photo brings it back. (On a CPU there
    is no other place to move it to.)
    """
    from facexlib.parsing.bisenet import BiSeNet

    (models_dir / "facexlib").mkdir()
    torch.save(faces.bisenet_weights(), models_dir / "facexlib" / BISENET.name)
    managed = ManagedNetwork(BiSeNet(num_class=19), BISENET)
    managed.load()
    assert managed.network in [loaded.model.model for loaded in comfy.model_management.current_loaded_models]
    comfy.model_management.unload_all_models()
    assert managed.network not in [loaded.model.model for loaded in comfy.model_management.current_loaded_models]
    managed.load()
    assert managed.network in [loaded.model.model for loaded in comfy.model_management.current_loaded_models]


CONTENT = bytes(range(256)) * 20_000


class Source(http.server.BaseHTTPRequestHandler):
    """Serves one file; breaks off after ``breaks_after`` bytes once, and knows ranges or not."""

    protocol_version = "HTTP/1.1"
    content, breaks_after, knows_ranges, chunked, requests = CONTENT, None, True, False, []

    def do_GET(self):
        first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        cls = type(self)
        cls.requests.append(first)
        if cls.chunked:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"1000\r\nonly this")
            self.close_connection = True
            return
        first = first if cls.knows_ranges else 0
        body = cls.content[first:]
        self.send_response(206 if cls.knows_ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cls.breaks_after is not None:
            body, cls.breaks_after = body[:cls.breaks_after], None
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def source():
    handler = type("OneSource", (Source,), {"requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.file = ModelFile("weights.pth", "torch",
                             f"http://127.0.0.1:{server.server_port}/releases/download/v1/weights.pth",
                             len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    yield handler
    server.shutdown()
    server.server_close()


def test_a_download(models_dir, source):
    download_if_missing(source.file)
    folder = models_dir / "facexlib"
    assert (folder / "weights.pth").read_bytes() == CONTENT
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "weights.pth"]
    download_if_missing(source.file)
    assert source.requests == [0]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_downloads_at_once(models_dir, source, knows_ranges):
    source.knows_ranges = knows_ranges
    with ThreadPoolExecutor(6) as threads:
        for each in [threads.submit(download_if_missing, source.file) for _ in range(6)]:
            each.result()
    assert (models_dir / "facexlib" / "weights.pth").read_bytes() == CONTENT
    assert source.requests == [0]


def test_a_broken_download_continues(models_dir, source):
    source.breaks_after = 2_000_000
    with pytest.raises(UserError, match="it continues where it stopped"):
        download_if_missing(source.file)
    part = models_dir / "facexlib" / "weights.pth.part"
    have = part.stat().st_size
    assert 0 < have <= 2_000_000 and part.read_bytes() == CONTENT[:have]
    download_if_missing(source.file)
    assert source.requests == [0, have]
    assert (models_dir / "facexlib" / "weights.pth").read_bytes() == CONTENT


def test_a_source_that_knows_no_ranges_begins_anew(models_dir, source):
    source.knows_ranges = False
    (models_dir / "facexlib").mkdir()
    (models_dir / "facexlib" / "weights.pth.part").write_bytes(CONTENT[:1000])
    download_if_missing(source.file)
    assert (models_dir / "facexlib" / "weights.pth").read_bytes() == CONTENT


def test_another_file_than_expected_is_not_kept(models_dir, source):
    with pytest.raises(UserError, match="sent another file than expected"):
        download_if_missing(replace(source.file, sha256="0" * 64))
    assert [path.name for path in (models_dir / "facexlib").iterdir()] == [".lock"]


def test_a_body_that_breaks_off_in_a_chunk(source):
    source.chunked = True
    with pytest.raises(UserError, match="could not be downloaded"):
        download_if_missing(source.file)


def test_a_source_that_speaks_no_http(source, monkeypatch):
    monkeypatch.setattr(source, "do_GET", lambda request: request.wfile.write(b"\x00\xff" * 1000))
    with pytest.raises(UserError, match="could not be downloaded") as error:
        download_if_missing(source.file)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_a_folder_that_cannot_be_made(models_dir, source):
    (models_dir / "facexlib").touch()
    with pytest.raises(UserError, match="could not be downloaded"):
        download_if_missing(source.file)


def test_a_source_that_cannot_be_reached(source):
    with pytest.raises(UserError, match=r"could not be downloaded .*get by hand weights\.pth \(5\.1 MB"):
        download_if_missing(replace(source.file, url="http://127.0.0.1:9/weights.pth"))


def test_an_interrupt_stops_a_download(models_dir, source):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        download_if_missing(source.file)
    download_if_missing(source.file)
    assert (models_dir / "facexlib" / "weights.pth").read_bytes() == CONTENT


def test_nothing_is_downloaded_unless_asked(monkeypatch, models_dir, source):
    """The whole stage with a source of our own in place of GitHub: off it is not called; on, the file comes and serves.
    """
    weights = io.BytesIO()
    torch.save(faces.bisenet_weights(), weights)
    source.content = weights.getvalue()
    served = replace(BISENET, url=source.file.url, size=len(source.content),
                     sha256=hashlib.sha256(source.content).hexdigest())
    monkeypatch.setattr("standin_core.face.preprocess.BISENET", served)
    assert "bisenet not used" in faces.crop(faces.astronaut(), size=64).verdict
    faces.crop(faces.astronaut(), size=64, detector="cascade", parser="none", download_missing=True)
    assert source.requests == []
    crop = faces.crop(faces.astronaut(), size=64, detector="cascade", download_missing=True)
    assert source.requests == [0]
    assert "all but background kept by bisenet" in crop.verdict
    assert (models_dir / "facexlib" / BISENET.name).read_bytes() == source.content


@pytest.mark.parametrize("detector, model_file", [("auto", RETINAFACE), ("retinaface", RETINAFACE), ("yunet", YUNET)])
def test_the_detector_is_downloaded_too(monkeypatch, source, detector, model_file):
    assert FETCHED[detector] is model_file
    monkeypatch.setitem(FETCHED, detector, replace(model_file, url="http://127.0.0.1:9/detector"))
    with pytest.raises(UserError, match=f"{re.escape(model_file.name)} could not be downloaded"):
        faces.crop(faces.astronaut(), size=64, detector=detector, download_missing=True)


@pytest.mark.parametrize("model_file", MODEL_FILES, ids=lambda model_file: model_file.name)
def test_downloads_are_over_https(model_file):
    """By a connection that cannot be tampered with, from an address that stays; the hash is a SHA-256."""
    assert model_file.url.startswith("https://") and model_file.url.endswith(f"/{model_file.name}")
    assert re.fullmatch("[0-9a-f]{64}", model_file.sha256)


def test_a_file_that_arrives_or_changes_is_noticed(models_dir):
    """ComfyUI keeps a node's result as long as its fingerprint stays. A result from before a file came, or from a file
    that was replaced since, must not be kept.
    """
    node = pack.node_classes()["FacePreprocess"]
    chosen = {"auto": {"detector": "cascade", "parser": "auto"}, "named": {"detector": "cascade", "parser": "none"}}
    before = {name: node.fingerprint_inputs(image=None, **inputs) for name, inputs in chosen.items()}
    assert before == {name: node.fingerprint_inputs(image=None, **inputs) for name, inputs in chosen.items()}
    seen = {before["auto"]}
    files = models_dir / "facexlib" / BISENET.name, models_dir / "insightface" / "models" / "pack" / "any.onnx"
    for content in (b"", b"broken"):
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            seen.add(node.fingerprint_inputs(image=None, **chosen["auto"]))
    assert len(seen) == 1 + 2 * len(files)
    assert node.fingerprint_inputs(image=None, **chosen["named"]) == before["named"]


def test_prepared_data_are_made_anew_with_other_face_models(models_dir):
    """Its presets have a parser, and pairs a face recognition network, that "auto" chooses."""
    node = pack.node_classes()["PrepareTrainingData"]
    before = node.fingerprint_inputs(detector=["cascade"], name=["people"])
    assert before == node.fingerprint_inputs(detector=["cascade"], name=["people"])
    (models_dir / "facexlib").mkdir(parents=True, exist_ok=True)
    (models_dir / "facexlib" / BISENET.name).write_bytes(b"broken")
    assert before != node.fingerprint_inputs(detector=["cascade"], name=["people"])
