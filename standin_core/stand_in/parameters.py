"""The parameters of an adapter that is being trained: PEFT's low-rank modules, read as an Adapter like any other."""
from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from ..files import replacing
from .adapter import Adapter, official_key, parse_adapter
from .variant import PAPER, Variant


def new_adapter(blocks: int, dim: int, rank: int, seed: int = 0, device: torch.device | str = "cpu",
                variant: Variant = PAPER) -> torch.nn.Module:
    """PEFT's modules of an adapter that changes nothing yet, in fp32.

    down is drawn from N(0, 1/rank) and up is zero. PEFT calls that gaussian, and the authors' modules begin so
    (``LoRALinearLayer`` in WeChatCV/Stand-In's models/wan_video_dit.py). The modules are kept beside the model, not in
    it: the video's own tokens do not pass them.

    blocks, dim: of the model.
    rank: of the low-rank weights.
    seed: of the draw.
    device: where the weights lie.
    variant: what the adapter is trained as.
    """
    from peft import LoraConfig, inject_adapter_in_model  # 6 s

    module = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList(
        torch.nn.ModuleDict({"self_attn": torch.nn.ModuleDict({
            which: torch.nn.Linear(dim, dim, bias=False, device="meta") for which in "qkv"})})
        for _ in range(blocks))})
    module.variant = variant  # type: ignore[assignment]  # PyTorch says tensor or module, and takes any attribute
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):  # PEFT looks at device and sizes: one number serves for all of them
            layer.weight = torch.nn.Parameter(torch.zeros(1, device=device).expand(dim, dim), requires_grad=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list("qkv"),
                                                  init_lora_weights="gaussian"), module)


def as_adapter(module: torch.nn.Module, name: str = "in training") -> Adapter:
    """The parameters themselves of ``new_adapter``, as the identity stream takes them."""
    return parse_adapter({key: parameter for key, parameter in module.named_parameters() if "lora_" in key}, name,
                         variant=module.variant)  # type: ignore[arg-type]  # as in new_adapter


def parameters(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Official key -> tensor; 6 for each block."""
    return {official_key(number, which, factor): getattr(getattr(block, which), factor)
            for number, block in enumerate(adapter.blocks) for which in "qkv" for factor in ("down", "up")}


def save_adapter(weights: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that Load Stand-In, and every other reader of the official names, takes.

    weights: of ``parameters``.
    path: of the file; one that is there is replaced.
    metadata: what the file says of itself (base model, data, steps).
    """
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    with replacing(path) as part:
        safetensors.torch.save_file(weights, part, metadata={"format": "pt", **metadata})
