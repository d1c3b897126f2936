"""Where the tokens of a picture stand in RoPE's grid."""
from __future__ import annotations

import torch


def grid_positions(size: tuple[int, int], first: tuple[float, float, float], device: torch.device | None = None,
                   step: tuple[float, float] = (1.0, 1.0)) -> torch.Tensor:
    """Positions of h * w tokens, [1, h * w, 3] float32, as (t, y, x).

    size: (h, w)
    first: of the first token.
    step: in y and x, from one token to the next.
    """
    height, width = size
    positions = torch.empty(height, width, 3, dtype=torch.float32, device=device)
    positions[..., 0] = first[0]
    positions[..., 1] = (torch.arange(height, dtype=torch.float32, device=device) * step[0] + first[1])[:, None]
    positions[..., 2] = (torch.arange(width, dtype=torch.float32, device=device) * step[1] + first[2])[None, :]
    return positions.reshape(1, height * width, 3)
