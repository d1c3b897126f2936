"""From a reference image to the reference latent."""
from __future__ import annotations

import comfy.ldm.wan.vae
import torch

from .checks import check_finite, checked_latent, checked_pictures
from .errors import UserError
from .latents import PIXELS_PER_TOKEN


def reference_from(vae, image: torch.Tensor | None, latent: dict | None) -> torch.Tensor:
    """The reference latent [R, 16, 1, h, w], VAE space, from images and a VAE or from a ComfyUI LATENT.

    Raises UserError unless exactly one of image and latent came, and an image came with a VAE; for what is no picture
    or no latent of pictures, and for a VAE that makes NaN of a picture.
    """
    if image is not None and latent is not None:
        raise UserError("only one of a reference image and a reference latent can be read, but both came: "
                        "disconnect one.")
    if latent is not None:
        return _pictures(latent)
    if image is None:
        raise UserError("no reference came: connect the face crop to reference_image, or its latent to "
                        "reference_latent.")
    if vae is None:
        raise UserError("a reference image came without a VAE: connect Wan 2.1's VAE.")
    return encode_reference(vae, checked_pictures(image, "reference_image"))


def encode_reference(vae, image: torch.Tensor) -> torch.Tensor:
    """image: [R, H, W, 3] or RGBA, 0..1, R photos of one person -> [R, 16, 1, H/8, W/8], VAE space.

    A photo of 512x512 gives 1,024 tokens.

    Raises UserError for an image smaller than a token, and for a VAE that is not Wan's or that makes NaN of a picture.
    """
    check_wan_vae(vae)
    if min(image.shape[1:3]) < PIXELS_PER_TOKEN:
        raise UserError(f"the reference image must be at least {PIXELS_PER_TOKEN}x{PIXELS_PER_TOKEN}, but is "
                        f"{image.shape[2]}x{image.shape[1]}: check what feeds it, or put FacePreprocess before it.")
    # one by one: to Wan's VAE a batch is a video
    encoded = torch.cat([vae.encode(photo) for photo in image[..., :3].split(1)])
    check_finite(encoded, "the encoded reference image")
    return encoded


def answer_of(vae) -> torch.Tensor:
    """What the VAE makes of one small picture: [1, 16, 1, 2, 2] float32 on the CPU. By it a VAE is known again.

    Files of one VAE differ in precision, and ComfyUI casts weights to what the device likes, so no hash of them would
    do.

    Raises UserError for a VAE that is not Wan's.
    """
    ramp = torch.linspace(0, 1, PIXELS_PER_TOKEN)
    across, down = torch.meshgrid(ramp, ramp, indexing="xy")
    return encode_reference(vae, torch.stack((across, down, (across - down).abs()), -1)[None]).float().cpu()


def fitted(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The picture, scaled until it fits, in the middle of black: [H, W, 3] float32 in 0..1, whole levels of 8 bits.

    This is ``ImageProcessor.resize_pad_crop`` of ML-GSAI/Concat-ID. Overshoot of the bicubic filter is clamped, as in
    the authors' training; their inference lets it wrap around to white dots along dark edges.

    image: [h, w, 3] in 0..1.
    height, width: of the video in pixels.
    """
    scale = min(height / image.shape[0], width / image.shape[1])
    size = max(int(image.shape[0] * scale), 1), max(int(image.shape[1] * scale), 1)
    scaled = torch.nn.functional.interpolate(image.float().movedim(-1, 0)[None], size, mode="bicubic", antialias=True)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    padded = torch.nn.functional.pad(scaled, (left, width - size[1] - left, top, height - size[0] - top))
    return (padded[0].movedim(0, -1).clamp(0, 1) * 255).to(torch.uint8).float() / 255


def check_wan_vae(vae) -> None:
    """Raises UserError unless the VAE is Wan 2.1's."""
    if not isinstance(vae.first_stage_model, comfy.ldm.wan.vae.WanVAE):
        raise UserError("the VAE must be Wan 2.1's, which the 14B models of Wan 2.1 and 2.2 use, but is "
                        f"{type(vae.first_stage_model).__name__}: load wan_2.1_vae.safetensors with Load VAE.")


def _pictures(latent: dict) -> torch.Tensor:
    samples = checked_latent(latent, "reference_latent")
    if samples.ndim == 4:
        samples = samples.unsqueeze(2)
    if samples.ndim != 5 or samples.shape[2] != 1:
        raise UserError("the reference latent must hold single pictures, [R, 16, 1, h, w], but has shape "
                        f"{list(latent['samples'].shape)}: encode them one by one with VAE Encode, and batch the "
                        "latents.")
    return samples
