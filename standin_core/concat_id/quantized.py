"""Quantised layers in a file, in the layouts that ComfyUI reads: scaled fp8, MXFP8, NVFP4, int8.

Beside its weight such a layer has scales, and ``comfy_quant``, which names the layout.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import comfy.ops
import comfy.utils
import torch
from comfy.quant_ops import QUANT_ALGOS

from ..errors import UserError
from ..words import shown

LAYOUT = "comfy_quant"
PARAMETERS = frozenset({LAYOUT}.union(*(each["parameters"] for each in QUANT_ALGOS.values())))


def with_layouts(tensors: dict[str, torch.Tensor], prefix: str, metadata: dict | None,
                 name: str) -> dict[str, torch.Tensor]:
    """The tensors of a file, in which every quantised layer has its ``comfy_quant``.

    Older files have one tensor ``scaled_fp8`` for all layers, others name the layouts in their metadata.

    prefix: of the model's tensors.
    name: of the file.

    Raises UserError where ComfyUI cannot read them.
    """
    with _refused(name):
        return comfy.utils.convert_old_quants(dict(tensors), prefix, metadata)[0]


def is_part(key: str, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the tensor is what a quantised layer has beside its weight and bias."""
    layer, _, parameter = key.rpartition(".")
    return parameter in PARAMETERS and {f"{layer}.{LAYOUT}", f"{layer}.weight"} <= tensors.keys()


def dequantized(layer: str, tensors: dict[str, torch.Tensor], shape: tuple[int, int], name: str) -> torch.Tensor:
    """The weight of a linear layer: [out, in] float32 where it is quantised, else as it is in the file.

    layer: its name, with which the keys of its tensors begin.
    shape: (out, in)
    name: of the file.

    Raises UserError where ComfyUI cannot read it.
    """
    if f"{layer}.{LAYOUT}" not in tensors:
        return tensors[f"{layer}.weight"]
    with _refused(name):
        linear = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Linear(*reversed(shape))
        linear.load_state_dict({key.removeprefix(f"{layer}."): tensor for key, tensor in tensors.items()
                                if key.startswith(f"{layer}.")})
        return linear.weight.detach().dequantize()


@contextlib.contextmanager
def _refused(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ComfyUI raises whatever it meets in a layout that it does not know
        raise UserError(f"{name} has quantised layers that ComfyUI cannot read ({shown(error)}): update ComfyUI, or "
                        "take a file that is not quantised.") from error
