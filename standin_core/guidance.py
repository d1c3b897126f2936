"""Which passes of classifier-free guidance read the identity, and guidance in which the identity has its own scale."""
from __future__ import annotations

import uuid

import comfy.samplers
import torch

from .contracts import UserError

# which pass reads the identity
GUIDANCES = ("both passes", "positive pass", "own scale")
OWN_SCALE = "own scale"


class PositiveConditions:
    """Which conditions of a run are positive, by ComfyUI's uuids: their order is the guider's own affair."""

    def __init__(self):
        self._uuids: frozenset[uuid.UUID] = frozenset()

    def note(self, guider) -> None:
        """To be called when ComfyUI has prepared the conditions.

        Where a prompt has an area, ComfyUI gives the other prompts a condition with that area, made from a copy of the
        first, uuid and all. It gets one of its own, so that the positive ones can be told.
        """
        self._uuids = frozenset(cond["uuid"] for cond in guider.conds.get("positive", ()))
        for name, conds in guider.conds.items():
            for cond in conds if name != "positive" else ():
                if cond["uuid"] in self._uuids:
                    cond["uuid"] = uuid.uuid4()

    def among(self, options: dict, batch: int) -> torch.Tensor:
        """[B] bool, which of the batch of a model call are of a positive condition. ComfyUI puts several conditions in
        one batch. options: ``transformer_options`` of the call.
        """
        positive = torch.tensor([each in self._uuids for each in options["uuids"]])
        return positive.repeat_interleave(batch // len(positive))


class Passes:
    """The passes of one run.

    identity_read: set by the run whenever a call of the model has read an identity; ``guide`` takes it back.
    """

    def __init__(self, guidance: str, scale: float):
        """guidance: one of GUIDANCES; scale: of "own scale"."""
        self.guidance = guidance
        self.scale = scale
        self.identity_read = False
        self.positive = PositiveConditions()
        self._plain_uuids: dict[uuid.UUID, uuid.UUID] = {}

    def check(self, guider) -> None:
        """Raises UserError where the passes are not those of plain classifier-free guidance."""
        if self.guidance == "both passes":
            return
        if type(guider).predict_noise is not comfy.samplers.CFGGuider.predict_noise:
            raise UserError(f"guidance is set to {self.guidance}, and {type(guider).__name__} makes passes of its "
                            "own: sample with plain classifier-free guidance, as KSampler and CFGGuider do, "
                            "or set guidance to both passes.")
        if self.guidance == OWN_SCALE and guider.cfg == 0:
            raise UserError("guidance is set to own scale, which needs a cfg above 0: cfg 1 is the prompt without "
                            "guidance.")

    def reads(self, options: dict, batch: int) -> torch.Tensor | None:
        """[B] bool, which of the batch read the identity, or None for all. options: as in PositiveConditions."""
        return None if self.guidance == "both passes" else self.positive.among(options, batch)

    def guide(self, args: dict, without: str) -> list[torch.Tensor]:
        """Guidance "own scale", as ComfyUI's sampler_pre_cfg_function.

        With D_0 of the negative prompt, D_p of the positive and D_i of the positive with the identity, the guided
        result is ``D_0 + cfg (D_p - D_0) + s (D_i - D_p)``: the prompt and the identity have scales of their own, as in
        guidance with two conditions (InstructPix2Pix, arXiv 2211.09800, section 3.2.1). D_p is one more pass. ComfyUI
        goes on with ``D_0 + cfg (D - D_0)``, so it is handed ``D = D_p + s / cfg (D_i - D_p)``.

        without: the key in ``transformer_options`` that tells the method to leave a call as it is.
        """
        if not self.identity_read:  # this step's pass has nothing to scale
            return args["conds_out"]
        self.identity_read = False
        with_identity, *others = args["conds_out"]
        options = args["model_options"].copy()
        options["transformer_options"] = {**options["transformer_options"], without: True}
        # under another name, since EasyCache remembers by it what a condition gave
        plain = [{**cond, "uuid": self._plain_uuids.setdefault(cond["uuid"], uuid.uuid4())}
                 for cond in args["conds"][0]]
        (positive,) = comfy.samplers.calc_cond_batch(args["model"], [plain], args["input"], args["timestep"], options)
        scale = self.scale / args["cond_scale"]
        return [positive + scale * (with_identity - positive), *others]
