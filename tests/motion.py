"""AnimateDiff's temporal transformers (v2) on ComfyUI's own attention, put into a U-Net as AnimateDiff-Evolved does.

Only so much of them as a test of their neighbours needs; the golden data says whether they are right.
"""
import torch
from comfy.ldm.modules.attention import CrossAttention, FeedForward
from comfy.ldm.modules.diffusionmodules.openaimodel import SpatialTransformer
from comfy.patcher_extension import PatcherInjection
from torch import nn

HEADS = 8
# a name of diffusers -> numbers of ComfyUI's blocks, one for each temporal transformer in the file's order
INPUTS = {"down_blocks.0": (1, 2), "down_blocks.1": (4, 5), "down_blocks.2": (7, 8), "down_blocks.3": (10, 11)}
OUTPUTS = {"up_blocks.0": (0, 1, 2), "up_blocks.1": (3, 4, 5), "up_blocks.2": (6, 7, 8), "up_blocks.3": (9, 10, 11)}


class AlongTime(CrossAttention):
    """Self-attention over the frames, whose positions are added before."""

    def __init__(self, width: int, positions: int):
        super().__init__(width, heads=HEADS, dim_head=width // HEADS)
        self.pos_encoder = nn.Module()
        self.pos_encoder.register_buffer("pe", torch.zeros(1, positions, width))

    def forward(self, x, **kwargs):
        return super().forward(x + self.pos_encoder.pe[:, :x.shape[1]])


class Block(nn.Module):
    def __init__(self, width: int, positions: int):
        super().__init__()
        self.attention_blocks = nn.ModuleList(AlongTime(width, positions) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.ff = FeedForward(width, glu=True)
        self.ff_norm = nn.LayerNorm(width)

    def forward(self, x):
        for attention, norm in zip(self.attention_blocks, self.norms):
            x = x + attention(norm(x))
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    def __init__(self, width: int, positions: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([Block(width, positions)])

    def forward(self, x, conditions: int):
        """x: [conditions * F, C, h, w]; every place attends over the F frames of its condition."""
        height, width = x.shape[2:]
        # [conditions * F, C, h, w] -> [conditions * h * w, F, C], and back
        frames = self.norm(x).unflatten(0, (conditions, -1)).permute(0, 3, 4, 1, 2).flatten(0, 2)
        for block in self.transformer_blocks:
            seen = self.proj_out(block(self.proj_in(frames)))
        return x + seen.unflatten(0, (conditions, height, width)).permute(0, 3, 4, 1, 2).flatten(0, 1)


def temporal_transformers(weights: dict[str, torch.Tensor]) -> dict[str, TemporalTransformer]:
    """From a motion file, under its names."""
    names = dict.fromkeys(key.partition(".temporal_transformer.")[0] for key in weights)
    found = {}
    for name in names:
        prefix = f"{name}.temporal_transformer."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        positions = own["transformer_blocks.0.attention_blocks.0.pos_encoder.pe"].shape[1]
        found[name] = TemporalTransformer(len(own["norm.weight"]), positions).eval()
        found[name].load_state_dict(own)
    return found


def with_motion(model, weights: dict[str, torch.Tensor]):
    """A clone of the ModelPatcher that samples videos: the frames are the batch."""
    transformers = temporal_transformers(weights)

    def places(unet):
        for blocks, numbers in ((unet.input_blocks, INPUTS), (unet.output_blocks, OUTPUTS)):
            for name, of_name in numbers.items():
                yield from ((blocks[number], f"{name}.motion_modules.{index}") for index, number in enumerate(of_name))
        yield unet.middle_block, "mid_block.motion_modules.0"

    def inject(patcher):
        eject(patcher)  # a clone may have left them
        for block, name in places(patcher.model.diffusion_model):
            attentions = [index for index, layer in enumerate(block) if isinstance(layer, SpatialTransformer)]
            block.insert(attentions[-1] + 1 if attentions else 1, transformers[name])

    def eject(patcher):
        for block, _ in places(patcher.model.diffusion_model):
            for index in [index for index, layer in enumerate(block) if isinstance(layer, TemporalTransformer)]:
                block.pop(index)

    def forward(layer, x, emb, context, transformer_options, *more):
        return layer(x, len(transformer_options["cond_or_uncond"]))

    patched = model.clone()
    patched.set_injections("motion", [PatcherInjection(inject, eject)])
    patched.set_model_forward_timestep_embed_patch((TemporalTransformer, forward))
    return patched
