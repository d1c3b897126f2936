"""The records handed from stage to stage, and the error that every stage speaks in.

Shape letters: B batch, N tokens (N_ref identity, N_vid video), H heads, D head dim, C model dim (H * D), r adapter
rank, T/h/w latent frames/height/width. Latents are in *VAE space* (a ComfyUI LATENT) or in *model space* (after
``process_latent_in``); every field says which.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

# how the video reads the identity: chosen for each run, merged attention states, or appended keys and values
ATTENTION_PATHS = ("auto", "merge", "concatenate")
# where the identity K/V of a run live, see kv_cache
CACHE_MODES = ("auto", "resident", "offloaded", "streaming", "fp8")
MOST_REFERENCES = 16  # each costs as many tokens as the first; more is a video connected by mistake
# which pass of classifier-free guidance reads the identity: both is the paper
GUIDANCES = ("both passes", "positive pass", "own scale")


class StandInError(ValueError):
    """One sentence for the user: what came, what is needed, what to do. Raised before work is lost."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """One low-rank weight, ``x -> up(down(x))``; no alpha and no bias (the official adapters have neither).

    down: [r, C], up: [C, r], both on the CPU in the dtype of the file.
    """

    down: torch.Tensor
    up: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., C] -> [..., C], computed on the device and in the dtype of x."""
        down, up = (weight.to(device=x.device, dtype=x.dtype) for weight in (self.down, self.up))
        return torch.nn.functional.linear(torch.nn.functional.linear(x, down), up)


@dataclass(frozen=True, slots=True)
class BlockAdapter:
    """The low-rank weights that one block adds to Q, K and V of the identity tokens."""

    q: LowRank
    k: LowRank
    v: LowRank


@dataclass(frozen=True, slots=True)
class Adapter:
    """A Stand-In adapter: the low-rank weights of every main block, and the file they came from."""

    name: str
    sha256: str
    rank: int
    dim: int
    blocks: tuple[BlockAdapter, ...]


@dataclass(frozen=True, slots=True)
class CroppedFace:
    """What is known of a face in a crop.

    points: left eye, right eye (of the viewer), nose and corners of the mouth, [5, 2] float64 in the crop's pixels, or
    None without a face; measured: whether a detector found them, rather than a box they were estimated from; cut_out:
    whether anything of the photo around the face was removed.
    """

    points: np.ndarray | None
    measured: bool
    cut_out: bool


@dataclass(frozen=True, slots=True)
class FaceCrop:
    """The crops of one or several photos, and what was done, in words.

    image: [B, S, S, 3] float32 in 0..1, the subject on a plain background; rgba: [B, S, S, 4], the photo's own pixels
    with the subject's mask as alpha; faces: B of them; preview: [P, H, W, 3], the photos with all that drawn on.
    """

    image: torch.Tensor
    rgba: torch.Tensor
    faces: tuple[CroppedFace, ...]
    preview: torch.Tensor
    verdict: str


@dataclass(frozen=True, slots=True)
class SwapFrames:
    """A video ready to be swapped. frames: [4k+1, H, W, 3] and mask: [4k+1, H, W], float32 in 0..1, H and W multiples
    of 16; report: what was found in how many frames, in words.
    """

    frames: torch.Tensor
    mask: torch.Tensor
    report: str


@dataclass(frozen=True, slots=True)
class IdentityBranch:
    """Everything that ApplyIdentityBranch fixes for one person; shared, unchanged, by every clone of the model.

    reference_latent: [R, 16, 1, h, w], model space, R photos of the person, where ComfyUI keeps what nodes hand on.
    strength: weight of the identity in the softmax; 1 is the paper, 0 the base model bit for bit.
    start_percent, end_percent: the part of the sampling, 0 to 1, in which the video reads the identity.
    schedule: (percent, factor) in rising order, a factor on strength, linear in sigma between them; empty for 1.
    first_block, last_block: of the model's main blocks, both included; last_block -1 is the last.
    normalize_references: divide the weight by R, so that more photos do not weigh more.
    kept_tokens: [n] indices of the identity tokens of a reference that are read, of all its h/2 * w/2; None for all.
    region: [F, H, W] in 0..1, pixels of the video; each video token reads the identity by how much of it is covered.
        F is 1, or the number of frames, or of latent frames. None is everywhere.
    time_offset: RoPE frame of the identity tokens; the video starts at 0, the paper takes -1.
    guidance: one of GUIDANCES. guidance_scale: of "own scale".
    attention: one of ATTENTION_PATHS. cache: one of CACHE_MODES.

    Raises StandInError for values that cannot work together.
    """

    adapter: Adapter
    reference_latent: torch.Tensor
    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    schedule: tuple[tuple[float, float], ...] = ()
    first_block: int = 0
    last_block: int = -1
    normalize_references: bool = False
    kept_tokens: torch.Tensor | None = None
    region: torch.Tensor | None = None
    time_offset: int = -1
    guidance: str = "both passes"
    guidance_scale: float = 1.0
    attention: str = "auto"
    cache: str = "auto"

    def __post_init__(self):
        if self.strength < 0:
            raise StandInError(f"strength is {self.strength:g}, at least 0 is needed: 0 is the base model, 1 the "
                               "paper.")
        if self.start_percent >= self.end_percent:
            raise StandInError(f"start_percent is {self.start_percent:g} and end_percent {self.end_percent:g}, so the "
                               "identity would never be read: set end above start.")
        percents = [percent for percent, _ in self.schedule]
        if (percents != sorted(set(percents)) or any(not 0 <= percent <= 1 for percent in percents)
                or any(not 0 <= factor < math.inf for _, factor in self.schedule)):
            raise StandInError(f"the strength schedule is {list(self.schedule)}, needed are rising percents from 0 to "
                               "1 with factors of at least 0, like 0:0, 0.2:1.")
        if len(self.reference_latent) > MOST_REFERENCES:
            raise StandInError(f"{len(self.reference_latent)} reference images came, at most {MOST_REFERENCES} photos "
                               "of a person are read: pick some with ImageFromBatch.")
        for name, known in (("attention", ATTENTION_PATHS), ("cache", CACHE_MODES), ("guidance", GUIDANCES)):
            if getattr(self, name) not in known:
                raise StandInError(f"{name} is {getattr(self, name)}, needed is one of {', '.join(known)}.")
        if self.attention == "concatenate" and self.weighting is not None:
            raise StandInError(f"attention is set to concatenate, which knows one weight for all, and {self.weighting} "
                               "needs another: set attention to auto or merge, or take that setting back.")

    @property
    def controls(self) -> tuple[str, ...]:
        """What of strength's companions is used, in words."""
        used = {"a strength schedule": bool(self.schedule), "a region": self.region is not None,
                "normalize_references": self.normalize_references and len(self.reference_latent) > 1,
                f"guidance {self.guidance}": self.guidance != "both passes"}
        return tuple(words for words, is_used in used.items() if is_used)

    @property
    def weighting(self) -> str | None:
        """What makes a query weigh the identity otherwise than the paper does, in words, or None."""
        words = (*((f"strength {self.strength:g}",) if self.strength not in (0, 1) else ()), *self.controls)
        return " and ".join(words) or None

    def blocks(self, count: int) -> range:
        """Which of so many main blocks read the identity."""
        return range(self.first_block, (count if self.last_block == -1 else min(self.last_block + 1, count)))


@dataclass(frozen=True, slots=True)
class AttentionMap:
    """How much of the video's self-attention went to each identity in one run.

    mass: [P, L, t, h, w] float32 on the CPU, for P identities, L main blocks and the video's tokens: the share of the
    softmax that lies on the identity's tokens, the mean over heads, steps and passes; 0 where a block did not read.
    calls: of the model, that were recorded.
    """

    mass: torch.Tensor
    calls: int


@dataclass(frozen=True, slots=True)
class IdentityReport:
    """One identity of a run. reference_size: (h, w) of the reference latent, of which there are references."""

    adapter_file: str
    adapter_sha256: str
    adapter_rank: int
    reference_size: tuple[int, int]
    references: int
    tokens: int
    strength: float
    start_percent: float
    end_percent: float
    time_offset: int
    blocks: tuple[int, int]
    controls: str


@dataclass(slots=True)
class RunReport:
    """What one run did; filled by the run that owns it, read-only once the run is over.

    video_grid: (t, h, w) in tokens, of the first model call. attention: the path taken, refusals: what was passed over
    and why. cache: where the identity K/V lived. builds, build_ms: of the identity K/V. cache_bytes: the most held at a
    time. reads: by blocks. model_calls, identity_calls: all, and those that read an identity. ms_per_step: wall time
    from the first model call to the end of the run without the build, for each of ``steps`` sampler steps.
    """

    identities: list[IdentityReport]
    model: str = ""
    video_grid: tuple[int, int, int] | None = None
    attention: str = ""
    refusals: list[str] = field(default_factory=list)
    cache: str = ""
    builds: int = 0
    build_ms: float = 0.0
    cache_bytes: int = 0
    reads: int = 0
    model_calls: int = 0
    identity_calls: int = 0
    steps: int = 0
    ms_per_step: float = 0.0
