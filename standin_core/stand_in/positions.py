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


def grid_positions(size: tuple[int, int], first: tuple[float, float, float],
                   device: torch.device | None = None) -> torch.Tensor:
    """Positions of h * w tokens, [1, h * w, 3] float32, as (t, y, x).

    size: (h, w)
    first: the position of the first token.
    """
    height, width = size
    positions = torch.empty(height, width, 3, dtype=torch.float32, device=device)
    positions[..., 0] = first[0]
    positions[..., 1] = (torch.arange(height, dtype=torch.float32, device=device) + first[1])[:, None]
    positions[..., 2] = (torch.arange(width, dtype=torch.float32, device=device) + first[2])[None, :]
    return positions.reshape(1, height * width, 3)


def conditional_positions(video_size: tuple[int, int], identity_size: tuple[int, int], time_offset: float,
                          rope_options: dict | None = None, device: torch.device | None = None) -> torch.Tensor:
    """Positions of the identity tokens, [1, N_ref, 3] float32, as (t, y, x), just outside of the video's grid.

    video_size, identity_size: (h, w) in tokens.
    time_offset: frames before the first video frame, as a negative number.
    rope_options: ComfyUI's, of the video.
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
