"""The one file of this method that touches SD1.5's model code: its cross-attentions, and how they read a face."""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import comfy.lora
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ..errors import UserError
from .adapter import Adapter

PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}  # the adapter's name, ComfyUI's


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """One cross-attention of a U-Net.

    block: as ComfyUI numbers it in ``transformer_options``, like ("input", 1).
    path: of its module in ComfyUI's model.
    shape: [C, c] of its keys' weight.
    depth: how many of them this block has.
    """

    block: tuple[str, int]
    path: str
    shape: tuple[int, int]
    depth: int


def cross_attentions(base) -> tuple[CrossAttention, ...]:
    """The cross-attentions of a ComfyUI model in the adapter's order, which is diffusers': down, up, middle.

    Raises UserError for a model that is no U-Net.
    """
    unet = base.diffusion_model
    if not isinstance(unet, UNetModel):
        raise UserError(f"the model must be an SD1.5 model, but is {type(unet).__name__}: connect one from Load "
                        "Checkpoint.")
    blocks = [*((("input", number), f"input_blocks.{number}", block) for number, block in enumerate(unet.input_blocks)),
              *((("output", number), f"output_blocks.{number}", block)
                for number, block in enumerate(unet.output_blocks)),
              (("middle", 0), "middle_block", unet.middle_block or ())]
    return tuple(_cross_attention(block, f"diffusion_model.{path}.{index}", layer)
                 for block, path, layers in blocks for index, layer in enumerate(layers)
                 if isinstance(layer, SpatialTransformer))


def _cross_attention(block: tuple[str, int], path: str, transformer: SpatialTransformer) -> CrossAttention:
    keys = transformer.transformer_blocks[0].attn2.to_k
    return CrossAttention(block, f"{path}.transformer_blocks.0.attn2", (keys.out_features, keys.in_features),
                          len(transformer.transformer_blocks))


def check_fit(adapter: Adapter, places: tuple[CrossAttention, ...]) -> None:
    """Raises UserError unless the adapter was made for a model with these cross-attentions."""
    needed = [(each.key.shape[0], each.key.shape[1]) for each in adapter.projections]
    if [place.shape for place in places] != needed or any(place.depth != 1 for place in places):
        raise UserError(f"{adapter.name} is for {_described(needed)}, but the model has "
                        f"{_described([place.shape for place in places for _ in range(place.depth)])}: connect an "
                        "SD1.5 model (SD2, SDXL and others are built otherwise).")


def _described(shapes: Sequence[tuple[int, ...]]) -> str:
    widths = ", ".join(map(str, sorted({width for width, _ in shapes})))
    contexts = ", ".join(map(str, sorted({context for _, context in shapes})))
    return f"{len(shapes)} cross-attentions of widths {widths or 'none'} that read text of width {contexts or 'none'}"


def add_low_rank(model, adapter: Adapter, places: tuple[CrossAttention, ...], strength: float) -> None:
    """Add the low-rank weights to the weights of the cross-attentions, as ComfyUI adds a LoRA's.

    model: a ModelPatcher of the caller's own, which the adapter fits.
    """
    names = {f"{number}.{own}": f"{place.path}.{comfyui}.weight"
             for number, place in enumerate(places) for own, comfyui in PROJECTIONS.items()}
    patches = comfy.lora.load_lora(adapter.low_rank, names)
    added = len(model.add_patches(patches, strength))
    if added != len(names):
        raise UserError(f"the model took {added} of the {len(names)} low-rank weights of {adapter.name}: its weights "
                        "are named otherwise than ComfyUI's, connect a model from Load Checkpoint.")


class ReadsFace:
    """A cross-attention's computation, for ComfyUI's ``patches_replace``: what it was, plus the face's attention."""

    def __init__(self, before: Callable | None, key: torch.Tensor, value: torch.Tensor):
        """before: another node's replacement that it adds to.

        key, value: [B, n, C] of the face, the value times the strength: all that changes between calls is in tensors,
        which torch.compile reads anew.
        """
        self.before = before
        self.key = key
        self.value = value

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
        """What the queries read of text and face, [B, N, C].

        q: [B, N, C]
        k, v: [B, L, C], of the text.
        """
        text = _attention(q, k, v, options) if self.before is None else self.before(q, k, v, options)
        return text + _attention(q, self.key, self.value, options)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
    return optimized_attention(q, k, v, options["n_heads"], attn_precision=options["attn_precision"],
                               transformer_options=options)


@contextlib.contextmanager
def reading(base, places: tuple[CrossAttention, ...], faces: list[tuple[torch.Tensor, torch.Tensor]],
            options: dict) -> Iterator[dict]:
    """Within the context, the cross-attentions at these places read these keys and values.

    Their modules are of a class of their own for that time, because torch.compile guards on a module's type, whereas
    ComfyUI drops the guards on ``transformer_options``: without it, what was compiled for the model alone would run.

    base: ComfyUI's model.
    options: ``transformer_options`` of the call, which stay as they are; yields those to go on with.
    """
    replace = options.get("patches_replace", {})
    attn2 = dict(replace.get("attn2", {}))
    modules = []
    for place, face in zip(places, faces, strict=True):
        exact = (*place.block, 0)  # ComfyUI asks for it first
        key = exact if exact in attn2 else place.block
        attn2[key] = ReadsFace(attn2.get(key), *face)
        modules.append(comfy.utils.get_attr(base, place.path))
    for module in modules:
        module.__class__ = _marked(type(module))  # type: ignore[arg-type]  # mypy knows no class to be hashable
    try:
        yield {**options, "patches_replace": {**replace, "attn2": attn2}}
    finally:
        for module in modules:
            module.__class__ = type(module).__base__
        attn2.clear()  # an exception holds the options, and ComfyUI needs the memory when it is out of it


@functools.cache
def _marked(kind: type) -> type:
    return type(f"{kind.__name__}ThatReadsFace", (kind,), {})
