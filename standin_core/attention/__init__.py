"""Restricted self-attention: every video token reads the video and the identity, with one softmax over both.

With q, K_vid, V_vid of the video, K_ref, V_ref of the identity and b = log(strength)::

    out = softmax([q K_vid^T, q K_ref^T + b] / sqrt(D)) [V_vid, V_ref]          (b outside the scaling)

``naive`` is this equation in fp32. ``merge`` computes the two halves as attention states and merges them, and
``concatenate`` appends the keys and values and calls the host's attention once (strength 1 only). Both are exact.
"""
from .choice import (
    ATTACHED,
    ATTENTION_PATHS,
    PYTORCH,
    AttentionChoice,
    AttentionInUse,
    choose_attention,
    require_plain,
    restricted_attention,
    split_heads,
)
from .fusion import can_fuse, fusion_refusal, norm_rope
from .ranks import over_ranks
from .reasons import Host, Need, PassedOver, Reason, Why
from .states import FLASH_ATTN, SAGE, SMOOTHED_SAGE

__all__ = ["ATTACHED", "ATTENTION_PATHS", "FLASH_ATTN", "PYTORCH", "SAGE", "SMOOTHED_SAGE", "AttentionChoice",
           "AttentionInUse", "Host", "Need", "PassedOver", "Reason", "Why", "can_fuse", "choose_attention",
           "fusion_refusal", "norm_rope", "over_ranks", "require_plain", "restricted_attention", "split_heads"]
