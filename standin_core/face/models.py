"""Face networks as ComfyUI's citizens: found in its model folders and moved by its memory manager."""
from __future__ import annotations

import importlib.util
import pickle
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch

from ..contracts import StandInError

# models/facexlib is ours and PuLID's; the others are where ReActor, facerestore, GFPGAN and the authors' preprocessor
# put the same files
FOLDERS = ("facexlib", "facedetection", "face_parsing", "facerestore_models", "gfpgan")
RELEASES = "https://github.com/xinntao/facexlib/releases/download"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of facexlib's releases. size: in bytes; sha256: of the file, the same wherever copies are published."""

    name: str
    url: str
    size: int
    sha256: str

    def __str__(self):
        page = self.url.rpartition("/")[0].replace("/download/", "/tag/")
        return f"{self.name} ({self.size / 1e6:.1f} MB, SHA-256 {self.sha256}, from {page}, into models/{FOLDERS[0]})"


RETINAFACE = ModelFile("detection_Resnet50_Final.pth", f"{RELEASES}/v0.1.0/detection_Resnet50_Final.pth", 109_497_761,
                       "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d")
BISENET = ModelFile("parsing_bisenet.pth", f"{RELEASES}/v0.2.0/parsing_bisenet.pth", 53_289_463,
                    "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567")


def find_model(file_name: str) -> Path | None:
    """The file in the first of FOLDERS that has it, at any depth, or None."""
    for folder in FOLDERS:
        registered = folder_paths.folder_names_and_paths.get(folder, ([], set()))[0]
        for place in (*registered, Path(folder_paths.models_dir) / folder):
            for path in Path(place).rglob(file_name):
                if path.is_file():
                    return path
    return None


def missing(model_file: ModelFile) -> str | None:
    """Why the facexlib network of this file cannot run here, or None if it can."""
    if importlib.util.find_spec("facexlib") is None:
        return "facexlib is not installed (the pack's requirements.txt has it)"
    if find_model(model_file.name) is None:
        return f"there is no {model_file}"
    return None


def find_insightface(patterns: tuple[str, ...]) -> Path | None:
    """The first network of insightface's model packs whose file fits one of the patterns, or None."""
    packs = Path(folder_paths.models_dir) / "insightface" / "models"
    return next((path for pattern in patterns for path in sorted(packs.rglob(pattern))), None)


def insightface_missing(what: str, patterns: tuple[str, ...]) -> str | None:
    """Why insightface's network that is such a thing cannot run here, or None if it can."""
    for package in ("insightface", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (optional: pip install insightface onnxruntime)"
    if find_insightface(patterns) is None:
        return f"no model pack with {what} ({' or '.join(patterns)}) is in models/insightface/models"
    return None


class ManagedNetwork:
    """A network with the weights of a file (nothing in it is run), under ComfyUI's memory manager while it is held.

    ``missing(model_file)`` must have no reason.
    """

    def __init__(self, network: torch.nn.Module, model_file: ModelFile):
        """Raises StandInError for a file that is broken or holds something else."""
        path = find_model(model_file.name)
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            network.load_state_dict({key.removeprefix("module."): weight for key, weight in weights.items()})
        except (pickle.UnpicklingError, EOFError, RuntimeError, AttributeError, TypeError) as error:
            raise StandInError(f"{path} ({path.stat().st_size} bytes) is broken or another model: delete it, and get "
                               f"{model_file}.") from error
        self.network = network.eval()
        self.device = comfy.model_management.get_torch_device()
        self._patcher = comfy.model_patcher.ModelPatcher(
            network, load_device=self.device, offload_device=comfy.model_management.unet_offload_device())

    def load(self) -> None:
        """Have the memory manager bring it to the device that computes; it may be freed again afterwards."""
        comfy.model_management.load_models_gpu([self._patcher])
