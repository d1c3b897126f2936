"""The resampler: from what CLIP vision sees in a face to the face tokens.

With z [B, L, w] CLIP's hidden states, x = proj_in(z) and l the learned latents, in every layer
``l += to_out(attention(to_q(LN2(l)), to_kv([LN1(x); LN2(l)])))`` and ``l += W3 gelu(W1 LN(l))``; then
``norm_out(proj_out(l))`` (ID-Animator, ``face_adapter.py`` and ``resampler.py`` at 0170eed). x itself never changes.
"""
from __future__ import annotations

import torch
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

HEAD_DIM = 64


def face_tokens(weights: dict[str, torch.Tensor], depth: int, hidden: torch.Tensor) -> torch.Tensor:
    """The face tokens, [B, n, c] float32, on the device of hidden.

    weights: the authors' names without their first word, on the same device.
    depth: how many layers the weights have.
    hidden: [B, L, w] float32, the hidden states of CLIP vision before its last layer.
    """
    def parameter(name: str) -> torch.Tensor:
        return weights[name].float()

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], parameter(f"{name}.weight"), parameter(f"{name}.bias"))

    def project(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, parameter(f"{name}.weight"), parameter(f"{name}.bias"))

    def attend(layer: str, image: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        seen, latents = norm(f"{layer}.norm1", image), norm(f"{layer}.norm2", latents)
        query = linear(latents, parameter(f"{layer}.to_q.weight"))
        key, value = linear(torch.cat((seen, latents), dim=1), parameter(f"{layer}.to_kv.weight")).chunk(2, dim=-1)
        heads = (each.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for each in (query, key, value))
        read = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return linear(read, parameter(f"{layer}.to_out.weight"))

    def feed_forward(layer: str, latents: torch.Tensor) -> torch.Tensor:
        widened = linear(norm(f"{layer}.0", latents), parameter(f"{layer}.1.weight"))
        return linear(gelu(widened), parameter(f"{layer}.3.weight"))

    image = project("proj_in", hidden)
    latents = parameter("latents").expand(len(hidden), -1, -1)
    for index in range(depth):
        latents = latents + attend(f"layers.{index}.0", image, latents)
        latents = latents + feed_forward(f"layers.{index}.1", latents)
    return norm("norm_out", project("proj_out", latents))
