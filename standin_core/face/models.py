"""Face networks as ComfyUI's citizens: found in its model folders, moved by its memory manager, never downloaded."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch

# where facexlib's files lie in the packs that use them
FOLDERS = ("facexlib", "facedetection", "face_parsing")


def find_model(file_name: str) -> Path | None:
    """The file in the first of FOLDERS that has it, or None."""
    for folder in FOLDERS:
        registered = folder_paths.folder_names_and_paths.get(folder, ([], set()))[0]
        for place in (*registered, Path(folder_paths.models_dir) / folder):
            path = Path(place) / file_name
            if path.is_file():
                return path
    return None


def missing(file_name: str) -> str | None:
    """Why the facexlib network of this file cannot run here, or None if it can."""
    if importlib.util.find_spec("facexlib") is None:
        return "facexlib is not installed (the pack's requirements.txt has it)"
    if find_model(file_name) is None:
        return f"no {file_name} (facexlib's releases) in models/facexlib"
    return None


class ManagedNetwork:
    """A network with the weights of a file (nothing in it is run), under ComfyUI's memory manager while it is held.

    ``missing(file_name)`` must have no reason.
    """

    def __init__(self, network: torch.nn.Module, file_name: str):
        weights = torch.load(find_model(file_name), map_location="cpu", weights_only=True)
        network.load_state_dict({key.removeprefix("module."): weight for key, weight in weights.items()})
        self.network = network.eval()
        self.device = comfy.model_management.get_torch_device()
        self._patcher = comfy.model_patcher.ModelPatcher(
            network, load_device=self.device, offload_device=comfy.model_management.unet_offload_device())

    def load(self) -> None:
        """Have the memory manager bring it to the device that computes; it may be freed again afterwards."""
        comfy.model_management.load_models_gpu([self._patcher])
