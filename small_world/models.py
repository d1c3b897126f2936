"""The tiny Wan of the small world: ComfyUI's own classes at small widths, and the files of their weights."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import comfy.latent_formats
import comfy.sd
import safetensors.torch
import torch

from standin_core.files import replacing

from .tiny_models import VAE_FILE, TinyWan, random_weights, tiny_vae, vae_weights

WEIGHTS = Path(__file__).resolve().parent / "weights"
WAN_FILE, ADAPTER_FILE, LONG_DECODER_FILE = (WEIGHTS / f"small_world_{name}.safetensors" for name in (
    "wan", "stand_in", "long_decoder"))
SNAPSHOTS = (125, 250, 500, 1000)  # steps after which a training keeps what it has
SIDE, FRAMES = 64, 9
LONG = 33  # frames of a long video
WAN = TinyWan(dim=256, ffn_dim=1024, heads=4, blocks=6, text_dim=4096)
ENCODER = ("encoder.", "conv1.")  # the part of the VAE's weights that makes latents
STORED = torch.bfloat16


def snapshot_file(folder: Path, steps: int) -> Path:
    """The adapter after so many steps of its training."""
    return folder / ADAPTER_FILE.with_stem(f"{ADAPTER_FILE.stem}_after_{steps}").name


def concat_id_file(folder: Path, variant: str, people: int = 1) -> Path:
    """The Concat-ID model of a variant, trained on clips of so many people."""
    return folder / f"small_world_concat_id_{'_'.join(variant.lower().split())}_{people}.safetensors"


def new_vae() -> torch.nn.Module:
    """The tiny VAE from its file or from random weights."""
    vae = tiny_vae()
    vae.load_state_dict(vae_weights() if VAE_FILE.exists() else random_weights(vae, seed=3))
    return vae


def long_vae() -> torch.nn.Module:
    """The tiny VAE with the decoder of videos of more than FRAMES, if its file is there; the latents are the same."""
    vae = new_vae()
    if LONG_DECODER_FILE.exists():
        vae.load_state_dict(vae.state_dict() | load(LONG_DECODER_FILE))
    return vae


def base_model():
    """The ModelPatcher of WAN, from its file or from random weights, in fp32."""
    weights = load(WAN_FILE) if WAN_FILE.exists() else WAN.weights()
    return comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32},
                                                    metadata=WAN.metadata())


def encoder_hash() -> str:
    """The hash of the weights that make latents."""
    weights = safetensors.torch.load_file(VAE_FILE)
    return hashlib.sha256(b"".join(weights[key].view(torch.uint8).numpy().tobytes() for key in sorted(weights)
                                   if key.startswith(ENCODER))).hexdigest()[:12]


def to_model_space(latent: torch.Tensor) -> torch.Tensor:
    """[B, 16, T, h, w], VAE space -> model space, as every Wan 2.1 has it."""
    return comfy.latent_formats.Wan21().process_in(latent)


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """[B, T, H, W, 3] uint8 -> [B, 3, T, H, W] in -1..1, as WanVAE takes it."""
    return frames.movedim(-1, 1).float() / 127.5 - 1


def encode(vae: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """[B, 3, F, H, W] in -1..1 -> [B, 16, (F - 1) / 4 + 1, H / 8, W / 8], VAE space.

    A long video is encoded in windows of FRAMES that share one, since the encoder was trained on no more.
    """
    windows = [vae.encode(pixels[:, :, first:first + FRAMES])
               for first in range(0, max(1, pixels.shape[2] - 1), FRAMES - 1)]
    return torch.cat([windows[0], *(each[:, :, 1:] for each in windows[1:])], dim=2)


def load(path: Path) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in safetensors.torch.load_file(path).items()}


def save(weights: dict[str, torch.Tensor], path: Path, record: dict | None = None) -> None:
    """Weights in bf16, Wan's with its metadata, and a line on what was seen while training in the log beside them."""
    path.parent.mkdir(exist_ok=True, parents=True)
    weights = {key: value.detach().to(STORED).contiguous() for key, value in weights.items()}
    metadata = WAN.metadata() if path.name == WAN_FILE.name else None
    with replacing(path) as unfinished:
        safetensors.torch.save_file(weights, unfinished, metadata)
    if record:
        with path.with_suffix(".log").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
