"""What a figure was measured on."""
import os
import platform
from pathlib import Path

import comfyui_version
import torch


def machine() -> dict[str, str | int]:
    return {"machine": _name(), "torch": torch.__version__, "comfyui": comfyui_version.__version__,
            "threads": torch.get_num_threads()}


def _name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
