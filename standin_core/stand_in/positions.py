"""Where the identity tokens stand in the video's RoPE grid, by the name of the strategy.

*conditional*, Stand-In's conditional position mapping (arXiv 2508.07901, and the authors' code where the paper is
silent): the video stands at (t, y, x) from 0; the identity tokens stand one frame before it and diagonally below it, at
t = -1, y = h_vid .. h_vid + h_ref - 1, x = w_vid .. w_vid + w_ref - 1, in token units. No position is shared, so the
model can tell the two apart.

*shared* is what the paper compares it with (table 3): the identity tokens stand where the video's first frame stands.

Both keep their place beside a video that ComfyUI's ``transformer_options["rope_options"]`` scales and shifts.
"""
from __future__ import annotations

import torch

from ..rope import grid_positions


def conditional_positions(video_size: tuple[int, int], identity_size: tuple[int, int], time_offset: float,
                          rope_options: dict | None = None, device: torch.device | None = None) -> torch.Tensor:
    """Positions of the identity tokens, [1, N_ref, 3] float32, as (t, y, x), just outside of the video's grid.

    video_size, identity_size: (h, w) in tokens. time_offset: frames before (negative) the first video frame.
    """
    options = rope_options or {}
    return grid_positions(identity_size, (
        options.get("shift_t", 0.0) + time_offset,
        options.get("shift_y", 0.0) + (video_size[0] - 1) * options.get("scale_y", 1.0) + 1,
        options.get("shift_x", 0.0) + (video_size[1] - 1) * options.get("scale_x", 1.0) + 1), device)


def shared_positions(video_size: tuple[int, int], identity_size: tuple[int, int], time_offset: float,
                     rope_options: dict | None = None, device: torch.device | None = None) -> torch.Tensor:
    """As ``conditional_positions``, from where the video begins; time_offset does not count."""
    options = rope_options or {}
    return grid_positions(identity_size, tuple(options.get(f"shift_{axis}", 0.0) for axis in "tyx"), device)


POSITIONS = {"conditional": conditional_positions, "shared": shared_positions}
