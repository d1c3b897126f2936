"""What a CLIP vision model sees in face crops, and what it sees of nobody."""
from __future__ import annotations

import comfy.model_management
import torch

from .checks import check_finite


def hidden_states(clip_vision, image: torch.Tensor) -> torch.Tensor:
    """The last but one hidden states of the photos and then of nobody, [R + 1, L, w] float32 on the CPU.

    Nobody is what CLIP sees in pixels that are 0 after normalisation, the mean colour rather than black (ID-Animator,
    ``face_adapter.py`` at 0170eed).

    clip_vision: from ComfyUI's Load CLIP Vision.
    image: [R, H, W, 3 or 4] in 0..1, face crops.

    Raises UserError for a model that makes NaN of a picture.
    """
    photos = clip_vision.encode_image(image[..., :3])["penultimate_hidden_states"]
    states = torch.cat((photos, _of_zero(clip_vision, photos.device))).float().cpu()
    check_finite(states, "the output of clip_vision")
    return states


def _of_zero(clip_vision, device: torch.device) -> torch.Tensor:
    """What CLIP sees in pixels that are 0 after normalisation, [1, L, w]; no picture of 8 bits has such pixels."""
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    zero = torch.zeros(1, 3, clip_vision.image_size, clip_vision.image_size, device=clip_vision.load_device)
    return clip_vision.model(pixel_values=zero, intermediate_output=-2)[1].to(device)
