"""The bytes of a run, known before it starts."""
from __future__ import annotations

from ..wan import Wan
from .choices import chosen_attention
from .kv_cache import IdentityCacheSpec
from .settings import Applied, Identity


def extra_bytes(model, applied: Applied, noise_shape: tuple[int, ...], hook_groups: int, options: dict) -> int:
    """What a run needs on one device beside the plain model: the identity K/V, and what the attention path holds.

    Twice the batch, as ComfyUI's own estimate has it: positive and negative go through the model together.

    model: a ModelPatcher; noise_shape: [B, 16, T, h, w]; hook_groups: LoRA-hook groups among the conditions; options:
    ``transformer_options`` of the run.
    """
    read = [identity for identity in applied.identities if identity.strength > 0]
    if not read:
        return 0
    wan = Wan(model.model)
    specs = [cache_spec(identity, wan, hook_groups) for identity in read]
    choice = chosen_attention(Applied(tuple(read), applied.settings), wan, model.load_device, options)
    held = sum(spec.device_bytes(applied.settings.cache) for spec in specs)
    return held + choice.working_bytes(2 * noise_shape[0], wan.count(noise_shape),
                                       sum(spec.tokens for spec in specs), wan.heads, wan.dim // wan.heads,
                                       wan.dtype.itemsize)


def cache_spec(identity: Identity, wan: Wan, hook_groups: int) -> IdentityCacheSpec:
    blocks = len(identity.blocks(len(wan.blocks)))
    return IdentityCacheSpec(blocks, token_count(identity, wan), wan.dim, wan.heads, wan.dtype, hook_groups)


def token_count(identity: Identity, wan: Wan) -> int:
    """How many identity tokens all references have together."""
    kept = identity.kept_tokens
    return len(identity.reference_latent) * (wan.count(identity.reference_latent.shape) if kept is None else len(kept))
