"""What stages hand on about faces.

Shape letters: B batch, N tokens (N_ref identity, N_vid video), H heads, D head dim, C model dim (H * D), r adapter
rank, T/h/w latent frames/height/width. Latents are in *VAE space* (a ComfyUI LATENT) or in *model space* (after
``process_latent_in``); every field says which.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class CroppedFace:
    """What is known of a face in a crop.

    points: left eye, right eye (as the viewer sees them), nose and corners of the mouth, [5, 2] float64 in the crop's
        pixels; None without a face.
    measured: whether a detector found the points; otherwise they were estimated from a box.
    cut_out: whether anything of the photo around the face was removed.
    """

    points: np.ndarray | None
    measured: bool
    cut_out: bool


@dataclass(frozen=True, slots=True)
class FaceCrop:
    """The crops of one or several photos.

    image: [B, S, S, 3] float32 in 0..1, the subject on a plain background; of the photo's size where a preset takes the
        photo as it is.
    rgba: of the size of image, the photo's own pixels with the subject's mask as alpha.
    faces: one for each of the B crops.
    preview: [P, H, W, 3], the photos with what was found and cropped drawn on them.
    verdict: what was found and done, in words.
    """

    image: torch.Tensor
    rgba: torch.Tensor
    faces: tuple[CroppedFace, ...]
    preview: torch.Tensor
    verdict: str


@dataclass(frozen=True, slots=True)
class SwapFrames:
    """A video that is ready for the swap; H and W are multiples of 16.

    frames: [4k+1, H, W, 3] float32 in 0..1.
    mask: [4k+1, H, W] float32 in 0..1.
    report: in how many frames what was found, in words.
    """

    frames: torch.Tensor
    mask: torch.Tensor
    report: str
