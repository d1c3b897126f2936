"""What a run chooses for a device: how the video reads the identity, and where the identity K/V live."""
from __future__ import annotations

import torch

from ..attention import AttentionChoice, Need, Reason, choose_attention
from ..errors import UserError
from ..host_attention import attention_in_use
from ..report import ReportSink
from ..wan import Wan
from .applied import Applied
from .kv_cache import IdentityCacheSpec


def chosen_attention(applied: Applied, wan: Wan, device: torch.device, options: dict,
                     tokens: tuple[int, int]) -> AttentionChoice:
    """How the video reads the identities on a device.

    options: ``transformer_options`` of the run.
    tokens: how many the whole video has, and how many all identities have together.
    """
    if applied.is_ordinary:  # no path is passed over: there is one
        return AttentionChoice("concatenate", None, ())
    needs = applied.needs or ((Reason(Need.MAP),) if maps_attention(options) else ())
    return choose_attention(applied.settings.attention, needs, attention_in_use(options), device, wan.dtype,
                            wan.dim // wan.heads, tokens)


def maps_attention(options: dict) -> bool:
    """Whether the run's listener asks for a map of its attention.

    options: ``transformer_options`` of the run.
    """
    sink = ReportSink.of(options)
    return sink is not None and sink.maps_attention


def chosen_cache(requested: str, specs: list[IdentityCacheSpec], device: torch.device, free: int) -> str:
    """Where the identity K/V live on a device.

    requested: one of CACHE_MODES; "auto" is resident if half of the free memory holds them, which leaves room to
        sample, and offloaded otherwise.
    specs: of all identities.
    free: how many bytes on the device a run may take.

    Raises UserError for what the device cannot do.
    """
    if requested == "fp8" and device.type == "mps":
        raise UserError("cache is set to fp8, which this device (MPS) does not know: set it to auto or offloaded.")
    if requested != "auto":
        return requested
    needed = sum(spec.device_bytes("resident") for spec in specs)
    return "resident" if device.type == "cpu" or 2 * needed <= free else "offloaded"
