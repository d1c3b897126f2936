"""Identity K/V of one run: how many bytes they take, where they live, and who owns them until when."""
from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

Layer = tuple[torch.Tensor, torch.Tensor]

CACHE_MODES = ("auto", "resident", "offloaded", "streaming", "fp8")  # where the identity K/V of a run live
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class IdentityCacheSpec:
    """The size of the identity K/V of one identity in one expert, known before a byte is allocated.

    blocks: how many blocks read it.
    tokens: how many tokens all its photos have together.
    dim, heads: of the model.
    dtype: of K and V.
    entries: how many are kept at a time on one device, one for each LoRA-hook group of the run.
    """

    blocks: int
    tokens: int
    dim: int
    heads: int
    dtype: torch.dtype
    entries: int = 1

    @property
    def layer_bytes(self) -> int:
        """K and V of one block."""
        return 2 * self.tokens * self.dim * self.dtype.itemsize

    def device_bytes(self, mode: str) -> int:
        """The most that a mode holds on the device: 838,860,800 for Wan 14B in bf16 with 1,024 tokens, resident.

        "offloaded" holds K and V of the block that reads and of the next one. "streaming" holds those of the block that
        reads, and the tokens with their norm, from which it goes on. "fp8" holds a byte for each value, a scale for
        each head, and K and V of the block that reads.
        """
        layers = self.blocks * self.entries
        if mode in ("auto", "resident"):
            return layers * self.layer_bytes
        if mode == "fp8":
            return layers * 2 * (self.tokens * self.dim + 4 * self.heads) + self.layer_bytes
        return 2 * self.layer_bytes * self.entries


class ResidentLayers:
    """K and V of every block on the device.

    stay, of this and the classes below: whether the tensors that are read are the same in every model call.
    """

    stay = True

    def __init__(self, layers: Iterable[Layer]):
        self._layers = list(layers)
        self.device_bytes = sum(tensor.nbytes for layer in self._layers for tensor in layer)

    def __getitem__(self, block: int) -> Layer:
        return self._layers[block]

    def clear(self) -> None:
        self._layers.clear()


class Pinning(NamedTuple):
    """How host memory is pinned, so that copies from it run beside the sampling.

    pin, unpin: of a tensor in host memory; ``pin`` says whether the system let it be.
    """

    pin: Callable[[torch.Tensor], bool]
    unpin: Callable[[torch.Tensor], bool]


class OffloadedLayers:
    """K and V of every block in one piece of host memory, pinned where there is a GPU; the next block's come while one
    reads.

    On a GPU two layers are on the device for the whole run, and the blocks take turns in them: memory that was given
    back while another stream still reads it would not be free until then, and the host runs many blocks ahead.
    """

    stay = False

    def __init__(self, layers: Iterable[Layer], blocks: int, device: torch.device, pinning: Pinning):
        """blocks: how many layers there are."""
        self._device = device
        self._pinning = pinning
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._layers: torch.Tensor | None = None  # [blocks, 2, R, M, C]
        self._pinned = False
        # the first is the one to fetch into, the second the one that is read; [2, R, M, C] each
        self._turns: list[torch.Tensor] = []
        self._ahead: int | None = None
        try:
            for block, (key, value) in enumerate(layers):
                if self._layers is None:
                    self._layers = self._room(blocks, key)
                self._layers[block, 0].copy_(key)
                self._layers[block, 1].copy_(value)
        except BaseException:
            self.clear()
            raise

    def _room(self, blocks: int, like: torch.Tensor) -> torch.Tensor:
        layers = torch.empty(blocks, 2, *like.shape, dtype=like.dtype)
        if self._stream is not None:
            self._turns = [torch.empty(2, *like.shape, dtype=like.dtype, device=self._device) for _ in range(2)]
            self._pinned = self._pinning.pin(layers)
        return layers

    @property
    def device_bytes(self) -> int:
        return 0 if self._layers is None else 2 * self._layers[0].nbytes

    def __getitem__(self, block: int) -> Layer:
        assert self._layers is not None  # nothing is read after ``clear``
        if self._stream is None:
            return tuple(self._layers[block].to(self._device))
        if self._ahead != block:
            self._fetch(block)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._turns.reverse()
        self._fetch((block + 1) % len(self._layers))
        return tuple(self._turns[1])

    def _fetch(self, block: int) -> None:
        assert self._stream is not None and self._layers is not None  # without a GPU nothing is fetched ahead
        # what the block before reads from there has been queued by now
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        layer = self._layers[block]
        with torch.cuda.stream(self._stream):
            self._turns[0].copy_(layer, non_blocking=True)
        self._ahead = block

    def clear(self) -> None:
        try:
            if self._stream is not None:
                self._stream.synchronize()  # a copy that is under way would read what is there next
        except RuntimeError:
            pass  # the device is lost, and what lost it is on its way to the user
        finally:
            if self._layers is not None and self._pinned:
                self._pinning.unpin(self._layers)
            self._ahead, self._layers, self._pinned = None, None, False
            self._turns.clear()


class Fp8Layers:
    """K and V of every block as float8_e4m3fn with a scale for each head, half of what bf16 takes.

    e4m3 has 3 bits of mantissa: a value is off by up to 1/16 of itself, 1/36 in the root of the mean square.
    """

    stay = False

    def __init__(self, layers: Iterable[Layer], heads: int):
        self._heads = heads
        self._dtype: torch.dtype  # of the values before they were packed
        self._layers = [tuple(self._pack(tensor) for tensor in layer) for layer in layers]
        self.device_bytes = sum(part.nbytes for layer in self._layers for packed in layer for part in packed)

    def _pack(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._dtype = tensor.dtype
        split = tensor.unflatten(-1, (self._heads, -1)).float()  # [R, M, H, D]
        scale = split.abs().amax(dim=(0, 1, 3), keepdim=True).clamp_(min=1e-12) / torch.finfo(FP8).max
        return (split / scale).to(FP8), scale

    def __getitem__(self, block: int) -> Layer:
        key, value = (values.to(self._dtype).mul_(scale.to(self._dtype)).flatten(-2)
                      for values, scale in self._layers[block])
        return key, value

    def clear(self) -> None:
        self._layers.clear()


class StreamingLayers:
    """K and V of a block computed when it reads and dropped after, in the order of the blocks: no cache at all."""

    stay = False

    def __init__(self, build: Callable[[], Iterable[Layer]]):
        self._build = build
        self._next = 0
        self._stream: Iterator[Layer] = iter(())
        self._layer: Layer | None = None
        self.device_bytes = 0

    def __getitem__(self, block: int) -> Layer:
        if block < self._next - 1 or self._next == 0:
            self._stream, self._next = iter(self._build()), 0
        while self._next <= block:
            self._layer = next(self._stream)
            self._next += 1
        assert self._layer is not None  # a run reads its blocks in order, so it is this block's
        self.device_bytes = 2 * sum(tensor.nbytes for tensor in self._layer)  # the stream's own tokens are as many
        return self._layer

    def clear(self) -> None:
        self._stream, self._layer, self._next = iter(()), None, 0


Layers = ResidentLayers | OffloadedLayers | Fp8Layers | StreamingLayers


def hold(mode: str, build: Callable[[], Iterable[Layer]], blocks: int, device: torch.device, heads: int,
         pinning: Pinning) -> Layers:
    """K and V of every block, held as a mode says.

    mode: one of CACHE_MODES but "auto".
    build: yields (K, V), [R, M, C] each, for one block after the other; the first is number 0 of the result.
    blocks: how many it yields.
    heads: of the model.
    pinning: how host memory is pinned.
    """
    if mode == "streaming":
        return StreamingLayers(build)
    if mode == "offloaded":
        return OffloadedLayers(build(), blocks, device, pinning)
    return Fp8Layers(build(), heads) if mode == "fp8" else ResidentLayers(build())


class IdentityCache:
    """Owns the identity K/V of one identity for one run: built on first use, read-only afterwards, let go by ``clear``.

    An entry belongs to a place (device, dtype, model) and to the weights it was computed from (LoRA hooks and their
    strengths). A place keeps as many entries as the run has hook groups; where a keyframe changes strengths in mid-run,
    the one longest unused goes before the new one is built.
    """

    def __init__(self, entries: int = 1):
        self.entries = entries
        self.builds = 0
        self.build_ms = 0.0
        self._places: dict[Hashable, OrderedDict[Hashable, Layers]] = {}
        self._lock = threading.Lock()

    @property
    def device_bytes(self) -> int:
        with self._lock:
            return sum(layers.device_bytes for place in self._places.values() for layers in place.values())

    def layers(self, place: Hashable, weights: Hashable, make: Callable[[], Layers],
               synchronize: Callable[[], None]) -> Layers:
        """K and V of every block.

        place, weights: see ``IdentityCache``.
        make: computes them, see ``hold``.
        synchronize: waits for the device, so that the time is true.
        """
        with self._lock:
            entries = self._places.setdefault(place, OrderedDict())
            if weights not in entries:
                while len(entries) >= self.entries:
                    entries.popitem(last=False)[1].clear()
                synchronize()
                started = time.perf_counter()
                entries[weights] = make()
                synchronize()
                self.build_ms += (time.perf_counter() - started) * 1000
                self.builds += 1
            entries.move_to_end(weights)
            return entries[weights]

    def clear(self) -> None:
        """Empties the layers themselves: after an exception, frames of the traceback may still hold them."""
        with self._lock:
            for place in self._places.values():
                for layers in place.values():
                    layers.clear()
            self._places.clear()
