"""The prepared video as a latent to denoise, with the mask on latent frames."""
from __future__ import annotations

import comfy.utils
import torch

from ..checks import check_choice, checked_masks, checked_pictures
from ..errors import UserError
from ..latents import FRAMES_PER_LATENT, PIXELS_PER_LATENT, PIXELS_PER_TOKEN, largest_in_each
from ..reference import check_wan_vae

SWAP_BACKGROUNDS = ("locked", "free")
MASK_EDGES = ("hard", "soft")


def encode_swap(vae, images: torch.Tensor, mask: torch.Tensor, background: str, mask_edge: str) -> dict:
    """A LATENT in VAE space, samples [1, 16, k+1, H/8, W/8].

    images: [4k+1, H, W, 3] float in 0..1.
    mask: [4k+1 or 1, H, W].
    background: "locked" adds a noise_mask, with which every sampler of ComfyUI puts the source back outside it after
        each step, at the noise of that step; "free" lets everything change and reads no mask.
    mask_edge: one of MASK_EDGES, see ``latent_mask``.

    Raises UserError for what is no video or no mask, for a VAE other than Wan 2.1's, for another number or size of
    frames, and for a mask that does not fit or covers nothing.
    """
    check_wan_vae(vae)
    check_choice(background, "background", SWAP_BACKGROUNDS)
    check_choice(mask_edge, "mask_edge", MASK_EDGES)
    images = checked_pictures(images, "images")
    count = len(images)
    if count % FRAMES_PER_LATENT != 1:
        raise UserError(f"the number of frames must be 4k + 1, such as 81, but is {count}: put Face Swap Prepare "
                        "before this node, it trims them.")
    height, width = images.shape[1:3]
    if height % PIXELS_PER_TOKEN or width % PIXELS_PER_TOKEN:
        raise UserError(f"width and height of the video must be multiples of {PIXELS_PER_TOKEN}, but are "
                        f"{width}x{height}: put Face Swap Prepare before this node, it crops the video.")
    if background == "free":
        return {"samples": _encoded(vae, images)}
    masks = checked_masks(mask, "mask", (count, height, width)).expand(count, -1, -1)
    noise_mask = latent_mask(masks, (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT), mask_edge)
    if not bool(noise_mask.any()):
        raise UserError("the mask covers no latent pixel in any frame, so nothing would be swapped: connect the "
                        "mask of Face Swap Prepare, grow it, or set mask_edge to soft.")
    return {"samples": _encoded(vae, images), "noise_mask": noise_mask}


def _encoded(vae, images: torch.Tensor) -> torch.Tensor:
    """The frames in VAE space, [1, 16, k+1, H/8, W/8].

    ComfyUI's VAE tells no progress while it encodes a video, so its encoder is listened to, which takes the video in
    pieces of one to four frames.
    """
    progress = comfy.utils.ProgressBar(len(images))
    listening = vae.first_stage_model.encoder.register_forward_hook(
        lambda encoder, came, latent: progress.update(came[0].shape[2]))
    try:
        return vae.encode(images[..., :3])
    finally:
        listening.remove()


def latent_mask(mask: torch.Tensor, size: tuple[int, int], edge: str) -> torch.Tensor:
    """The mask on latent pixels, [1, 1, k+1, h, w].

    The first latent frame is the first frame, and each of the others is the next four. The largest of the four values
    counts, because a face in any of them must be denoised. (ComfyUI would interpolate in time as if every latent frame
    held as many frames.) The value of a latent pixel is the share of it that is covered.

    mask: [4k+1, H, W] in 0..1.
    size: height and width of the latent.
    edge: "hard" rounds the share to 0 or 1, "soft" keeps it.
    """
    shares = torch.nn.functional.adaptive_avg_pool2d(largest_in_each(mask).float(), size)
    return ((shares > 0.5).float() if edge == "hard" else shares)[None, None]
