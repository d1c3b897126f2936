"""ComfyUI's real modules on the path, on the CPU; see docs/architecture.md for the order of the path."""
import os
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parent.parent
sys.path += [str(PACK / "scripts")]
import environment

COMFYUI = Path(os.environ.get("COMFYUI_PATH", environment.COMFYUI))

# ComfyUI first and the pack last: both have a nodes.py, and ComfyUI's own code must find ComfyUI's.
sys.path.insert(0, str(COMFYUI))
sys.path += [str(PACK)]

import comfy.options

pytest_arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--use-pytorch-cross-attention"]
comfy.options.enable_args_parsing()
import comfy.cli_args

sys.argv = pytest_arguments

import torch


@pytest.fixture(autouse=True)
def as_comfyui_executes():
    """ComfyUI runs every node under inference mode."""
    with torch.inference_mode():
        yield
