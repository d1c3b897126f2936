"""The state of one run: from the sampler's first call to its last, or to the exception that ends it."""
from __future__ import annotations

import torch

from ..guidance import PositiveConditions
from ..report import ReportedRun, ReportSink, RunReport
from .run_report import ToldIdentity
from .settings import Identity


class Run(ReportedRun):
    """What the runs of an identity hold: its keys and values on each device, and which conditions are positive."""

    def __init__(self, identity: Identity, steps: int):
        super().__init__("ID-Animator", RunReport(steps=steps))
        self.identity = identity
        self.positive = PositiveConditions()
        self.faces: dict[tuple[torch.device, torch.dtype], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def model_called(self, base, grid: tuple[int, int, int], strength: float) -> None:
        """grid: frames or pictures, and their height and width in latent pixels. strength: in this call."""
        with self.lock:
            if self.first_call(type(base.model_config).__name__, grid):
                self.report.identities = [_told(self.identity)]
            self.report.identity_calls += strength > 0

    def keys_values(self, device: torch.device, dtype: torch.dtype, positive: torch.Tensor,
                    strength: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of every cross-attention for a model call, [B, n, C], the value times the strength. positive: [B] bool."""
        with self.lock:
            if (device, dtype) not in self.faces:
                self.faces[device, dtype] = [(key.to(device, dtype), value.to(device, dtype))
                                             for key, value in self.identity.faces]
            faces = self.faces[device, dtype]
        which = (~positive).long().to(device)
        return [(key[which], strength * value[which]) for key, value in faces]

    def close(self, finished: bool, sink: ReportSink | None) -> None:
        self.faces.clear()
        super().close(finished, sink)


def _told(identity: Identity) -> ToldIdentity:
    adapter, controls = identity.adapter, identity.controls
    return ToldIdentity(
        adapter_file=adapter.name, adapter_sha256=adapter.sha256, adapter_rank=adapter.rank, photos=identity.photos,
        tokens=identity.faces[0][0].shape[1], places=len(identity.places), strength=controls.strength,
        start_percent=controls.start_percent, end_percent=controls.end_percent, lora_strength=identity.lora_strength)
