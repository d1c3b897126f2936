"""How much memory a call needs at its peak."""
import threading
from collections.abc import Callable

import psutil


def peak_bytes(call: Callable[[], object]) -> tuple[object, int]:
    """What the call returns, and the highest resident size of the process during it, less that before it."""
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
