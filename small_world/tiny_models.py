"""Tiny Wan models with random weights, in the files that ComfyUI's own loaders read.

The modules are ComfyUI's; only their widths are small and their weights random, so what runs is the real code and what
comes out is noise. Imports ComfyUI: call it where ComfyUI is on the path.
"""
from __future__ import annotations

import io
import json
import math
import string
from dataclasses import dataclass
from pathlib import Path

import comfy.clip_model
import comfy.clip_vision
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.ops
import comfy.sd1_clip
import comfy.taesd.taesd
import comfy.text_encoders.t5
import comfy.text_encoders.wan
import safetensors.torch
import sentencepiece
import torch

from standin_core.id_animator.adapter import OF_A_LAYER, OF_AN_ATTENTION, OF_THE_ENDS

from .scenes import captions

TEXT_DIM = 4096
DIM, HEADS, BLOCKS, RANK = 64, 2, 4, 16

DIFFUSION_MODEL = "tiny_wan_t2v.safetensors"
LOW_NOISE_MODEL = "tiny_wan_t2v_low_noise.safetensors"
VACE_MODEL = "tiny_wan_vace.safetensors"
TEXT_ENCODER = "tiny_umt5.safetensors"
CLIP_VISION = "tiny_clip_vision.safetensors"
VAE = "tiny_wan_vae.safetensors"
ADAPTER = "tiny_stand_in.safetensors"
CONCAT_ID = "tiny_concat_id.safetensors"
LORA = "tiny_lora.safetensors"
SD15_CHECKPOINT = "tiny_sd15.safetensors"
ID_ANIMATOR = "tiny_animator.safetensors"

ENCODER_SIZES = json.loads((Path(__file__).resolve().parent / "tiny_encoders" / "sizes.json").read_text())
VAE_FILE = Path(__file__).resolve().parent / "weights" / "small_world_vae.safetensors"
VAE_WIDTH = 16


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
        return self._weights(comfy.ldm.wan.model.WanModel)

    def vace_weights(self) -> dict[str, torch.Tensor]:
        """Weights of a VACE model, which has two blocks of its own beside the others."""
        return self._weights(comfy.ldm.wan.model.VaceWanModel, vace_layers=2, vace_in_dim=96)

    def _weights(self, kind: type, **more) -> dict[str, torch.Tensor]:
        module = kind(dim=self.dim, ffn_dim=self.ffn_dim, num_heads=self.heads, num_layers=self.blocks,
                      text_dim=self.text_dim, operations=comfy.ops.disable_weight_init, **more)
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


def concat_id_weights(wan: TinyWan, adaln: bool = True) -> dict[str, torch.Tensor]:
    """A Concat-ID model under the authors' names.

    adaln: whether the reference has a modulation of its own.
    """
    weights = wan.weights()
    generator = torch.Generator().manual_seed(6)
    if adaln:
        weights["time_projection_ref.1.weight"] = torch.randn(6 * wan.dim, wan.dim, generator=generator) / wan.dim**0.5
        weights["time_projection_ref.1.bias"] = torch.randn(6 * wan.dim, generator=generator) / 50
        for i in range(wan.blocks):
            weights[f"blocks.{i}.modulation_ref"] = torch.randn(1, 6, wan.dim, generator=generator) / wan.dim**0.5
    return weights


def tiny_vae() -> torch.nn.Module:
    """ComfyUI's WanVAE, 3.6 M parameters, with weights that nobody has set."""
    return comfy.ldm.wan.vae.WanVAE(dim=VAE_WIDTH, z_dim=16, temperal_downsample=[False, True, True])


def vae_weights() -> dict[str, torch.Tensor]:
    """Trained by small_world/train_vae.py, in fp32: a picture comes back."""
    return {key: value.float() for key, value in safetensors.torch.load_file(VAE_FILE).items()}


def text_encoder_weights() -> dict[str, torch.Tensor]:
    """A umT5 of one block, whose tokenizer knows the words of the small world and else single characters, for
    ComfyUI's loader (see tiny_encoders)."""
    sizes = ENCODER_SIZES["text"]
    config = json.loads((Path(comfy.text_encoders.wan.__file__).parent / "umt5_config_xxl.json").read_text()) | sizes
    module = comfy.text_encoders.t5.T5(config, torch.float32, "cpu", comfy.ops.disable_weight_init)
    weights = random_weights(module, seed=3)
    words = sorted({word for caption in captions() for word in caption.replace(",", "").split() if len(word) > 1})
    letters = string.ascii_letters + string.digits + ".,:;!?'-#()"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([letters, " ".join(letters)]), model_writer=model, model_type="char",
        vocab_size=sizes["vocab_size"], hard_vocab_limit=False, user_defined_symbols=words, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2)
    weights["spiece_model"] = torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)
    # by which ComfyUI tells a umT5-XXL
    weights["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] = torch.zeros(10240, 1)
    return weights


def clip_vision_weights() -> dict[str, torch.Tensor]:
    """A CLIP vision model of two layers, for ComfyUI's loader (see tiny_encoders)."""
    config = json.loads((Path(comfy.clip_vision.__file__).parent / "clip_vision_config_vitl.json").read_text())
    module = comfy.clip_model.CLIPVisionModelProjection(config | ENCODER_SIZES["vision"], torch.float32, "cpu",
                                                        comfy.ops.disable_weight_init)
    weights = random_weights(module, seed=5)
    # by which ComfyUI tells a ViT-L
    weights["vision_model.encoder.layers.22.layer_norm1.weight"] = torch.zeros(1)
    return weights


def lora_weights(rank: int = 4) -> dict[str, torch.Tensor]:
    """A LoRA on queries, keys and values, as trainers write it."""
    generator = torch.Generator().manual_seed(4)
    weights = {}
    for block in range(BLOCKS):
        for which in "qkv":
            key = f"diffusion_model.blocks.{block}.self_attn.{which}"
            weights[f"{key}.lora_down.weight"] = torch.randn(rank, DIM, generator=generator) / 8
            weights[f"{key}.lora_up.weight"] = torch.randn(DIM, rank, generator=generator) / 8
    return weights


def sd15_weights() -> dict[str, torch.Tensor]:
    """A checkpoint that ComfyUI takes for SD1.5, in fp16: a U-Net of one level and one residual block, whose widths
    must be the real ones, a text encoder of one layer, and the small VAE TAESD.
    """
    unet = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[1], channel_mult=(1,),
        transformer_depth=[1], transformer_depth_output=[1, 1], transformer_depth_middle=1, num_heads=8,
        use_spatial_transformer=True, context_dim=768, legacy=False, operations=comfy.ops.disable_weight_init)
    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text())
    text = comfy.clip_model.CLIPTextModel(config | ENCODER_SIZES["sd15_text"], torch.float32, "cpu",
                                          comfy.ops.disable_weight_init)
    vae = random_weights(comfy.taesd.taesd.TAESD(latent_channels=4), seed=8)
    vae |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    parts = {"model.diffusion_model.": random_weights(unet, seed=6),
             "cond_stage_model.transformer.": random_weights(text, seed=7), "first_stage_model.": vae}
    return {prefix + key: value.half() for prefix, weights in parts.items() for key, value in weights.items()}


def id_animator_weights() -> dict[str, torch.Tensor]:
    """An adapter for the four cross-attentions of that U-Net and the tiny CLIP vision model."""
    sizes = {"1": 1, "n": 4, "d": 64, "w": ENCODER_SIZES["vision"]["hidden_size"], "a": 64, "2a": 128, "f": 128,
             "c": 768, "r": 4, "C": 320}
    shapes = {f"image_proj_model.{key}": shape for key, shape in OF_THE_ENDS.items()}
    shapes |= {f"image_proj_model.layers.0.{key}": shape for key, shape in OF_A_LAYER.items()}
    for index in (1, 3, 5, 7):
        shapes |= {f"adapter_modules.{index}.{key}": shape for key, shape in OF_AN_ATTENTION.items()}
    generator = torch.Generator().manual_seed(9)
    weights = {}
    for key, letters in shapes.items():
        shape = [sizes[letter] for letter in letters.split()]
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:  # of norms, and biases
            weights[key] = 1 + 0.05 * noise if key.endswith("weight") else 0.02 * noise
        else:
            weights[key] = noise / math.sqrt(shape[-1])
    return weights


def write_tiny_sd15(models: Path) -> None:
    """Write checkpoint and adapter into a ComfyUI models folder."""
    for folder, name, weights in (("checkpoints", SD15_CHECKPOINT, sd15_weights()),
                                  ("id_animator", ID_ANIMATOR, id_animator_weights())):
        (models / folder).mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(weights, models / folder / name)


def write_tiny_models(models: Path) -> None:
    """Write all the files into a ComfyUI models folder."""
    wan = TinyWan()
    for folder, name, weights, metadata in (
            ("diffusion_models", DIFFUSION_MODEL, wan.weights(), wan.metadata()),
            ("diffusion_models", LOW_NOISE_MODEL, TinyWan(seed=1).weights(), wan.metadata()),
            ("diffusion_models", VACE_MODEL, wan.vace_weights(), wan.metadata()),
            ("diffusion_models", CONCAT_ID, concat_id_weights(TinyWan(seed=7)), wan.metadata()),
            ("text_encoders", TEXT_ENCODER, text_encoder_weights(), None),
            ("clip_vision", CLIP_VISION, clip_vision_weights(), None),
            ("vae", VAE, vae_weights(), None),
            ("loras", LORA, lora_weights(), None),
            ("stand_in", ADAPTER, adapter_weights(), None)):
        (models / folder).mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(weights, models / folder / name, metadata=metadata)
