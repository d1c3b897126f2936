"""What a figure was measured on."""
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import comfyui_version
import torch

PACKAGES = ("triton", "sageattention", "flash-attn", "comfy-kitchen", "comfy-aimdo")  # that compute, or place weights


def machine() -> dict[str, str | int]:
    return {"machine": _name(), "torch": torch.__version__, "comfyui": comfyui_version.__version__,
            "beside": _beside(), "threads": torch.get_num_threads()}


def _beside() -> str:
    """The driver, cuDNN and PACKAGES, with their versions."""
    found = []
    if torch.cuda.is_available() and torch.version.hip is None:
        asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                               capture_output=True, text=True)
        found += [f"driver {asked.stdout.split()[0] if asked.stdout else 'unknown'}",
                  f"cuDNN {torch.backends.cudnn.version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
