"""From face crops to face tokens, and to the keys and values of every cross-attention."""
from __future__ import annotations

import comfy.model_management
import torch
from torch.nn.functional import linear

from ..contracts import UserError
from .adapter import Adapter
from .resampler import face_tokens


def tokens_of_photos(adapter: Adapter, clip_vision, image: torch.Tensor) -> torch.Tensor:
    """The face tokens of the photos and of nobody, [2, n, c] float32 on the CPU.

    Of several photos the tokens are averaged. Nobody is what CLIP sees in pixels that are 0 after normalisation, the
    mean colour rather than black (ID-Animator, ``face_adapter.py`` at 0170eed).

    clip_vision: ComfyUI's CLIP vision model, ViT-H.
    image: [R, H, W, 3 or 4] in 0..1, face crops.

    Raises UserError for another encoder.
    """
    photos = clip_vision.encode_image(image[..., :3])["penultimate_hidden_states"]
    if photos.shape[-1] != adapter.clip_width:
        raise UserError(f"the CLIP vision model gives features of width {photos.shape[-1]}, {adapter.name} takes "
                        f"{adapter.clip_width}: load the ViT-H with Load CLIP Vision "
                        "(CLIP-ViT-H-14-laion2B-s32B-b79K).")
    hidden = torch.cat((photos, _hidden_states_of_zero(clip_vision, photos.device))).float().cpu()
    tokens = face_tokens(adapter.resampler, adapter.depth, hidden)
    return torch.stack((tokens[:-1].mean(dim=0), tokens[-1]))


def keys_values(adapter: Adapter, tokens: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Key and value of each cross-attention, [2, n, C].

    tokens: [2, n, c] float32 on the CPU.
    """
    return tuple((linear(tokens, place.key.float()), linear(tokens, place.value.float()))
                 for place in adapter.projections)


def _hidden_states_of_zero(clip_vision, device: torch.device) -> torch.Tensor:
    """[1, L, w]: of pixel values that are 0 after normalisation, which no picture of 8 bits gives."""
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    zero = torch.zeros(1, 3, clip_vision.image_size, clip_vision.image_size, device=clip_vision.load_device)
    return clip_vision.model(pixel_values=zero, intermediate_output=-2)[1].to(device)
