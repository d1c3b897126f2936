"""Concat-ID's files: a whole fine-tuned Wan, and what the AdaLN variant has beside the native weights.

The authors publish ``first_stage.pt`` (825 tensors under Wan's native names) and ``second_stage_adaln.pt`` (32 more:
``time_projection_ref.1.{weight,bias}`` and ``blocks.{i}.modulation_ref``). ComfyUI's own loader takes both and drops
those 32 with a line in the log, hence this one. Raw checkpoints of their trainer have everything under ``module``.
A converter may have quantised layers (``quantized``).
"""
from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import comfy.sd
import comfy.utils
import safetensors
import torch
from comfy.model_management import (
    OOM_EXCEPTION,
    throw_exception_if_processing_interrupted,
)

from ..errors import UserError
from ..files import sha256_of
from ..folders import Fingerprint, fingerprint_of
from ..latents import CHANNELS
from ..wan import Wan
from ..weights import (
    ORDINARY_LORA,
    SAFETENSORS,
    bytes_of,
    check_claim,
    check_size,
    check_tensors,
    checked_metadata,
    download_again,
    refusing_damage,
    unpickled,
    weights_in,
)
from ..words import shown
from .forward import ReferenceModulation
from .quantized import dequantized, is_part, with_layouts

WIDEST = 1536  # of Wan 1.3B; Concat-ID was never trained on a larger one
REFERENCES = "concat_id_references"  # in a file's metadata: how many references it was trained with, 1 where not said
NUMBER_OF_REFERENCES = re.compile("[1-9][0-9]?")
LAYOUTS = "_quantization_metadata"  # in a file's metadata, for ComfyUI: how its layers are quantised
TOLD = {"num_heads", "text_dim"}  # whole numbers in the metadata, because the weights do not tell them

OWN_LAYER = "time_projection_ref.1"
OWN_WEIGHT, OWN_BIAS, OWN_BLOCK = f"{OWN_LAYER}.weight", f"{OWN_LAYER}.bias", "blocks.{}.modulation_ref"
OUTSIDE_BLOCKS = (
    "patch_embedding.weight", "patch_embedding.bias", "head.modulation", "head.head.weight", "head.head.bias",
    *(f"{name}.{which}" for name in ("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2",
                                     "time_projection.1") for which in ("weight", "bias")))
IN_A_BLOCK = (
    "modulation", "norm3.weight", "norm3.bias",
    *(f"{attention}.{name}.weight" for attention in ("self_attn", "cross_attn") for name in ("norm_q", "norm_k")),
    *(f"{name}.{which}" for name in (*(f"{attention}.{each}" for attention in ("self_attn", "cross_attn")
                                       for each in "qkvo"), "ffn.0", "ffn.2") for which in ("weight", "bias")))
BLOCK = re.compile(r"blocks\.(0|[1-9][0-9]{0,2})\.")
STAND_IN = re.compile(r"self_attn\.[qkv]_loras\.")


@dataclass(frozen=True, slots=True)
class ConcatID:
    """What a Concat-ID file is, beside its native weights.

    marks: [L, 6, C], the native modulation vectors of its blocks, by which the model of this file is known again.
    own: the modulation of the reference, None for a ``first_stage``; in the dtype of the file, or float32 where it is
        quantised there.
    references: how many references it was trained with.
    """

    name: str
    sha256: str
    marks: torch.Tensor
    own: ReferenceModulation | None
    references: int = 1

    @property
    def variant(self) -> str:
        return "first stage" if self.own is None else "AdaLN"


def load_concat_id(path: str | Path, model_options: dict | None = None):
    """The ModelPatcher and the ConcatID of a file; nothing in the file is run.

    model_options: as ``comfy.sd.load_diffusion_model`` takes them.

    Raises UserError where the file cannot be read or is not Concat-ID's.
    """
    path, model_options = Path(path), model_options or {}
    weights, metadata, came = _read(path)
    native, concat_id = parse_concat_id(weights, shown(path.name), _sha256_of_same(path, came), metadata)
    model = _model(native, metadata, path, model_options)
    # with these ComfyUI loads the model anew, without what is only the pack's
    model.cached_patcher_init = (load_native, (path, model_options, came))
    return model, concat_id


def load_native(path: Path, model_options: dict, came: Fingerprint, disable_dynamic: bool = False):
    """The ModelPatcher of a file alone, as ComfyUI asks for it where it needs the model a second time.

    came: the file's when the model was loaded first.

    Raises UserError where the file cannot be read, and where it is another by now.
    """
    weights, metadata, _ = _read(path)
    _check_same(path, came)
    native, _ = parse_concat_id(weights, shown(path.name), metadata=metadata)
    return _model(native, metadata, path, model_options, disable_dynamic)


def came_from_concat_id(model) -> bool:
    """Whether a ModelPatcher is one of ``load_concat_id``."""
    loader, *_ = getattr(model, "cached_patcher_init", None) or (None,)
    return loader is load_native


def is_adaln(path: Path) -> bool:
    """Whether a model's file has a modulation of the reference, as ComfyUI's own loaders read the file.

    Raises UserError where the file cannot be read.
    """
    with refusing_damage(path, "put the file back, or load the model anew",
                         throw_exception_if_processing_interrupted) as ask:
        if path.suffix.lower() not in SAFETENSORS:
            return any(key.endswith(OWN_WEIGHT) for key in weights_in(unpickled(path, ask)))
        with safetensors.safe_open(path, "pt") as file:
            return any(key.endswith(OWN_WEIGHT) for key in file.offset_keys())


def check_fit(concat_id: ConcatID, model) -> None:
    """Raise UserError unless the model is the one that this file was trained as.

    model: a ModelPatcher.
    """
    wan = Wan(model.model)
    if not wan.from_text_alone:
        raise UserError("the model takes more than noise and text (image-to-video, VACE or another control), but "
                        "Concat-ID was trained on plain text-to-video: connect the model of Load Concat-ID.")
    if (len(wan.blocks), wan.dim) != concat_id.marks.shape[::2]:
        blocks, _, dim = concat_id.marks.shape
        raise UserError(f"{concat_id.name} is a Wan of {blocks} blocks and width {dim}, the model has "
                        f"{len(wan.blocks)} blocks and width {wan.dim}: connect the model of Load Concat-ID.")
    if not _same_weights(concat_id, wan):
        raise UserError(f"the model does not have the weights of {concat_id.name}. It may be a plain Wan, or a "
                        "Concat-ID file loaded with Load Diffusion Model, which drops its AdaLN tensors: connect both "
                        "outputs of Load Concat-ID.")


def _same_weights(concat_id: ConcatID, wan: Wan) -> bool:
    """Whether the model's modulation vectors are those of the file, up to the rounding of either."""
    # no LoRA is ever in them: ComfyUI patches no parameter of a module that holds other modules
    found = [block.block.modulation.detach().cpu() for block in wan.blocks]
    if not found[0].is_floating_point():  # packed by another loader, so there is nothing to compare
        return True
    rounding = max(torch.finfo(each.dtype).eps for each in (concat_id.marks, found[0])) / 2
    marks, own = concat_id.marks.float(), torch.cat(found).float()
    return bool((own - marks).square().mean() <= rounding**2 * marks.square().mean())


def _read(path: Path) -> tuple[dict, dict[str, str], Fingerprint]:
    """The content, the metadata and the fingerprint of a file; a safetensors by ComfyUI's loader, which maps it: it has
    gigabytes."""
    with refusing_damage(path, download_again("a Concat-ID model"), throw_exception_if_processing_interrupted) as ask:
        size, came, metadata = bytes_of(path), fingerprint_of(path), {}
        if path.suffix.lower() in SAFETENSORS:
            weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
            metadata = checked_metadata(metadata)  # the loader does not look
        else:
            check_size(size)
            check_claim(path, size)
            weights = weights_in(unpickled(path, ask))
        check_tensors(weights, size, ask)
    return weights, metadata, came


def _sha256_of_same(path: Path, came: Fingerprint) -> str:
    """Raises UserError where the file is not the one any more that has been read."""
    try:
        sha256 = sha256_of(path, throw_exception_if_processing_interrupted)
    except OSError as error:
        raise _other_by_now(path) from error
    _check_same(path, came)
    return sha256


def _check_same(path: Path, came: Fingerprint) -> None:
    with contextlib.suppress(OSError):
        if fingerprint_of(path) == came:
            return
    raise _other_by_now(path)


def _other_by_now(path: Path) -> UserError:
    return UserError(f"{shown(path.name)} was replaced, changed or removed since its reading began: run the workflow "
                     "again once the file is in its place.")


def parse_concat_id(weights: dict, name: str, sha256: str = "",
                    metadata: dict | None = None) -> tuple[dict[str, torch.Tensor], ConcatID]:
    """The native weights of a Concat-ID file, and what it is beside them.

    weights: key -> tensor, as in the file.

    Raises UserError for any other file.
    """
    if not isinstance(weights, dict) or not all(isinstance(key, str) and isinstance(each, torch.Tensor)
                                                for key, each in weights.items()):
        raise UserError(f"{name} holds a {type(weights).__name__} of other things than named tensors, so it is no "
                        "model: choose a Concat-ID file.")
    native = _without_prefix(weights, metadata, name)
    _refuse_others(native, name)
    blocks = max(_count_blocks(native), 1)
    needed = {*OUTSIDE_BLOCKS, *(f"blocks.{i}.{each}" for i in range(blocks) for each in IN_A_BLOCK)}
    needed_of_own = {OWN_WEIGHT, OWN_BIAS, *map(OWN_BLOCK.format, range(blocks))}
    own = {key: native.pop(key) for key in list(native) if key in needed_of_own or key.startswith(f"{OWN_LAYER}.")}
    if own:
        needed |= needed_of_own
    found = native | own
    missing = sorted(needed - found.keys())
    if missing:
        raise UserError(f"{name} lacks {len(missing)} of the {len(needed)} tensors that a Concat-ID of {blocks} blocks "
                        f"has (the first is {missing[0]}): the file is cut off or was converted wrongly, download it "
                        "again.")
    foreign = sorted(key for key in found.keys() - needed if not is_part(key, found))
    if foreign:
        raise UserError(f"{name} has {len(foreign)} tensors that no Concat-ID has (the first is {foreign[0]}): take "
                        "first_stage.pt or second_stage_adaln.pt as the authors publish them.")
    references = (metadata or {}).get(REFERENCES, "1")
    if not NUMBER_OF_REFERENCES.fullmatch(references):
        raise UserError(f"{name} must say how many references it was trained with, from 1 to 99, but says "
                        f"{shown(references)}: download the file again.")
    dim = native["patch_embedding.weight"].shape[0]
    marks = _stacked(native, "blocks.{}.modulation", blocks, dim, name)
    return native, ConcatID(name, sha256, marks, _own(own, blocks, dim, name) if own else None, int(references))


def _own(own: dict[str, torch.Tensor], blocks: int, dim: int, name: str) -> ReferenceModulation:
    own = {**own, OWN_WEIGHT: dequantized(OWN_LAYER, own, (6 * dim, dim), name)}
    _check_shape(own, OWN_WEIGHT, (6 * dim, dim), name)
    _check_shape(own, OWN_BIAS, (6 * dim,), name)
    # copies, because the tensors of a safetensors are the mapped file
    return ReferenceModulation(own[OWN_WEIGHT].clone(), own[OWN_BIAS].clone(),
                               _stacked(own, OWN_BLOCK, blocks, dim, name))


def _stacked(tensors: dict[str, torch.Tensor], key: str, blocks: int, dim: int, name: str) -> torch.Tensor:
    """The modulation vectors of all blocks, [L, 6, C]; key has a place for the number of the block."""
    keys = [key.format(i) for i in range(blocks)]
    for each in keys:
        _check_shape(tensors, each, (1, 6, dim), name)
    return torch.cat([tensors[each] for each in keys])


def _check_shape(tensors: dict[str, torch.Tensor], key: str, needed: tuple[int, ...], name: str) -> None:
    if tuple(tensors[key].shape) != needed:
        raise UserError(f"{name}: {key} must be {list(needed)}, but is {list(tensors[key].shape)}: download the file "
                        "again.")
    if not tensors[key].is_floating_point():
        raise UserError(f"{name}: {key} must hold floating point numbers, but is {tensors[key].dtype}: download the "
                        "file again.")


def _count_blocks(native: dict) -> int:
    return 1 + max((int(match[1]) for key in native if (match := BLOCK.match(key))), default=-1)


def _without_prefix(weights: dict, metadata: dict | None, name: str) -> dict[str, torch.Tensor]:
    """The tensors of the model under their native names; other parts of a checkpoint are left out."""
    for found, words in ((STAND_IN, "a Stand-In adapter: load it with Load Stand-In"),
                         (ORDINARY_LORA, "an ordinary LoRA: load it with LoraLoaderModelOnly")):
        key = next((key for key in weights if found.search(key)), None)
        if key is not None:
            raise UserError(f"{name} is {words}, and choose a Concat-ID file here (it has {key}).")
    anchor = "text_embedding.0.weight"
    prefix = next((key.removesuffix(anchor) for key in weights if key.endswith(anchor)), None)
    if prefix is None:
        came = f"the first of its {len(weights)} entries is {next(iter(weights))}" if weights else "it holds no tensors"
        raise UserError(f"{name} is not a Wan model under its native names: {came}; take first_stage.pt or "
                        "second_stage_adaln.pt of Concat-ID.")
    return {key.removeprefix(prefix): tensor
            for key, tensor in with_layouts(weights, prefix, metadata, name).items() if key.startswith(prefix)}


def _refuse_others(native: dict[str, torch.Tensor], name: str) -> None:
    """Raise UserError for a Wan that Concat-ID was not made from."""
    must_be = f"{name} must be Concat-ID's model, a fine-tuned Wan 2.1 text-to-video of 1.3B, but is"
    remedy = "take first_stage.pt or second_stage_adaln.pt."
    if any(key.startswith("vace_") for key in native):
        raise UserError(f"{must_be} a VACE model: {remedy}")
    patches = native.get("patch_embedding.weight")
    if patches is None:  # said with all that is missing
        return
    if patches.ndim != 5:
        raise UserError(f"{name}: patch_embedding.weight must be [C, {CHANNELS}, 1, 2, 2], but is "
                        f"{list(patches.shape)}: download the file again.")
    dim, channels = patches.shape[:2]
    if channels != CHANNELS or any(key.startswith("img_emb.") for key in native):
        raise UserError(f"{must_be} a Wan that takes {channels} channels, so an image-to-video, a control or a 5B "
                        f"model: {remedy}")
    if dim > WIDEST:
        raise UserError(f"{must_be} a Wan of width {dim}, so a 14B model: {remedy}")


def _check_sizes_told(metadata: dict[str, str]) -> None:
    """Raise ValueError where ComfyUI would build something else than the weights tell, such as a million blocks."""
    said = json.loads(metadata.get("config", "{}")).get("transformer", {})
    wrong = sorted(key for key, value in said.items() if key not in TOLD or type(value) is not int)
    if wrong:
        raise ValueError(f"its metadata set {', '.join(wrong)}")


def _model(native: dict[str, torch.Tensor], metadata: dict[str, str], path: Path, model_options: dict,
           disable_dynamic: bool = False):
    # the layouts stand beside the layers now; in the metadata, the layers may have names with a prefix
    metadata = {key: value for key, value in metadata.items() if key != LAYOUTS}
    try:
        _check_sizes_told(metadata)
        model = comfy.sd.load_diffusion_model_state_dict(native, model_options=model_options, metadata=metadata,
                                                         disable_dynamic=disable_dynamic)
    except OOM_EXCEPTION:
        raise
    except Exception as error:  # ComfyUI raises whatever a shape or a size leads it to
        words = shown((str(error).strip() or type(error).__name__).splitlines()[-1].strip())
        raise UserError(f"{shown(path.name)} has tensors that do not fit together, or other sizes in its metadata "
                        f"({words}): download it again.") from error
    if model is None:
        raise UserError(f"{shown(path.name)} is no Wan that ComfyUI knows: take first_stage.pt or "
                        "second_stage_adaln.pt of Concat-ID.")
    return model
