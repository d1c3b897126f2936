"""Adapter files: every format that is in use, read strictly.

The official layout (WeChatCV/Stand-In, ``models/set_condition_branch.py``) is
``blocks.{i}.self_attn.{q,k,v}_loras.{down,up}.weight`` with down [r, C] and up [C, r], as a ``.ckpt`` with or without a
``state_dict`` wrapper, or converted to ``.safetensors``. PEFT's ``lora_A``/``lora_B`` and diffusers' ``attn1.to_q``
are accepted as an import convenience.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError
from ..weights import COMPUTED, ORDINARY_LORA, Ask, check_named, download_again, read_weights
from ..words import shown
from .variant import PAPER, Variant

ADAPTERS = "stand_in"  # ComfyUI's name of the folder of these files
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "pipe.dit.", "dit.", "base_model.model.", "transformer.")

TENSOR_KEY = re.compile(
    r"blocks\.(?P<block>0|[1-9][0-9]{0,2})\."
    r"(?:self_attn\.(?P<official>[qkv])_loras|self_attn\.(?P<peft>[qkv])|attn1\.to_(?P<diffusers>[qkv]))\."
    r"(?P<factor>down|up|lora_A|lora_B)(?:\.default)?\.weight"
)
FACTORS = {"down": "down", "lora_A": "down", "up": "up", "lora_B": "up"}


@dataclass(frozen=True, slots=True)
class LowRank:
    """One low-rank weight, ``x -> up(down(x))``; no alpha and no bias (the official adapters have neither).

    down: [r, C], on the CPU, in the dtype of the file.
    up: [C, r], likewise.
    """

    down: torch.Tensor
    up: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., C] -> [..., C], computed on the device and in the dtype of x."""
        down, up = (weight.to(device=x.device, dtype=x.dtype) for weight in (self.down, self.up))
        return torch.nn.functional.linear(torch.nn.functional.linear(x, down), up)


@dataclass(frozen=True, slots=True)
class BlockAdapter:
    """The low-rank weights that one block adds to Q, K and V of the identity tokens."""

    q: LowRank
    k: LowRank
    v: LowRank


@dataclass(frozen=True, slots=True)
class Adapter:
    """A Stand-In adapter: the low-rank weights of every main block, the file they came from, and the variant that they
    were trained with.
    """

    name: str
    sha256: str
    rank: int
    dim: int
    blocks: tuple[BlockAdapter, ...]
    variant: Variant = PAPER


def load_adapter(path: str | Path, ask: Ask = lambda: None) -> Adapter:
    """Read an adapter file without running anything in it (safetensors, or torch's weights-only unpickler).

    Raises UserError where the file cannot be read or is not a Stand-In adapter.
    """
    path = Path(path)
    weights = read_weights(path, download_again("a Stand-In adapter"), ask)
    return parse_adapter(weights.content, shown(path.name), weights.sha256, Variant.of(weights.metadata))


def parse_adapter(weights: dict, name: str, sha256: str = "", variant: Variant = PAPER) -> Adapter:
    """The adapter of the tensors of a file.

    weights: key -> tensor.
    name: of the file, for errors and reports.
    sha256: of the file; empty where there is none.
    variant: what the adapter was trained with.

    Raises UserError where they are no Stand-In adapter.
    """
    check_named(weights, name, "a Stand-In file")
    found, foreign = _by_block(weights, name)
    if any(ORDINARY_LORA.search(key) for key in foreign):
        raise UserError(f"{name} is an ordinary LoRA (it has {foreign[0]}), not a Stand-In adapter: load it with "
                        "LoraLoaderModelOnly, and choose a Stand-In file here.")
    if not found:
        came = f"the first of its {len(foreign)} entries is {foreign[0]}" if foreign else "it holds no tensors"
        raise UserError(f"{name} must be a Stand-In adapter, with tensors named "
                        f"blocks.N.self_attn.{{q,k,v}}_loras.{{down,up}}.weight, but {came}: choose a Stand-In file.")
    if foreign:
        raise UserError(f"{name} has {len(foreign)} entries that no Stand-In adapter has (the first is "
                        f"{foreign[0]}): take the file as the authors or Kijai publish it.")
    count = max(block for block, _, _ in found) + 1
    needed = {(block, which, factor) for block in range(count) for which in "qkv" for factor in ("down", "up")}
    missing = sorted(needed - found.keys())
    if missing:
        raise UserError(f"{name} lacks {len(missing)} of the {len(needed)} tensors that {count} blocks need (the "
                        f"first is {official_key(*missing[0])}): the file is cut off or was converted wrongly, "
                        "download it again.")
    for key, weight in sorted(found.items()):
        if weight.dtype not in COMPUTED:
            raise UserError(f"{name}: {official_key(*key)} must be fp32, fp16 or bf16, but is {weight.dtype}: take the "
                            "file in one of these.")
    rank, dim = found[0, "q", "down"].shape if found[0, "q", "down"].ndim == 2 else (0, 0)
    if 0 in (rank, dim):
        raise UserError(f"{name}: {official_key(0, 'q', 'down')} must be a matrix of at least one row and column, but "
                        f"is {list(found[0, 'q', 'down'].shape)}: download it again.")
    for (block, which, factor), weight in sorted(found.items()):
        shape = (rank, dim) if factor == "down" else (dim, rank)
        if tuple(weight.shape) != shape:
            raise UserError(f"{name}: {official_key(block, which, factor)} must be a matrix like the first block's, "
                            f"{list(shape)}, but is {list(weight.shape)}: download it again.")
    blocks = tuple(
        BlockAdapter(**{which: LowRank(found[block, which, "down"], found[block, which, "up"]) for which in "qkv"})
        for block in range(count)
    )
    return Adapter(name, sha256, rank, dim, blocks, variant)


def check_fit(adapter: Adapter, blocks: int, dim: int) -> None:
    """Raise UserError unless the adapter was made for a model of this many blocks and this width."""
    if (len(adapter.blocks), adapter.dim) != (blocks, dim):
        raise UserError(
            f"{adapter.name} is for a Wan of {len(adapter.blocks)} blocks and width {adapter.dim}, the model has "
            f"{blocks} blocks and width {dim}: take the adapter of this model (the authors' are for the 14B models, "
            "40 blocks and width 5120), or the model of this adapter."
        )


def _by_block(weights: dict, name: str) -> tuple[dict[tuple[int, str, str], torch.Tensor], list[str]]:
    found, foreign = {}, []
    for key, weight in weights.items():
        match = TENSOR_KEY.fullmatch(_without_prefixes(key))
        if match is None or not isinstance(weight, torch.Tensor):
            foreign.append(key)
            continue
        which = match["official"] or match["peft"] or match["diffusers"]
        place = int(match["block"]), which, FACTORS[match["factor"]]
        if place in found:
            raise UserError(f"{name} has {official_key(*place)} twice, under two names (one is {key}): take the "
                            "file as the authors or Kijai publish it.")
        found[place] = weight
    return found, foreign


def official_key(block: int, which: str, factor: str) -> str:
    return f"blocks.{block}.self_attn.{which}_loras.{factor}.weight"


def _without_prefixes(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key
