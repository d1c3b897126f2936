"""Tiny Wan models with random weights, in the files that ComfyUI's own loaders read.

The modules are ComfyUI's; only their widths are small and their weights random, so what runs is the real code and what
comes out is noise. Imports ComfyUI: call it where ComfyUI is on the path.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.ops
import safetensors.torch
import torch

# core's LotusConditioning, a text condition that needs no text encoder, is 1024 wide
TEXT_DIM = 1024
DIM, HEADS, BLOCKS, RANK = 64, 2, 4, 16

DIFFUSION_MODEL = "tiny_wan_t2v.safetensors"
VAE = "tiny_wan_vae.safetensors"
ADAPTER = "tiny_stand_in.safetensors"

VAE_FILE = Path(__file__).resolve().parent.parent / "tests" / "data" / "tiny_wan_vae.safetensors"


@dataclass(frozen=True)
class TinyWan:
    """A native Wan text-to-video model: what to build and what ComfyUI must be told to detect it."""

    dim: int = DIM
    ffn_dim: int = 2 * DIM
    heads: int = HEADS
    blocks: int = BLOCKS
    text_dim: int = TEXT_DIM
    seed: int = 0

    def weights(self) -> dict[str, torch.Tensor]:
        module = comfy.ldm.wan.model.WanModel(
            dim=self.dim, ffn_dim=self.ffn_dim, num_heads=self.heads, num_layers=self.blocks, text_dim=self.text_dim,
            operations=comfy.ops.disable_weight_init)
        return random_weights(module, self.seed)

    def metadata(self) -> dict[str, str]:
        """ComfyUI takes what the weights do not tell from the file's metadata."""
        return {"config": json.dumps({"transformer": {"num_heads": self.heads, "text_dim": self.text_dim}})}


def random_weights(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Norms near 1, biases near 0, the rest scaled by its fan-in, so that a forward pass keeps its magnitude."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith(("gamma", "norm_q.weight", "norm_k.weight", "norm3.weight")):
            weights[key] = 1 + 0.05 * noise
        elif key.endswith("bias"):
            weights[key] = 0.02 * noise
        else:
            weights[key] = noise / math.sqrt(max(1, math.prod(value.shape[1:])))
    return weights


def adapter_weights(dim: int = DIM, blocks: int = BLOCKS, rank: int = RANK, seed: int = 2) -> dict[str, torch.Tensor]:
    """The official layout; strong enough to be seen beside random base weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for block in range(blocks):
        for which in "qkv":
            prefix = f"blocks.{block}.self_attn.{which}_loras"
            weights[f"{prefix}.down.weight"] = torch.randn(rank, dim, generator=generator) / math.sqrt(dim)
            weights[f"{prefix}.up.weight"] = torch.randn(dim, rank, generator=generator) / math.sqrt(rank)
    return weights


def tiny_vae() -> torch.nn.Module:
    return comfy.ldm.wan.vae.WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])


def vae_weights() -> dict[str, torch.Tensor]:
    """Trained by scripts/train_tiny_vae.py: a picture comes back coarse, but it comes back."""
    return {key: value.float() for key, value in safetensors.torch.load_file(VAE_FILE).items()}


def write_tiny_models(models: Path) -> None:
    """Write the three files into a ComfyUI models folder."""
    wan = TinyWan()
    for folder, name, weights, metadata in (
            ("diffusion_models", DIFFUSION_MODEL, wan.weights(), wan.metadata()),
            ("vae", VAE, vae_weights(), None),
            ("stand_in", ADAPTER, adapter_weights(), None)):
        (models / folder).mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(weights, models / folder / name, metadata=metadata)


def on_tiny_models(workflow: Path, photo: str, width: int = 128, height: int = 128, length: int = 17,
                   steps: int = 4, video: str = "") -> dict:
    """A bundled workflow (API format) with the tiny files, a small video and the uploaded photo and video.

    The text encoder of Wan is umT5-XXL, of which there is no tiny form: core's LotusConditioning stands in for what it
    makes of the prompts, and the negative one is zeroed. Everything else stays as it is.
    """
    prompt = json.loads(workflow.read_text(encoding="utf-8"))
    conditions = []
    for node_id, node in list(prompt.items()):
        inputs = node["inputs"]
        match node["class_type"]:
            case "UNETLoader":
                inputs["unet_name"] = DIFFUSION_MODEL
            case "VAELoader":
                inputs["vae_name"] = VAE
            case "LoadStandIn":
                inputs["adapter"] = ADAPTER
            case "LoadImage":
                inputs["image"] = photo
            case "LoadVideo":
                inputs["file"] = video
            case "EmptyHunyuanLatentVideo":
                inputs |= {"width": width, "height": height, "length": length}
            case "StandInSampler":
                inputs["steps"] = steps
                conditions = [inputs["positive"][0], inputs["negative"][0]]
            case "CLIPLoader":
                del prompt[node_id]
    positive, negative = conditions
    prompt[positive] = {"class_type": "LotusConditioning", "inputs": {}}
    prompt[negative] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": [positive, 0]}}
    return prompt
