"""Conditional position mapping: where the identity tokens stand in the video's RoPE grid.

Stand-In, arXiv 2508.07901, and the authors' code where the paper is silent: the video stands at (t, y, x) from 0; the
identity tokens stand one frame before it and diagonally below it, at t = -1, y = h_vid .. h_vid + h_ref - 1,
x = w_vid .. w_vid + w_ref - 1, in token units. No position is shared, so the model can tell the two apart.
"""
from __future__ import annotations

import torch


def identity_positions(video_size: tuple[int, int], identity_size: tuple[int, int], time_offset: float,
                       rope_options: dict | None = None, device: torch.device | None = None) -> torch.Tensor:
    """Positions of the identity tokens, [1, N_ref, 3] float32, as (t, y, x).

    video_size, identity_size: (h, w) in tokens. time_offset: frames before (negative) the first video frame.
    rope_options: ComfyUI's ``transformer_options["rope_options"]``, which scale and shift the video's positions; the
    identity keeps its place just outside the grid that results.
    """
    options = rope_options or {}
    first_t = options.get("shift_t", 0.0) + time_offset
    first_y = options.get("shift_y", 0.0) + (video_size[0] - 1) * options.get("scale_y", 1.0) + 1
    first_x = options.get("shift_x", 0.0) + (video_size[1] - 1) * options.get("scale_x", 1.0) + 1
    height, width = identity_size
    positions = torch.empty(height, width, 3, dtype=torch.float32, device=device)
    positions[..., 0] = first_t
    positions[..., 1] = (torch.arange(height, dtype=torch.float32, device=device) + first_y)[:, None]
    positions[..., 2] = (torch.arange(width, dtype=torch.float32, device=device) + first_x)[None, :]
    return positions.reshape(1, height * width, 3)
