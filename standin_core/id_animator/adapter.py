"""Adapter files, read strictly: ``animator.ckpt`` as the authors publish it, and the same as safetensors.

Their names are ``image_proj_model.*`` for the resampler and ``adapter_modules.{i}.*`` for the cross-attentions, with or
without ``module.`` before them, bare or under ``state_dict``. Their loader also reads ``{"image_proj": {...},
"face_adapter": {...}}``, which has the same names without the first word. The index i counts all attentions of the
U-Net, of which the odd ones are cross-attentions.
"""
from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..weights import COMPUTED, ORDINARY_LORA, Ask, check_named, download_again, read_weights
from ..words import shown
from .resampler import HEAD_DIM

ADAPTERS = "id_animator"  # ComfyUI's name of the folder of these files

RESAMPLER, ATTENTION = "image_proj_model.", "adapter_modules."
OTHER_CONTAINER = {"image_proj.": RESAMPLER, "face_adapter.": ATTENTION}
LAYER = re.compile(r"image_proj_model\.layers\.(0|[1-9][0-9]{0,2})\.")
PLACE = re.compile(r"adapter_modules\.(0|[1-9][0-9]{0,2})\.")
IP_ADAPTER = re.compile(r"(^|\.)(ip_adapter\.|to_[kv]_ip\b)")

# The shapes by letters: n face tokens, d and w widths of the resampler and of CLIP vision, a all heads of the resampler
# together, f its feed-forward layer, c the text context, r the rank, C the cross-attention. 2a is twice a.
OF_THE_ENDS = {
    "latents": "1 n d", "proj_in.weight": "d w", "proj_in.bias": "d", "proj_out.weight": "c d", "proj_out.bias": "c",
    "norm_out.weight": "c", "norm_out.bias": "c"}
OF_A_LAYER = {
    "0.norm1.weight": "d", "0.norm1.bias": "d", "0.norm2.weight": "d", "0.norm2.bias": "d", "0.to_q.weight": "a d",
    "0.to_kv.weight": "2a d", "0.to_out.weight": "d a", "1.0.weight": "d", "1.0.bias": "d", "1.1.weight": "f d",
    "1.3.weight": "d f"}
OF_AN_ATTENTION = {
    "to_k_face.weight": "C c", "to_v_face.weight": "C c",
    "to_q_lora.down.weight": "r C", "to_q_lora.up.weight": "C r", "to_k_lora.down.weight": "r c",
    "to_k_lora.up.weight": "C r", "to_v_lora.down.weight": "r c", "to_v_lora.up.weight": "C r",
    "to_out_lora.down.weight": "r C", "to_out_lora.up.weight": "C r"}


@dataclass(frozen=True, slots=True)
class FaceProjection:
    """What one cross-attention makes of the face tokens.

    key, value: [C, c], without a bias.
    """

    key: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True, slots=True)
class Adapter:
    """An ID-Animator adapter; all tensors on the CPU in the dtype of the file.

    resampler: its weights under the authors' names without the first word.
    depth: how many layers it has.
    clip_width: of the hidden states that it takes.
    projections: of every cross-attention, in the order of the file.
    low_rank: ``{i}.to_{q,k,v,out}_lora.{down,up}.weight`` of the i-th of them; no alpha.
    """

    name: str
    sha256: str
    rank: int
    clip_width: int
    depth: int
    resampler: dict[str, torch.Tensor]
    projections: tuple[FaceProjection, ...]
    low_rank: dict[str, torch.Tensor]


def load_adapter(path: str | Path, ask: Ask = lambda: None) -> Adapter:
    """Raises UserError where the file cannot be read or is not an ID-Animator adapter."""
    path = Path(path)
    weights = read_weights(path, download_again("an ID-Animator adapter"), ask)
    return parse_adapter(weights.content, shown(path.name), weights.sha256)


def parse_adapter(weights: dict, name: str, sha256: str = "") -> Adapter:
    """weights: key -> tensor, as in the file. Raises UserError for any other file."""
    found = _official(weights, name)
    depth = len({match[1] for match in map(LAYER.match, found) if match})
    indices = sorted({int(match[1]) for match in map(PLACE.match, found) if match})
    _check_indices(indices, name)
    shapes = _shapes(depth, indices)
    missing, foreign = sorted(shapes.keys() - found.keys()), sorted(found.keys() - shapes.keys())
    if foreign:
        raise UserError(f"{name} has {len(foreign)} entries that no ID-Animator adapter has (the first is "
                        f"{foreign[0]}): take the file as the authors publish it.")
    if missing:
        raise UserError(f"{name} lacks {len(missing)} of the {len(shapes)} tensors of an ID-Animator adapter (the "
                        f"first is {missing[0]}): the file is cut off or was converted wrongly, download it again.")
    sizes = _sizes(found, shapes, name)
    if sizes["a"] % HEAD_DIM:
        raise UserError(f"{name}: the width of the resampler's queries must be a multiple of {HEAD_DIM}, but is "
                        f"{sizes['a']}: download the file again.")

    def part(first_word: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(first_word): found[key] for key in shapes if key.startswith(first_word)}

    places = [part(f"{ATTENTION}{index}.") for index in indices]
    return Adapter(
        name, sha256, sizes["r"], sizes["w"], depth, part(RESAMPLER),
        tuple(FaceProjection(place["to_k_face.weight"], place["to_v_face.weight"]) for place in places),
        {f"{number}.{key}": weight for number, place in enumerate(places) for key, weight in place.items()
         if "_lora." in key})


def _official(weights: dict, name: str) -> dict[str, torch.Tensor]:
    """The tensors under the authors' names without ``module.``. Raises UserError for another kind of file."""
    check_named(weights, name, "an ID-Animator file")
    flat: dict[str, Any] = {}
    for key, value in weights.items():
        flat |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    if any(IP_ADAPTER.search(key) for key in flat):
        raise UserError(f"{name} is an IP-Adapter, not an ID-Animator adapter: load it with the nodes of "
                        "ComfyUI_IPAdapter_plus, and choose an ID-Animator file here.")
    found = {_official_name(key): value for key, value in flat.items()}
    known = [key for key in found if key.startswith((RESAMPLER, ATTENTION))]
    if not known:
        came = f"the first of its {len(flat)} entries is {next(iter(flat))}" if flat else "it holds no tensors"
        lora = next((key for key in flat if ORDINARY_LORA.search(key)), None)
        if lora is not None:
            came = f"it is an ordinary LoRA (it has {lora}), for LoraLoader"
        raise UserError(f"{name} must be an ID-Animator adapter, with tensors named {RESAMPLER}* and {ATTENTION}*, but "
                        f"{came}: choose an ID-Animator file.")
    if len(found) < len(flat):
        twice, _ = Counter(map(_official_name, flat)).most_common(1)[0]
        raise UserError(f"{name} has {twice} twice, under two names: take the file as the authors publish it.")
    for key, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{name}: {key} must be a tensor, but is of type {type(value).__name__}: take the file as "
                            "the authors publish it.")
        if value.dtype not in COMPUTED:
            raise UserError(f"{name}: {key} must be fp32, fp16 or bf16, but is {value.dtype}: take the file in one of "
                            "these.")
    return found


def _official_name(key: str) -> str:
    key = key.removeprefix("module.")
    for other, official in OTHER_CONTAINER.items():
        if key.startswith(other):
            return official + key.removeprefix(other).removeprefix("module.")
    return key


def _check_indices(indices: list[int], name: str) -> None:
    if not indices or indices != list(range(1, 2 * len(indices), 2)):
        came = shown(", ".join(map(str, indices))) or "none"
        raise UserError(f"{name} must have weights for the attentions 1, 3, 5 and so on without a gap, but has them "
                        f"for {came}: the file is cut off or was converted wrongly, download it again.")


def _shapes(depth: int, indices: list[int]) -> dict[str, list[str]]:
    """Every name that a file of this size has -> the letters of its shape; C is another letter in every attention."""
    shapes = {f"{RESAMPLER}{key}": shape.split() for key, shape in OF_THE_ENDS.items()}
    for layer in range(depth):
        shapes |= {f"{RESAMPLER}layers.{layer}.{key}": shape.split() for key, shape in OF_A_LAYER.items()}
    for index in indices:
        shapes |= {f"{ATTENTION}{index}.{key}": shape.replace("C", f"C{index}").split()
                   for key, shape in OF_AN_ATTENTION.items()}
    return shapes


def _sizes(found: dict[str, torch.Tensor], shapes: dict[str, list[str]], name: str) -> dict[str, int]:
    """Letter -> size. Raises UserError where a letter would have two."""
    sizes = {"1": 1}
    for key, letters in shapes.items():
        came = tuple(found[key].shape)
        for letter, size in zip(letters, came):
            if size:  # none has a side of 0
                sizes.setdefault(letter, size)
        if "a" in sizes:
            sizes["2a"] = 2 * sizes["a"]
        if came != tuple(sizes.get(letter) for letter in letters):
            needed = ", ".join(str(sizes.get(letter, "1 or more")) for letter in letters)
            raise UserError(f"{name}: {key} must be [{needed}] to fit the tensors before it, but is {list(came)}: "
                            "download the file again.")
    return sizes
