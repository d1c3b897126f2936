"""Weights in other forms than plain numbers, as converters of files make them."""
import torch

# layers that a converter of a Wan may quantise; the last is in Concat-ID's AdaLN file alone
LAYERS = ("blocks.", "time_projection.", "time_projection_ref.")


def scaled_fp8(weights, prefix=""):
    """The tensors of a scaled fp8 file, one scale a matrix, and the weights that they stand for."""
    file, values = {f"{prefix}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, dict(weights)
    for key, value in weights.items():
        file[prefix + key] = value
        if key.startswith(LAYERS) and key.endswith(".weight") and value.ndim == 2:
            scale = value.abs().max() / 448
            packed = (value / scale).to(torch.float8_e4m3fn)
            file |= {prefix + key: packed, prefix + key.replace(".weight", ".scale_weight"): scale}
            values[key] = packed.float() * scale
    return file, values


class PackedLinear(torch.nn.Module):
    """A Linear whose weight is packed, as GGUF's are: bytes of another shape, made into a matrix in every call."""

    def __init__(self, linear):
        super().__init__()
        self.weight = torch.nn.Parameter(linear.weight.detach().float().view(torch.uint8), requires_grad=False)
        self.bias = linear.bias
        self.shape = linear.weight.shape

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.data.view(torch.float32).reshape(self.shape), self.bias)


def pack_layers(model):
    """In the blocks of a ModelPatcher's Wan."""
    for block in model.model.diffusion_model.blocks:
        for parent, names in ((block.self_attn, ("q", "k", "v", "o")), (block.ffn, ("0", "2"))):
            for name in names:
                setattr(parent, name, PackedLinear(getattr(parent, name)))
