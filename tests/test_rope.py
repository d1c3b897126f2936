"""Where the identity tokens stand, and the rotation that follows, against complex numbers."""
import pytest
import torch

import tiny
from standin_core.stand_in.positions import conditional_positions, shared_positions
from standin_core.wan import Wan
from tolerances import assert_close


def test_positions_of_the_paper():
    """t = -1; rows and columns go on where the video's end."""
    positions = conditional_positions((5, 7), (2, 3), -1).reshape(2, 3, 3)
    assert positions.dtype == torch.float32
    assert (positions[..., 0] == -1).all()
    assert positions[:, 0, 1].tolist() == [5, 6]
    assert positions[0, :, 2].tolist() == [7, 8, 9]


def test_no_position_is_shared_with_the_video():
    video = {(t, y, x) for t in range(4) for y in range(5) for x in range(7)}
    identity = {tuple(position) for position in conditional_positions((5, 7), (4, 4), -1)[0].tolist()}
    assert len(identity) == 16
    assert not identity & video


# transformer_options["rope_options"] of core's ScaleROPE -> first (t, y, x) of the identity for a 5 x 7 video
SCALED = {
    "nothing set is the paper": ({}, (-1, 5, 7)),
    "shifted with the video": ({"shift_t": 2.0, "shift_y": 3.0, "shift_x": -1.0}, (1, 8, 6)),
    "one token beyond a stretched video": ({"scale_y": 2.0, "scale_x": 0.5}, (-1, 9, 4)),
}


@pytest.mark.parametrize("name", SCALED)
def test_rope_options_of_comfyui(name):
    options, first = SCALED[name]
    assert tuple(conditional_positions((5, 7), (2, 3), -1, options)[0, 0].tolist()) == first


@pytest.mark.parametrize("options, first", [({}, (0, 0, 0)), ({"shift_t": 2.0, "shift_y": 3.0, "scale_x": 9.0},
                                                              (2, 3, 0))])
def test_shared_positions_begin_where_the_video_does(options, first):
    positions = shared_positions((5, 7), (2, 3), -1, options)
    assert tuple(positions[0, 0].tolist()) == first
    paper = conditional_positions((5, 7), (2, 3), -1)
    assert torch.equal(positions - positions[:, :1], paper - paper[:, :1])


def complex_rotation(x, positions, heads):
    """RoPE as the authors' code has it, in complex128: three axes, theta 10000."""
    size = x.shape[-1] // heads
    axes = (size - 4 * (size // 6), 2 * (size // 6), 2 * (size // 6))
    angles = torch.cat([torch.outer(positions[:, axis].double(), 10000 ** -(torch.arange(0, width, 2).double() / width))
                        for axis, width in enumerate(axes)], dim=1)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (heads, -1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]).flatten(2)


def test_rotation():
    model = Wan(tiny.load().model)
    positions = conditional_positions((30, 52), (4, 8), -1)
    x = tiny.random(1, 32, model.dim)
    rotated = model.blocks[0].rotate(x, model.rotation(positions))
    assert_close(rotated, complex_rotation(x, positions[0], model.heads).float())
