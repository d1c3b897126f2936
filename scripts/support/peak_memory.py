"""How much memory a call needs at its peak."""
import json
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import torch


def allocated_peak(call: Callable[[], object], folder: Path) -> int:
    """The most bytes that PyTorch's CPU allocator gives out during a call, beside what it had given out before.

    folder: takes the allocator's own record of the call.
    """
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    before = events[0]["args"]["Total Allocated"] - events[0]["args"]["Bytes"]
    return max(event["args"]["Total Allocated"] for event in events) - before


def resident_peak(call: Callable[[], object]) -> tuple[object, int]:
    """What the call returns, and how many bytes the resident size of the process rises during it."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = call()
    finally:
        done.set()
        watcher.join()
    return result, peak - before
