"""The bytes of a run, known before it starts."""
from __future__ import annotations

from ..wan import Wan
from .applied import Applied, Identity
from .choices import chosen_attention
from .kv_cache import IdentityCacheSpec


def extra_bytes(model, applied: Applied, noise_shape: tuple[int, ...], hook_groups: int, options: dict) -> int:
    """The bytes that a run needs on one device beside the plain model: the identity K/V, and what the attention holds.

    The batch counts twice, as in ComfyUI's own estimate: positive and negative go through the model together.

    model: a ModelPatcher.
    noise_shape: [B, 16, T, h, w]
    hook_groups: how many LoRA-hook groups are among the conditions.
    options: ``transformer_options`` of the run.
    """
    read = [identity for identity in applied.identities if identity.strength > 0]
    if not read:
        return 0
    wan = Wan(model.model)
    specs = [cache_spec(identity, wan, hook_groups) for identity in read]
    tokens = wan.count(noise_shape), sum(spec.tokens for spec in specs)
    choice = chosen_attention(Applied(tuple(read), applied.settings), wan, model.load_device, options, tokens)
    held = sum(spec.device_bytes(applied.settings.cache) for spec in specs)
    return held + choice.working_bytes(2 * noise_shape[0], *tokens, wan.heads, wan.dim // wan.heads, wan.dtype.itemsize)


def cache_spec(identity: Identity, wan: Wan, hook_groups: int) -> IdentityCacheSpec:
    blocks = len(identity.blocks(len(wan.blocks)))
    return IdentityCacheSpec(blocks, token_count(identity, wan), wan.dim, wan.heads, wan.dtype, hook_groups)


def token_count(identity: Identity, wan: Wan) -> int:
    """How many identity tokens all photos of a person have together."""
    kept = identity.kept_tokens
    return len(identity.reference_latent) * (wan.count(identity.reference_latent.shape) if kept is None else len(kept))
