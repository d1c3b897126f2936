"""What Triton makes of the kernels for cards that are not here, as JSON lines.

    python tests/compiled_kernels.py sm_90 bfloat16 float32

Both kernels: the identity's attention for each head dim, and the fused RMSNorm and RoPE for each count of heads.

A program of its own, because in the tests Triton interprets. The arguments are what the engine launches the kernel
with, and Triton compiles them as it does before the first launch, for the card that its driver names.
"""
import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

sys.path.append(str(Path(__file__).resolve().parent.parent))
kernel = importlib.import_module("standin_core.attention.kernel")
fusion_kernel = importlib.import_module("standin_core.attention.fusion_kernel")

HEADS = 40  # of Wan 14B; 1.3B has 12


class Card(NamedTuple):
    """shared: KiB of shared memory of a multiprocessor, and warps: it holds; tables "Technical Specifications per
    Compute Capability" of NVIDIA's CUDA programming guide.
    """

    capability: tuple[int, int]
    shared: int
    warps: int


REGISTERS = 65536  # of a multiprocessor, on all of these
RESERVED = 1024  # bytes of shared memory that CUDA keeps of each block
CARDS = {"sm_80": Card((8, 0), 164, 64), "sm_86": Card((8, 6), 100, 48), "sm_89": Card((8, 9), 100, 48),
         "sm_90": Card((9, 0), 228, 64), "sm_100": Card((10, 0), 228, 64), "sm_120": Card((12, 0), 100, 48)}


class Driver:
    """In the place of Triton's, where there is no GPU: it has one of the given capability."""

    def __init__(self, capability: tuple[int, int]):
        self.capability = capability

    def get_current_device(self):
        return self.capability  # Triton keeps what it compiled by device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        major, minor = self.capability
        return GPUTarget("cuda", 10 * major + minor, 32)


def compiled_attention(card: Card, dtype: torch.dtype, head_dim: int, video_tokens: int = 32760,
                       identity_tokens: int = 1024, biases: int = 1):
    """The kernel as ``extend_state_`` launches it.

    biases: one for all queries, or one for each.
    """
    driver.set_active(Driver(card.capability))
    q, output = (torch.empty(1, video_tokens, HEADS, head_dim, dtype=dtype, device="meta").transpose(1, 2)
                 for _ in range(2))
    k, v = (torch.empty(identity_tokens, HEADS, head_dim, dtype=dtype, device="meta") for _ in range(2))
    log_sum_exp = torch.empty(1, HEADS, video_tokens, device="meta")
    bias = torch.empty(1, biases, device="meta").expand(1, video_tokens)
    grid, arguments, constants = kernel.launch_of(kernel.tiles_for(card.capability, dtype, head_dim), q, k, v, output,
                                                  log_sum_exp, head_dim**-0.5, bias)
    return kernel.extend_kernel.warmup(*arguments, grid=grid, **constants)


# what differs between the runs of a user: tokens, and what has a bias of its own
ATTENTION_RUNS = ({}, {"identity_tokens": 1023}, {"identity_tokens": 1}, {"video_tokens": 75600}, {"video_tokens": 1},
                  {"biases": 32760})


def compiled_fusion(card: Card, dtype: torch.dtype, heads: int, batch: int = 1, tokens: int = 32760,
                    rotations: int = 1):
    """The kernel as ``norm_and_rotate`` launches it for Wan's heads of 128."""
    driver.set_active(Driver(card.capability))
    x = torch.empty(batch, tokens, heads * 128, dtype=dtype, device="meta")
    weight = torch.empty(heads * 128, dtype=dtype, device="meta")
    rotation = torch.empty(rotations, tokens, 1, 64, 2, 2, device="meta")
    grid, arguments, constants = fusion_kernel.launch_of(x, weight, 1e-6, rotation, torch.empty_like(x))
    return fusion_kernel.norm_rope_kernel.warmup(*arguments, grid=grid, **constants)


FUSION_RUNS = ({}, {"tokens": 75600}, {"tokens": 1}, {"batch": 2}, {"batch": 2, "rotations": 2})


def bytes_at_a_time(binary) -> dict[str, list[int]]:
    """How many bytes each instruction loads from global memory or stores there."""
    found: dict[str, list[int]] = {"ld": [], "st": []}
    for kind, vector, bits in re.findall(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s", binary.asm["ptx"]):
        found[kind].append(int(vector or 1) * int(bits) // 8)
    return {"loads": found["ld"], "stores": found["st"]}


# how each is compiled, what differs between its runs, and its head dims or its counts of heads
KERNELS = ((compiled_attention, ATTENTION_RUNS, (64, 128)), (compiled_fusion, FUSION_RUNS, (12, 40)))


def resources(binary, card: Card) -> dict[str, int]:
    """registers: of a thread; spilled: bytes of a thread in local memory; shared: bytes of a block; blocks: on a
    multiprocessor at a time.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", usage).groups())
    warps, shared = binary.metadata.num_warps, binary.metadata.shared
    of_a_warp = -(-registers * 32 // 256) * 256  # they are given out by 256
    blocks = min(REGISTERS // of_a_warp // warps, card.shared * 1024 // (shared + RESERVED), card.warps // warps)
    return {"registers": registers, "spilled": stack + local, "shared": shared, "blocks": blocks}


def main() -> None:
    name, *dtypes = sys.argv[1:]
    for dtype in (getattr(torch, dtype) for dtype in dtypes):
        for compiled, runs, size in ((compiled, runs, size) for compiled, runs, sizes in KERNELS for size in sizes):
            binaries = {id(binary): binary for binary in (compiled(CARDS[name], dtype, size, **run) for run in runs)}
            sys.stdout.write(json.dumps({
                "what": f"{compiled.__name__}, {dtype}, {size}", "compilations": len(binaries),
                **resources(next(iter(binaries.values())), CARDS[name]),
                **bytes_at_a_time(next(iter(binaries.values())))}) + "\n")


if __name__ == "__main__":
    main()
