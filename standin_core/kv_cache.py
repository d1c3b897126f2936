"""Identity K/V of one run: how many bytes they take, and who owns them until when."""
from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class IdentityCacheSpec:
    """The size of the identity K/V of one expert, known before a byte is allocated."""

    blocks: int
    tokens: int
    dim: int
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """K and V of every block; 838,860,800 for Wan 14B in bf16 with 1,024 identity tokens."""
        return 2 * self.blocks * self.tokens * self.dim * self.dtype.itemsize


class IdentityCache:
    """Owns the identity K/V of one run: built on first use, read-only afterwards, let go by ``clear``.

    An entry belongs to a key that says what it was computed from and where (device, dtype, model, LoRA hooks). Hooks
    that change in mid-run make new entries; the oldest goes once there are more than ENTRIES, which covers a positive
    and a negative hook group on each of two devices.
    """

    ENTRIES = 4

    def __init__(self):
        self._entries: OrderedDict[Hashable, list] = OrderedDict()
        self._lock = threading.Lock()
        self.builds = 0
        self.build_ms = 0.0

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for layers in self._entries.values() for layer in layers for tensor in layer)

    def layers(self, key: Hashable, build: Callable[[], Iterable], synchronize: Callable[[], None]) -> list:
        """(K, V) of every block for this key. synchronize: waits for the device, so that the build time is true."""
        with self._lock:
            if key not in self._entries:
                synchronize()
                started = time.perf_counter()
                self._entries[key] = list(build())
                synchronize()
                self.build_ms += (time.perf_counter() - started) * 1000
                self.builds += 1
                if len(self._entries) > self.ENTRIES:
                    self._entries.popitem(last=False)
            return self._entries[key]

    def clear(self) -> None:
        self._entries.clear()
