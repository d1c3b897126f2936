"""The one file that touches ComfyUI's Wan model: its parts as methods use them, and a method's self-attention put into
its main blocks for the time of one model call.

Modules are always called, never read for their ``.weight``: ComfyUI casts, streams, dequantises and patches (user
LoRAs) inside the call, and so the identity tokens see the same weights as the video tokens.
"""
from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import comfy.ldm.common_dit
import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from torch.utils.checkpoint import checkpoint

from .attention import (
    Reason,
    Why,
    can_fuse,
    fusion_refusal,
    norm_rope,
)
from .errors import UserError
from .exchange import exchanged, in_own_thread
from .host_attention import OVERRIDE
from .latents import CHANNELS

# calls a function and keeps its arguments alone for the backward pass
RECOMPUTED = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)

WITH_GRADIENTS = attention_pytorch  # SageAttention and FlashAttention as ComfyUI calls them have no backward pass
MODULE = "identity_module"
# the source of WanSelfAttention.forward, the same in ComfyUI 0.16.3 and 0.30.0, which ``_fused_forward`` follows
FORWARD_SHA256 = "e57709825263ea246f18b461a9a6e79185fb9b3696e7fbbd6d4908779182efd4"


def unwrapped(module):
    """The module under a torch.compile wrapper, or the module itself."""
    return getattr(module, "_orig_mod", module)


class Modulation(NamedTuple):
    """The six modulation vectors of a block, each [B or 1, 1, C]."""

    shift: torch.Tensor
    scale: torch.Tensor
    gate: torch.Tensor
    ffn_shift: torch.Tensor
    ffn_scale: torch.Tensor
    ffn_gate: torch.Tensor


class Reading(NamedTuple):
    """One identity as the blocks of one model call read it.

    person: its place among the identities of the model.
    layers: ``layers[i]`` gives K before rotation and V, [R, N_ref, C], for the i-th of the blocks.
    rotation: of the identity tokens.
    bias: on their logits, for each query, [B or 1, N_vid or 1] float32.
    blocks: which blocks read it.
    """

    person: int
    layers: object
    rotation: torch.Tensor
    bias: torch.Tensor
    blocks: range


def modulation(block, time: torch.Tensor) -> Modulation:
    """What a block makes of the timestep.

    time: [B or 1, 6, C], the projected time embedding.
    """
    own = comfy.model_management.cast_to(block.modulation, dtype=time.dtype, device=time.device)
    return Modulation(*(own + time).chunk(6, dim=1))


class Block:
    """One main block of the model, as the steps of a stream of reference tokens through it."""

    def __init__(self, block):
        self.block = unwrapped(block)
        self.attn = self.block.self_attn

    def modulation(self, time: torch.Tensor) -> Modulation:
        """time: as in ``modulation``."""
        return modulation(self.block, time)

    def attention_input(self, tokens: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        return torch.addcmul(modulation.shift, self.block.norm1(tokens), 1 + modulation.scale)

    def query(self, normed: torch.Tensor) -> torch.Tensor:
        """normed, here and below: of ``attention_input``; queries and keys are after RMSNorm and before rotation."""
        return self.attn.norm_q(self.attn.q(normed))

    def key(self, normed: torch.Tensor) -> torch.Tensor:
        return self.attn.norm_k(self.attn.k(normed))

    def value(self, normed: torch.Tensor) -> torch.Tensor:
        return self.attn.v(normed)

    def rotate(self, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """As the function ``rotate``, with the heads of this block."""
        return rotate(self.attn, x, rotation)

    def after_attention(self, tokens: torch.Tensor, attended: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """Output projection, gate and feed-forward; no cross-attention: the identity never reads the prompt."""
        tokens = torch.addcmul(tokens, self.attn.o(attended), modulation.gate)
        hidden = self.block.ffn(torch.addcmul(modulation.ffn_shift, self.block.norm2(tokens), 1 + modulation.ffn_scale))
        return torch.addcmul(tokens, hidden, modulation.ffn_gate)


class Wan:
    """A ComfyUI ``BaseModel`` whose diffusion model is a native Wan.

    attend: what computes the identity's own attention, and all attention of a call of this object. (Not every attention
        that ComfyUI may run has gradients.)

    Raises UserError for any other model.
    """

    def __init__(self, base, attend: Callable = optimized_attention):
        self.model = unwrapped(base.diffusion_model)
        if not isinstance(self.model, comfy.ldm.wan.model.WanModel):
            raise UserError("the model must be a Wan 2.1 or 2.2 video model as ComfyUI loads it natively, but is "
                            f"{type(self.model).__name__}: connect a Wan from Load Diffusion Model.")
        self.base = base
        self.attend = attend
        self.dtype = base.manual_cast_dtype or base.get_dtype()
        self.dim = self.model.dim
        self.ffn_dim = self.model.ffn_dim
        self.heads = self.model.num_heads
        self.blocks = [Block(block) for block in self.model.blocks]

    def __call__(self, noisy: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor,
                 appended: torch.Tensor | None = None) -> torch.Tensor:
        """The velocity, of the shape of noisy.

        noisy: [B, 16, T, h, w]
        timestep: [B], 0 to 1000.
        context: [B, N, text dim]
        appended: [B, 16, M, h, w], frames that go through the model behind the video's.
        """
        return self.model(noisy, timestep, context, time_dim_concat=appended, transformer_options={
            OVERRIDE: lambda _, *args, **kwargs: self.attend(*args, **kwargs)})

    @property
    def from_text_alone(self) -> bool:
        """Whether the model takes nothing but noise and text, unlike VACE's and the image-to-video models."""
        return type(self.model) is comfy.ldm.wan.model.WanModel and self.model.in_dim == CHANNELS

    def free_memory(self, device: torch.device) -> int:
        """Bytes that a run may take there, as ComfyUI's sampler counts them: with DynamicVRAM, weights give way."""
        patcher = self.base.current_patcher  # none while no ModelPatcher has loaded the model
        return (comfy.model_management if patcher is None else patcher).get_free_memory(device)

    def grid(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(t, h, w) in tokens of a latent [B, 16, T, h, w]; sizes that the patch does not divide are padded up."""
        return tuple(-(-size // patch) for size, patch in zip(latent_shape[-3:], self.model.patch_size))

    def count(self, latent_shape: tuple[int, ...]) -> int:
        """Tokens of a latent [B, 16, T, h, w]."""
        return math.prod(self.grid(latent_shape))

    def embed(self, latent: torch.Tensor) -> torch.Tensor:
        """latent: [R, 16, 1, h, w], model space -> tokens [R, N_ref, C].

        Image-to-video models take more channels than a plain latent has; the rest is zero, as for an unused condition.
        """
        latent = comfy.ldm.common_dit.pad_to_patch_size(latent, self.model.patch_size)
        missing = self.model.in_dim - latent.shape[1]
        latent = torch.nn.functional.pad(latent, (0, 0, 0, 0, 0, 0, 0, missing))
        return self.model.patch_embedding(latent.float()).to(latent.dtype).flatten(2).transpose(1, 2)

    def time(self, timestep: float, like: torch.Tensor) -> torch.Tensor:
        """The projected time embedding of one timestep (0..1000), [1, 6, C], in the dtype and on the device of like."""
        embedded = self.time_embedding(torch.full((1,), timestep, device=like.device), like.dtype)
        return self.model.time_projection(embedded).unflatten(1, (6, self.dim))

    def time_embedding(self, timesteps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The embedding before its projection, [B, C] in the dtype.

        timesteps: [B], 0 to 1000.
        """
        return self.model.time_embedding(
            comfy.ldm.wan.model.sinusoidal_embedding_1d(self.model.freq_dim, timesteps).to(dtype))

    def rotation(self, positions: torch.Tensor) -> torch.Tensor:
        """RoPE matrices of positions [1, N, 3], as the model's own embedder makes them, [1, N, 1, D/2, 2, 2]."""
        return self.model.rope_embedder(positions).movedim(1, 2)

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """ComfyUI's attention for q, k, v [B, N, C], without the override of another node: those may be made for the
        token counts of a video, and the identity is built only once."""
        return self.attend(q, k, v, heads=self.heads)

    def fusion_refusal(self, device: torch.device, tokens: int) -> Reason | None:
        """Why queries and keys take RMSNorm and RoPE in two steps, or None.

        tokens: how many the video has.
        """
        for i, block in enumerate(self.blocks):
            other = _other_code(block.attn)
            if other is not None:
                return Reason(Why.OTHER_CODE, (f"{other} of block {i}",))
        return fusion_refusal(_norm_rope_apart, device, self.dtype, self.heads, self.dim // self.heads, tokens)

    @contextlib.contextmanager
    def checkpointed(self) -> Iterator[None]:
        """Within the context, the main blocks keep their input alone and compute the rest again in the backward pass,
        which therefore belongs inside too."""
        modules = [block.block for block in self.blocks]
        foreign = [module.__dict__.get("forward") for module in modules]
        try:
            for module in modules:
                module.__dict__["forward"] = functools.partial(RECOMPUTED, module.forward)
            yield
        finally:
            for module, forward in zip(modules, foreign):
                module.__dict__.pop("forward", None)
                if forward is not None:
                    module.__dict__["forward"] = forward

    @contextlib.contextmanager
    def identity_installed(self, readings: list[Reading], attend: Callable,
                           note_mass: Callable | None = None,
                           split_tokens: int | None = None, fused: bool = False) -> Iterator[Callable[[], int]]:
        """Within the context, the self-attention of the main blocks reads the identities; yields the count of reads.

        attend: ``attend(func, q, k, v, identities, *args, **kwargs)``, where func is what would have computed the
        attention otherwise, identities are (K, V, bias) for each reading, and the rest is as ComfyUI passed it.
        note_mass: called with the number of a block, the persons that it reads and the mass on each ([B, H, N_vid]).
        split_tokens: N_vid of the whole video where the blocks of this process have a part of it, which attend knows; a
            ``forward`` that another node put into the self-attention is then passed over, since attend does its work.
        fused: whether queries and keys take RMSNorm and RoPE in one step, which has no gradients.

        VACE blocks are not touched.
        """
        modules = []
        with contextlib.ExitStack() as stack:
            for i, block in enumerate(self.blocks):
                in_block = [reading for reading in readings if i in reading.blocks]
                identities = tuple((_source(reading.layers, i - reading.blocks.start), reading.rotation, reading.bias)
                                   for reading in in_block)
                if not identities:
                    continue
                note = None
                if note_mass is not None:
                    note = functools.partial(note_mass, i, [reading.person for reading in in_block])
                stack.enter_context(exchanged(
                    block.attn, _with_identity, identities=identities, identity_attend=attend,
                    has_read=False, maps_mass=note is not None, note_mass=note, split_tokens=split_tokens,
                    fused=fused))
                modules.append(block.attn)
            yield lambda: sum(module.has_read for module in modules)


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Within the context, ComfyUI's RoPE has a gradient: it has one only while ComfyUI knows that it trains."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def _source(layers, block: int):
    """K and V of a block themselves where they stay, which torch.compile can see through; else what fetches them."""
    if layers.stay:
        return layers[block]
    return torch.compiler.disable(lambda: layers[block])


def rotate(attn, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Queries or keys with RoPE, [B, N, C].

    attn: the attention module, which has the number of heads.
    x: [B, N, C], after RMSNorm.
    rotation: from ``Wan.rotation``.
    """
    return apply_rope1(x.unflatten(2, (attn.num_heads, attn.head_dim)), rotation).flatten(2)


def _norm_rope_apart(x: torch.Tensor, weight: torch.Tensor, eps: float, rotation: torch.Tensor) -> torch.Tensor:
    """As ``norm_rope``, by what ComfyUI computes the two steps with."""
    normed = torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    return apply_rope1(normed.unflatten(-1, (-1, 2 * rotation.shape[3])), rotation).flatten(2)


def _other_code(attn) -> str | None:
    """What of a self-attention is not as the equations of ``_fused_forward`` have it, or None."""
    own = comfy.ldm.wan.model
    if type(attn) is not own.WanSelfAttention or "forward" in attn.__dict__ or not _forward_known(
            own.WanSelfAttention.forward) or own.apply_rope1 is not apply_rope1:
        return "the self-attention"
    for name in ("norm_q", "norm_k"):
        norm = getattr(attn, name)
        if (getattr(type(norm), "forward", None) is not comfy.ops.disable_weight_init.RMSNorm.forward
                or "forward" in norm.__dict__ or norm._forward_hooks or norm._forward_pre_hooks):
            return name
    return None


@functools.cache
def _forward_known(forward: Callable) -> bool:
    try:
        return hashlib.sha256(inspect.getsource(forward).encode()).hexdigest() == FORWARD_SHA256
    except (OSError, TypeError):  # there is no source
        return False


def _fused_forward(attn, x: torch.Tensor, freqs: torch.Tensor, transformer_options: dict) -> torch.Tensor:
    """ComfyUI's WanSelfAttention.forward, with RMSNorm and RoPE in one step where the kernel takes the matrices."""
    def prepared(linear, norm):
        projected = linear(x)
        if not can_fuse(freqs, *projected.shape[:2]):
            return rotate(attn, norm(projected), freqs)
        # The norm of equal numbers is the weight, as the module casts, streams and patches it. Nothing is rounded: the
        # square of 256 is a power of 4, and eps is too small to change that square in fp32.
        weight = norm(projected.new_full((1, projected.shape[-1]), 256.0))[0]
        return norm_rope(projected, weight, norm.eps, freqs)

    q, k = prepared(attn.q, attn.norm_q), prepared(attn.k, attn.norm_k)
    out = comfy.ldm.wan.model.optimized_attention(q, k, attn.v(x), heads=attn.num_heads,
                                                  transformer_options=transformer_options)
    for patch in transformer_options.get("patches", {}).get("attn1_patch", ()):
        by_head = (each.unflatten(-1, (attn.num_heads, attn.head_dim)) for each in (q, k))
        out = patch({"x": out, **dict(zip("qk", by_head)), "transformer_options": transformer_options})
    return attn.o(out)


@functools.cache  # one class for each class of attention module met; it has no tensors
def _with_identity(base: type) -> type:
    def forward(self, x, *args, **kwargs):
        # forks of Wan's forward may not pass transformer_options on
        options = dict(kwargs.get("transformer_options") or {})
        options[MODULE] = (self, options.get(OVERRIDE))
        options[OVERRIDE] = _override
        kwargs["transformer_options"] = options
        self.has_read = False
        if self.foreign_forward is not None and self.split_tokens is None:
            out = self.foreign_forward(x, *args, **kwargs)
        elif self.fused and base is comfy.ldm.wan.model.WanSelfAttention:
            out = _fused_forward(self, x, *args, **kwargs)
        else:
            out = base.forward(self, x, *args, **kwargs)
        if not self.has_read:
            raise UserError(
                "another node replaced the self-attention of this model by one that does not call ComfyUI's "
                "attention, so the identity cannot be read there: take that node out (for SageAttention, start "
                "ComfyUI with --use-sage-attention or use a node that overrides the attention function instead).")
        return out

    return type(f"{base.__name__}WithIdentity", (base,), {"forward": in_own_thread(base, forward)})


# outside of what torch.compile traces, where the function, another in every call, would be guarded on
@torch.compiler.disable
def _note_mass(module, masses: list[torch.Tensor]) -> None:
    module.note_mass(masses)


def _override(func, q, k, v, *args, **kwargs):
    module, previous = kwargs["transformer_options"][MODULE]
    module.has_read = True
    identities = []
    tokens = q.shape[-2] if module.split_tokens is None else module.split_tokens
    for source, rotation, bias in module.identities:
        if bias.shape[1] not in (1, tokens):
            raise UserError(f"the region has weights for {bias.shape[1]} video tokens and this model has "
                            f"{tokens}, because another node adds tokens to the video: take out that node, or "
                            "the region.")
        identity_k, identity_v = source if isinstance(source, tuple) else source()
        identities.append((rotate(module, identity_k, rotation), identity_v, bias))

    def host(*arguments, **keywords):
        return func(*arguments, **keywords) if previous is None else previous(func, *arguments, **keywords)

    if module.maps_mass:
        kwargs["note_mass"] = functools.partial(_note_mass, module)
    return module.identity_attend(host, q, k, v, identities, *args, **kwargs)
