"""From a reference image to the reference latent."""
from __future__ import annotations

import comfy.ldm.wan.vae
import torch

from .contracts import UserError
from .latents import PIXELS_PER_TOKEN


def reference_from(vae, image: torch.Tensor | None, latent: dict | None) -> torch.Tensor:
    """The reference latent [R, 16, 1, h, w], VAE space, from images and a VAE or from a ComfyUI LATENT.

    Raises UserError unless exactly one of image and latent came, and an image came with a VAE.
    """
    if image is not None and latent is not None:
        raise UserError("a reference image and a reference latent came, one of them is needed: disconnect one.")
    if latent is not None:
        return _pictures(latent)
    if image is None:
        raise UserError("no reference came: connect the face crop to reference_image, or its latent to "
                        "reference_latent.")
    if vae is None:
        raise UserError("a reference image came without a VAE: connect Wan 2.1's VAE.")
    return encode_reference(vae, image)


def encode_reference(vae, image: torch.Tensor) -> torch.Tensor:
    """image: [R, H, W, 3] or RGBA, 0..1, R photos of one person -> [R, 16, 1, H/8, W/8], VAE space.

    A photo of 512x512 gives 1,024 tokens.

    Raises UserError for an empty image or a VAE that is not Wan's.
    """
    check_wan_vae(vae)
    if image.shape[0] == 0:
        raise UserError("the reference image is an empty batch: connect the face crop of Face Preprocess.")
    if min(image.shape[1:3]) < PIXELS_PER_TOKEN:
        raise UserError(f"the reference image is {image.shape[2]}x{image.shape[1]}, at least "
                        f"{PIXELS_PER_TOKEN}x{PIXELS_PER_TOKEN} is needed: check what feeds it, or put "
                        "FacePreprocess before it.")
    # one by one: to Wan's VAE a batch is a video
    return torch.cat([vae.encode(photo) for photo in image[..., :3].split(1)])


def check_wan_vae(vae) -> None:
    """Raises UserError unless the VAE is Wan 2.1's."""
    if not isinstance(vae.first_stage_model, comfy.ldm.wan.vae.WanVAE):
        raise UserError(f"the VAE is {type(vae.first_stage_model).__name__}, needed is Wan 2.1's, which the 14B "
                        "models of Wan 2.1 and 2.2 use: load wan_2.1_vae.safetensors with Load VAE.")


def _pictures(latent: dict) -> torch.Tensor:
    samples = latent["samples"]
    if samples.ndim == 4:
        samples = samples.unsqueeze(2)
    if samples.ndim != 5 or samples.shape[2] != 1 or 0 in samples.shape:
        raise UserError(f"the reference latent has shape {list(latent['samples'].shape)}, needed are single "
                        "pictures, [R, 16, 1, h, w]: encode them one by one with VAE Encode, and batch the latents.")
    return samples
