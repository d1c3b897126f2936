"""The state of one run: from the sampler's first call to its last, or to the exception that ends it."""
from __future__ import annotations

import itertools
import math

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ..attention import AttentionChoice, PassedOver, Reason
from ..controls import region_weights
from ..errors import UserError
from ..guidance import Passes
from ..joint import JointStream
from ..latents import TIME
from ..report import ReportSink
from ..runs import Run
from ..wan import Wan
from .adapter import Adapter
from .applied import Applied, Identity
from .attention_map import AttentionRecorder
from .budget import cache_spec, token_count
from .choices import chosen_attention, chosen_cache
from .kv_cache import IdentityCache, Pinning, hold
from .managed import ManagedAdapter, let_go, manage
from .run_report import StandInIdentity, StandInReport
from .stream import identity_layers, joint_stream

PINNING = Pinning(comfy.model_management.pin_memory, comfy.model_management.unpin_memory)  # which keep within a budget
FUSED = "fused RMSNorm and RoPE"


class StandInRun(Run):
    """A ``Run`` that holds the identity K/V, and knows how the video reads them."""

    report: StandInReport

    def __init__(self, applied: Applied, steps: int, hook_groups: int, whole: tuple[int, int, int],
                 recorder: AttentionRecorder | None = None):
        """A run before its first model call.

        steps: of the sampler.
        hook_groups: how many LoRA-hook groups are among the conditions.
        whole: (t, h, w) of the video in tokens.
        recorder: of where the identity is read, or None.
        """
        super().__init__(StandInReport(steps=steps),
                         Passes(applied.settings.guidance, applied.settings.guidance_scale))
        self.applied = applied
        self.whole = whole
        self.regions: dict[tuple, torch.Tensor] = {}
        self.hook_groups = hook_groups
        self.caches = [IdentityCache(entries=hook_groups) for _ in applied.identities]
        self.modes: dict[torch.device, str] = {}
        self.choices: dict[torch.device, AttentionChoice] = {}
        self.unfused: dict[torch.device, Reason | None] = {}  # why RMSNorm and RoPE are two steps
        self.managed: dict[tuple, ModelPatcher] = {}  # by ``_key``
        self.recorder = recorder

    def note_reads(self, blocks: int) -> None:
        """Count a call of the model in which so many blocks read an identity."""
        self.note_identity_call()
        with self.lock:
            self.report.reads += blocks
            held = sum(cache.device_bytes for cache in self.caches)
            self.report.cache_bytes = max(self.report.cache_bytes, held)

    def attention(self, wan: Wan, device: torch.device, options: dict) -> AttentionChoice:
        """Chosen once for each device, as is whether queries and keys take RMSNorm and RoPE in one step."""
        with self.lock:
            if device not in self.choices:
                tokens = math.prod(self.whole), sum(token_count(each, wan) for each in self.applied.identities
                                                    if each.strength > 0)
                self.choices[device] = chosen_attention(self.applied, wan, device, options, tokens)
                self.unfused[device] = wan.fusion_refusal(device, tokens[0])
                chosen = self.choices.values()
                ways = [f"{choice}{'' if unfused else f', {FUSED}'}"
                        for choice, unfused in zip(chosen, self.unfused.values())]
                self.report.attention = "; ".join(dict.fromkeys(ways))
                passed_over = [each for choice in chosen for each in choice.passed_over]
                passed_over += [PassedOver(FUSED, unfused) for unfused in self.unfused.values() if unfused]
                self.report.refusals = list(map(str, dict.fromkeys(passed_over)))
            return self.choices[device]

    def settle_cache(self, wan: Wan, device: torch.device) -> str:
        """Where the identity K/V live on a device, which the report then says too.

        It is chosen once for each device, when the model is loaded and the free memory is known.
        """
        with self.lock:
            if device not in self.modes:
                specs = [cache_spec(identity, wan, self.hook_groups) for identity in self.applied.identities]
                self.modes[device] = chosen_cache(self.applied.settings.cache, specs, device, wan.free_memory(device))
                self.report.cache = "; ".join(dict.fromkeys(self.modes.values()))
            return self.modes[device]

    def models_to_load(self, devices: list[torch.device]) -> list[ModelPatcher]:
        """What ComfyUI is to load beside the sampled model: adapters whose weights are read in every call."""
        if self.applied.settings.cache == "streaming":
            for device in devices:
                for adapter in {id(each.adapter): each.adapter for each in self.applied.identities}.values():
                    if _key(device, adapter) not in self.managed:  # a run may prepare its sampling twice
                        self.managed[_key(device, adapter)] = manage(adapter, device)
        return list(self.managed.values())

    def adapter(self, identity: Identity, device: torch.device) -> Adapter | ManagedAdapter:
        """The adapter where ComfyUI has loaded it to, else its tensors, which are copied as they are read."""
        managed = self.managed.get(_key(device, identity.adapter))
        return identity.adapter if managed is None else managed.model

    def layers(self, index: int, base, wan: Wan, device: torch.device):
        """K (before rotation) and V of every block for one identity, from the cache or built now."""
        hooks = getattr(base.current_patcher, "current_hooks", None)
        strengths = None if hooks is None else tuple((id(hook), round(hook.strength, 6)) for hook in hooks.hooks)
        identity, mode = self.applied.identities[index], self.settle_cache(wan, device)
        blocks = identity.blocks(len(wan.blocks))

        def build():
            latent = identity.reference_latent.to(device=device, dtype=wan.dtype)
            layers = identity_layers(wan, latent, self.adapter(identity, device), identity.kept_tokens)
            return itertools.islice(layers, blocks.start, blocks.stop)

        def synchronize():
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return self.caches[index].layers((device, wan.dtype, id(wan.model)), strengths,
                                         lambda: hold(mode, build, len(blocks), device, wan.heads, PINNING),
                                         synchronize)

    def joint_stream(self, identity: Identity, wan: Wan, batch: int, rotation: torch.Tensor) -> JointStream:
        """The identity stream of one call of the model, for an adapter of ordinary attention.

        batch: how many videos the call has.
        rotation: of the identity tokens.
        """
        self.settle_cache(wan, rotation.device)  # "streaming", for the report: there is nothing to keep
        latent = identity.reference_latent.to(device=rotation.device, dtype=wan.dtype).expand(batch, -1, -1, -1, -1)
        adapter = self.adapter(identity, rotation.device)
        return joint_stream(wan, latent, adapter, rotation, identity.kept_tokens)

    def region(self, index: int, grid: tuple[int, int, int], device: torch.device,
               window=None) -> torch.Tensor | None:
        """The weights of one identity's region, pooled once.

        window: as in ``check_place``.
        """
        region = self.applied.identities[index].region
        if region is None:
            return None
        self.check_place(grid, window, "a region")
        key = index, device
        with self.lock:
            if key not in self.regions:
                self.regions[key] = region_weights(region, self.whole).to(device)
            weights = self.regions[key]
        if window is None:
            return weights
        # the window knows which frames it has, the one before its first among them (causal_window_fix)
        return window.get_tensor(weights.unflatten(0, (self.whole[0], -1)), dim=0).flatten()

    def check_place(self, grid: tuple[int, int, int], window, what: str) -> None:
        """Raises UserError where it is not known which part of the picture a model call sees.

        window: ComfyUI's IndexListContextWindow where it sees some of the frames, else None.
        """
        if window is not None and window.dim != TIME:
            raise UserError(f"{what} cannot follow context windows along height or width: set their dim to {TIME}, "
                            f"or take out {what}.")
        seen = grid if window is None else (window.total_frames, *grid[1:])
        if seen != self.whole:
            raise UserError("the model sees a part of the picture, as it does for a prompt with an area, but "
                            f"{what} would not lie where it should: take out the area, or {what}.")

    def reported(self, wan: Wan) -> list[StandInIdentity]:
        """For the report."""
        return [_reported(identity, self.applied, wan) for identity in self.applied.identities]

    def release(self) -> None:
        if "streaming" not in self.modes.values():
            self.report.builds = sum(cache.builds for cache in self.caches)
        self.once_ms = self.report.build_ms = sum(cache.build_ms for cache in self.caches)
        for cache in self.caches:
            cache.clear()
        self.regions.clear()
        for managed in self.managed.values():
            let_go(managed)
        self.managed.clear()

    def close(self, finished: bool, sink: ReportSink | None) -> None:
        """Hand over the attention map too."""
        super().close(finished, sink)
        recorded = None if self.recorder is None or not finished else self.recorder.map()
        if sink is not None and recorded is not None:
            sink.maps.append(recorded)


def _key(device: torch.device, adapter: Adapter) -> tuple:
    """What tells an adapter on one device from others; a tensor says mps:0 where ComfyUI says mps."""
    return device.type, device.index or 0, id(adapter)


def _reported(identity: Identity, applied: Applied, wan: Wan) -> StandInIdentity:
    references, _, _, height, width = identity.reference_latent.shape
    blocks = identity.blocks(len(wan.blocks))
    return StandInIdentity(
        adapter_file=identity.adapter.name, adapter_sha256=identity.adapter.sha256, adapter_rank=identity.adapter.rank,
        reference_size=(height, width), references=references,
        tokens=token_count(identity, wan), strength=identity.strength,
        start_percent=identity.start_percent, end_percent=identity.end_percent, time_offset=identity.time_offset,
        blocks=(blocks[0], blocks[-1]), controls=", ".join(map(str, (*identity.controls, *applied.settings.needs))))
