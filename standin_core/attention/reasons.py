"""Why a path of the attention is passed over, and what needs one that knows weights: values, and here their words."""
from __future__ import annotations

import enum
from dataclasses import dataclass


class Host(enum.Enum):
    """What computes the model's attention without the identity."""

    PYTORCH = "ComfyUI runs PyTorch's attention"
    OVERRIDE = "another node overrides ComfyUI's attention"
    SAGE = "ComfyUI runs SageAttention"
    FLASH = "ComfyUI runs FlashAttention"
    KITCHEN = "ComfyUI runs comfy-kitchen's attention"
    SPARSE = "Model Sparse Attention computes the model's attention"
    OTHER = "ComfyUI runs an attention other than PyTorch's"

    def __str__(self) -> str:
        return self.value


class Why(enum.Enum):
    """Why a path, a source of attention states or the kernel is passed over; braces are for the details."""

    CONCATENATION_SET = "attention is set to concatenate"
    COPIES = "merging copies nothing"
    ONE_WEIGHT = "it knows no weight but 1"
    OTHER_DEVICE = "it runs on {}, not on {}"
    OTHER_HEAD_DIM = "it knows head dims {}, not {}"
    NOT_INSTALLED = "the package {} is not installed"
    NO_TRITON = "Triton is not installed"
    NOT_NVIDIA = "it runs on cards of NVIDIA alone, and this is a PyTorch for AMD's"
    OLD_CARD = "this card has compute capability {}, and it needs {} or newer"
    OLD_TRITON = "Triton {} cannot compile for compute capability {}: install Triton {} or newer"
    NO_OPERATOR = "PyTorch has none for {} and head dim {} on this device"
    FAILED = "it failed on this device ({})"
    WRONG = "it is wrong on this device, by {:.1e} of the output and {:.1e} of the log-sum-exp"
    OFF = "it is wrong on this device, by {:.1e}"
    OTHER_CODE = "{} is not as in ComfyUI 0.16.3 to 0.30.0, which is what the kernel follows"
    NO_STATES = "{}, which gives no log-sum-exp"
    NO_STATES_HERE = "{}, which gives no log-sum-exp here"
    LEFT = "{}, and {} needs one, so the video's self-attention leaves it"
    WITH_THE_VIDEO = "{} computes the identity's keys with the video's, which costs less than a merge beside it"
    SLOWER = "on this card it takes {:.2f} ms where {} takes {:.2f} ms, timed with {}"
    SECOND_CALL = "a second call of {} costs less"
    DENSE = ("it takes no more keys than queries, so blocks that read the identity are computed densely: first_block "
             "and last_block leave the others sparse")
    NONE_ON_DEVICE = "no attention on {} gives a log-sum-exp"


class Need(enum.Enum):
    """What makes a query weigh the identity otherwise than at 1, or asks for a log-sum-exp in another way."""

    STRENGTH = "strength {:g}"
    SCHEDULE = "a strength schedule"
    REGION = "a region"
    NORMALIZED = "normalize_references"
    GUIDANCE = "guidance {}"
    MAP = "the attention map"
    MERGE = "attention set to merge"


@dataclass(frozen=True, slots=True)
class Reason:
    """detail: for the braces of the kind, in their order; a tuple among them is several things."""

    kind: Why | Need
    detail: tuple = ()

    def __str__(self) -> str:
        return self.kind.value.format(*(
            " and ".join(map(str, each)) if isinstance(each, tuple) else each for each in self.detail))


@dataclass(frozen=True, slots=True)
class PassedOver:
    """what: a path, a source of attention states or the kernel, by its name."""

    what: str
    why: Reason

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"
