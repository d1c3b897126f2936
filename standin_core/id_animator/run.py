"""The state of one run: the face's keys and values on each device."""
from __future__ import annotations

import torch

from ..guidance import Passes
from ..report import RunReport
from ..runs import Run
from .applied import Identity
from .run_report import IDAnimatorIdentity

KeyValue = tuple[torch.Tensor, torch.Tensor]


class IDAnimatorRun(Run):
    """A ``Run`` whose every pass reads: the positive ones the face of the photos, the others that of nobody."""

    def __init__(self, identity: Identity, steps: int):
        super().__init__(RunReport(steps=steps), Passes("both passes", 1.0))
        self.identity = identity
        self._faces: dict[tuple[torch.device, torch.dtype], list[KeyValue]] = {}

    def reported(self) -> list[IDAnimatorIdentity]:
        """For the report."""
        identity, adapter, controls = self.identity, self.identity.adapter, self.identity.controls
        return [IDAnimatorIdentity(
            adapter_file=adapter.name, adapter_sha256=adapter.sha256, adapter_rank=adapter.rank,
            photos=identity.photos, tokens=identity.faces[0][0].shape[1], places=len(identity.places),
            strength=controls.strength, start_percent=controls.start_percent, end_percent=controls.end_percent,
            lora_strength=identity.lora_strength)]

    def faces(self, x: torch.Tensor, dtype: torch.dtype, options: dict, strength: float) -> list[KeyValue]:
        """Key and value of every cross-attention for one call of the model, [B, n, C]; values are times the strength.

        x: [B, 4, h, w], the call's input.
        dtype: in which the model computes.
        options: ``transformer_options`` of the call.
        """
        with self.lock:
            if (x.device, dtype) not in self._faces:  # copied there once a run
                self._faces[x.device, dtype] = [(key.to(x.device, dtype), value.to(x.device, dtype))
                                                for key, value in self.identity.faces]
            faces = self._faces[x.device, dtype]
        which = (~self.passes.positive(options, len(x))).long().to(x.device)
        return [(key[which], strength * value[which]) for key, value in faces]

    def release(self) -> None:
        self._faces.clear()
