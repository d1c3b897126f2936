"""Face networks as ComfyUI's citizens: found in its model folders and moved by its memory manager."""
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import cv2
import folder_paths
import numpy as np
import torch

from ..errors import UserError
from ..folders import Fingerprint, fingerprint_of
from ..weights import read_weights
from ..words import shown
from .refusal import Refusal

# models/facexlib is ours and PuLID's; the others are where ReActor, facerestore, GFPGAN and the preprocessor of
# Stand-In's authors put the same files
FOLDERS = ("facexlib", "facedetection", "face_parsing", "facerestore_models", "gfpgan")
FACEXLIB_RELEASES = "https://github.com/xinntao/facexlib/releases/download"
# a commit, so that the files behind the addresses stay the same
OPENCV_ZOO = "https://github.com/opencv/opencv_zoo/raw/47534e27c9851bb1128ccc0102f1145e27f23f98/models"

REQUIRED = "the pack's requirements.txt has it"
INSIGHTFACE_MODULE = "insightface.model_zoo"
INSIGHTFACE_PACKS = ("antelopev2.zip or buffalo_l.zip, from "
                     "https://github.com/deepinsight/insightface/releases/tag/v0.7, unpacked into "
                     "models/insightface/models")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A published file of weights.

    package: the package that runs it, "facexlib" or "cv2".
    size: in bytes.
    sha256: the same wherever copies of the file are published.
    """

    name: str
    package: str
    url: str
    size: int
    sha256: str

    @property
    def source(self) -> str:
        """Its size, its hash, where it is published and where it belongs."""
        page = self.url.rpartition("/")[0].replace("/download/", "/tag/").replace("/raw/", "/tree/")
        return f"{self.size / 1e6:.1f} MB, SHA-256 {self.sha256}, from {page}, into models/{FOLDERS[0]}"

    def __str__(self):
        return f"{self.name} ({self.source})"


RETINAFACE = ModelFile("detection_Resnet50_Final.pth", "facexlib",
                       f"{FACEXLIB_RELEASES}/v0.1.0/detection_Resnet50_Final.pth", 109_497_761,
                       "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d")
BISENET = ModelFile("parsing_bisenet.pth", "facexlib", f"{FACEXLIB_RELEASES}/v0.2.0/parsing_bisenet.pth", 53_289_463,
                    "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567")
ARCFACE = ModelFile("recognition_arcface_ir_se50.pth", "facexlib",
                    f"{FACEXLIB_RELEASES}/v0.1.0/recognition_arcface_ir_se50.pth", 175_367_323,
                    "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28")
YUNET = ModelFile("face_detection_yunet_2023mar.onnx", "cv2",
                  f"{OPENCV_ZOO}/face_detection_yunet/face_detection_yunet_2023mar.onnx", 232_589,
                  "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4")
SFACE = ModelFile("face_recognition_sface_2021dec.onnx", "cv2",
                  f"{OPENCV_ZOO}/face_recognition_sface/face_recognition_sface_2021dec.onnx", 38_696_353,
                  "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79")
MODEL_FILES = (RETINAFACE, BISENET, ARCFACE, YUNET, SFACE)


def find_model(file_name: str) -> Path | None:
    """The file in the first of FOLDERS that has it, at any depth, or None."""
    for folder in FOLDERS:
        registered = folder_paths.folder_names_and_paths.get(folder, ([], set()))[0]
        for place in (*registered, Path(folder_paths.models_dir) / folder):
            for path in Path(place).rglob(file_name):
                if path.is_file():
                    return path
    return None


def file_refusal(model_file: ModelFile) -> Refusal | None:
    """Why the network of this file cannot run here, or None if it can."""
    if importlib.util.find_spec(model_file.package) is None:
        return Refusal(f"{model_file.package} is not installed", REQUIRED)
    if find_model(model_file.name) is None:
        return Refusal(f"there is no {model_file.name}", model_file.source)
    return None


def installed_models() -> tuple[Fingerprint, ...]:
    """The fingerprint of every face model that is installed here, on which the result of an "auto" depends."""
    found = [find_model(model_file.name) for model_file in MODEL_FILES]
    networks = sorted(_insightface_packs().rglob("*.onnx"))
    return tuple(fingerprint_of(path) for path in (*found, *networks) if path is not None)


def find_insightface(patterns: tuple[str, ...]) -> Path | None:
    """The first network of insightface's model packs whose file name fits one of the patterns, or None."""
    return next((path for pattern in patterns for path in sorted(_insightface_packs().rglob(pattern))), None)


def _insightface_packs() -> Path:
    return Path(folder_paths.models_dir) / "insightface" / "models"


def insightface_refusal(what: str, patterns: tuple[str, ...]) -> Refusal | None:
    """Why insightface's network for a task cannot run here, or None if it can.

    what: the task's name in a sentence, such as "a detector".
    patterns: the file names of its networks.
    """
    for package in ("insightface", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            return Refusal(f"{package} is not installed", "optional: pip install insightface onnxruntime")
    if find_insightface(patterns) is None:
        return Refusal(f"no model pack with {what} is in models/insightface/models", " or ".join(patterns))
    try:
        importlib.import_module(INSIGHTFACE_MODULE)
    except MemoryError:
        raise
    except Exception as error:  # a package that it needs is not there, or was compiled for another NumPy
        return Refusal(f"insightface cannot be imported: {shown(error)}", "install what it lacks, or insightface again")
    return None


def insightface_network(path: Path, try_out: Callable):
    """A network of insightface's model packs, on the CPU: onnxruntime's memory is not ComfyUI's to manage.

    path: from ``find_insightface``; ``insightface_refusal`` must be None.
    try_out: prepares the network and runs it once, which tells another network from the right one.

    Raises UserError for a file that is broken, holds another network, or is one that onnxruntime cannot run.
    """
    zoo = importlib.import_module(INSIGHTFACE_MODULE)
    try:
        network = zoo.get_model(str(path), providers=["CPUExecutionProvider"])
        if network is None:
            raise ValueError("insightface knows no such network")
        try_out(network)
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime's have no class in common, and damage leads insightface to any
        raise UserError(f"{shown(path.name)} is broken, another model, or one that the installed onnxruntime cannot "
                        f"run ({shown(error)}): move {shown(path)} away, and get its model pack again "
                        f"({INSIGHTFACE_PACKS}), or update insightface and onnxruntime if it is new.") from error
    return network


class ManagedNetwork:
    """A PyTorch network with the weights of a file, under ComfyUI's memory manager while this object is held.

    Nothing in the file is run. ``file_refusal(model_file)`` must be None.
    """

    def __init__(self, network: torch.nn.Module, model_file: ModelFile):
        """Raises UserError for a file that is broken or holds another network."""
        path = find_model(model_file.name)
        assert path is not None  # or file_refusal would say so
        weights = read_weights(path, _remedy(path, model_file),
                               comfy.model_management.throw_exception_if_processing_interrupted).content
        try:
            network.load_state_dict({key.removeprefix("module."): weight for key, weight in weights.items()})
        except (AttributeError, TypeError, RuntimeError) as error:  # no dict of names, or another network's
            raise _other_network(path, model_file) from error
        self.network = network.eval().requires_grad_(False)
        self.device = comfy.model_management.get_torch_device()
        self._patcher = comfy.model_patcher.ModelPatcher(
            network, load_device=self.device, offload_device=comfy.model_management.unet_offload_device())

    def load(self) -> None:
        """Have the memory manager bring the network to the device that computes; it may be freed again afterwards."""
        comfy.model_management.load_models_gpu([self._patcher])


def opencv_network(model_file: ModelFile, create: Callable, try_out: Callable):
    """A network that OpenCV runs, on the CPU; ``file_refusal(model_file)`` must be None.

    create: takes a format, the bytes of a file and the bytes of a configuration, which ONNX files do not have. (It is
        not given the path: on Windows, OpenCV opens no path with letters outside the system's code page.)
    try_out: runs the network once, which tells another network from the right one.

    Raises UserError for a file that is broken or holds another network.
    """
    path = find_model(model_file.name)
    assert path is not None  # or file_refusal would say so
    try:
        network = create("onnx", np.fromfile(path, np.uint8), np.empty(0, np.uint8))
        try_out(network)
    except cv2.error as error:
        raise _other_network(path, model_file) from error
    return network


def _other_network(path: Path, model_file: ModelFile) -> UserError:
    return UserError(f"{shown(path.name)} is broken or another model: {_remedy(path, model_file)}.")


def _remedy(path: Path, model_file: ModelFile) -> str:
    return f"delete {shown(path)}, and get {model_file}"
