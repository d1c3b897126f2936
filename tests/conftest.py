"""ComfyUI's real modules on the path, on the CPU; see docs/architecture.md for the order of the path."""
import os
import sys
from pathlib import Path

import pytest
import random_cases
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined, also in Triton's own library

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from support import environment

environment.import_comfyui("--cpu", "--use-pytorch-cross-attention")

LEFT_OUT = pytest.StashKey[int]()


def let_the_interpreter_count():
    """Triton's reads the bound of a loop as int() of an array of one number, which numpy refuses from 2.4 on."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    as_it_is = interpreter._patch_lang_tensor

    def patch(tensor, *scope):
        as_it_is(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patch


let_the_interpreter_count()


def pytest_collection_modifyitems(config, items):
    """What takes minutes is left out unless it is asked for, and what needs CUDA where there is none, which is said in
    one line at the end.
    """
    if "slow" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)
    if not torch.cuda.is_available():
        left_out = [item for item in items if item.get_closest_marker("cuda")]
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]
        config.stash[LEFT_OUT] = len(left_out)
        config.hook.pytest_deselected(items=left_out)


def pytest_report_header():
    return f"random cases: STAND_IN_SEED={random_cases.SEED} repeats them"


def pytest_sessionfinish():
    if random_cases.NIGHTLY:
        random_cases.write_record()


def pytest_terminal_summary(terminalreporter, config):
    count = config.stash.get(LEFT_OUT, 0)
    if count:
        terminalreporter.write_line(f"{count} tests marked cuda were left out: PyTorch finds no CUDA device here")


@pytest.fixture(autouse=True)
def as_comfyui_executes():
    """ComfyUI runs every node under inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture
def bars(monkeypatch):
    """What ComfyUI is told for its progress bars: (value, maximum), in order. It leaves out what comes within 0.1 s."""
    import comfy.utils

    told = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: told.append(
        (value, total)))
    return told


@pytest.fixture(scope="module")
def model():
    """A tiny Wan, the same for the tests of a file."""
    import tiny

    return tiny.load()


@pytest.fixture(scope="module")
def plain(model):
    """What it samples without an identity."""
    import tiny

    return tiny.sample(model)[0]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real ComfyUI with the pack and tiny models, and an adapter that fits none of them."""
    import safetensors.torch

    from support import pack
    from support.comfyui_server import link_node_pack, running_server
    from small_world.tiny_models import adapter_weights, write_tiny_models

    base = tmp_path_factory.mktemp("comfyui")
    write_tiny_models(base / "models")
    safetensors.torch.save_file(adapter_weights(dim=128), base / "models" / "stand_in" / "wide_stand_in.safetensors")
    drawn = "animatediff_nodes"  # another pack's nodes, for the page to know those of a workflow
    link_node_pack(base, drawn, environment.PACK / "scripts" / "support" / drawn)
    with running_server(pack.COMFYUI, base, base / "log.txt", "--preview-method", "latent2rgb") as server:
        yield server


@pytest.fixture(scope="module")
def comfy(server, photo):
    """ComfyUI's page in a browser, which offers files of the names that the workflows name.

    After the upload: playwright keeps an event loop, beside which the client of the server cannot have its own.
    """
    from build_workflows import empty_models

    from support.browser import comfy_page

    empty_models(server.base)
    with comfy_page(server.url) as page:
        yield page


@pytest.fixture(scope="module")
def photo(server, request, tmp_path_factory):
    """The name under which the server has a photo of a face, cut out as a face swap needs it.

    Each file has a name of its own for it, since ComfyUI runs no node again whose inputs are what they were.
    """
    import PIL.Image
    from support import moving_photo

    path = tmp_path_factory.mktemp("photo") / f"cut_out_{request.module.__name__}.png"
    PIL.Image.fromarray(moving_photo.cut_out()).save(path)
    return server.upload(path)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A ComfyUI folder with the pack and tiny models, for servers of a batch."""
    import casts

    base = tmp_path_factory.mktemp("casting")
    casts.write_base(base)
    return base


@pytest.fixture(scope="session")
def people(server):
    """A subfolder of ComfyUI's input folder with two captioned videos of a face, as the training template names it."""
    from support import moving_photo

    folder = server.base / "input" / "people"
    folder.mkdir(parents=True, exist_ok=True)
    frames = moving_photo.video(24, 160, 120)
    for name in ("one", "two"):
        moving_photo.write_video(folder / f"{name}.mp4", frames)
        (folder / f"{name}.txt").write_text("a person nods", encoding="utf-8")
    return folder.name


@pytest.fixture(scope="module")
def one_thread():
    """Where memory is measured: PyTorch's attention on a CPU holds a buffer for each thread, a twentieth of what a tiny
    model streams.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nothing_fits(monkeypatch):
    """One byte of device memory for weights: ComfyUI fetches each weight when its module is called."""
    import comfy.model_patcher

    load = comfy.model_patcher.ModelPatcher.load

    def starved(self, device_to=None, lowvram_model_memory=0, **kwargs):
        return load(self, device_to, lowvram_model_memory=1)

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "load", starved)


@pytest.fixture
def models_dir(tmp_path, monkeypatch):
    """A models folder of our own, empty unless a test puts a file there."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    return tmp_path


@pytest.fixture
def diffusion_models(tmp_path, monkeypatch):
    """models/diffusion_models of our own, empty unless a test puts a file there."""
    import folder_paths

    folder = tmp_path / "models" / "diffusion_models"
    folder.mkdir(parents=True)
    _, extensions = folder_paths.folder_names_and_paths[folder.name]
    monkeypatch.setattr(folder_paths, "models_dir", str(folder.parent))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, folder.name, ([str(folder)], extensions))
    folder_paths.filename_list_cache.pop(folder.name, None)
    yield folder
    folder_paths.filename_list_cache.pop(folder.name, None)
