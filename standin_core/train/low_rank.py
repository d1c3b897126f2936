"""Low-rank weights that are trained: PEFT's modules, kept beside the model and not in it."""
from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from .settings import TrainSettings

DOWN, UP = "lora_A", "lora_B"


def low_rank_modules(sizes: Mapping[str, tuple[int, int]], rank: int, seed: int,
                     device: torch.device | str) -> torch.nn.Module:
    """PEFT's modules for linear layers, in fp32, which change nothing yet.

    down is drawn from N(0, 1/rank) and up is zero, which PEFT calls gaussian and is how the modules of Stand-In's
    authors begin (``LoRALinearLayer`` in WeChatCV/Stand-In's models/wan_video_dit.py).

    sizes: name of a layer -> (in, out).
    seed: decides what is drawn.
    """
    from peft import LoraConfig, inject_adapter_in_model  # 6 s

    module = torch.nn.Module()
    for name, (before, after) in sizes.items():
        *folders, own = name.split(".")
        parent = module
        for folder in folders:
            if folder not in dict(parent.named_children()):
                parent.add_module(folder, torch.nn.Module())
            parent = parent.get_submodule(folder)
        layer = torch.nn.Linear(before, after, bias=False, device="meta")
        # PEFT looks at device and sizes: one number serves for all of them
        layer.weight = torch.nn.Parameter(torch.zeros(1, device=device).expand(after, before), requires_grad=False)
        parent.add_module(own, layer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return inject_adapter_in_model(LoraConfig(
            r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, sizes)), init_lora_weights="gaussian"),
            module)


def low_rank_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's name -> parameter, for all that is trained of ``low_rank_modules``."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def low_rank_optimizer(module: torch.nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with LoRA+'s two learning rates."""
    from peft.optimizers import create_loraplus_optimizer  # 6 s

    return create_loraplus_optimizer(  # type: ignore[return-value]
        module,  # type: ignore[arg-type]  # PEFT says PeftModel, and takes any module with its layers
        torch.optim.AdamW, lr=settings.learning_rate, loraplus_lr_ratio=settings.loraplus_ratio,
        loraplus_weight_decay=settings.weight_decay, weight_decay=settings.weight_decay)
