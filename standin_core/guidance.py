"""Which passes of classifier-free guidance read the identity, and guidance in which the identity has its own scale."""
from __future__ import annotations

import uuid

import comfy.samplers
import torch

from .checks import check_choice, check_number
from .errors import UserError

# which pass reads the identity
GUIDANCES = ("both passes", "positive pass", "own scale")
OWN_SCALE = "own scale"


def check_guidance(guidance: str, scale: float) -> None:
    """Raises UserError unless guidance is one of GUIDANCES and the scale is at least 0."""
    check_choice(guidance, "guidance", GUIDANCES)
    check_number(scale, "guidance_scale", 0)


def latents_sampled(options: dict) -> int:
    """How many latents each condition of a model call has: ComfyUI gives every one of them its sigma.

    options: ``transformer_options`` of the call.

    Raises UserError where the call does not come from ComfyUI's sampler.
    """
    if "sigmas" not in options or "uuids" not in options:
        raise UserError("the model was called by something other than ComfyUI's sampler, so the positive prompt cannot "
                        "be identified: sample with ComfyUI's own nodes.")
    return len(options["sigmas"])


class Passes:
    """The passes of one run.

    identity_read: set by the run whenever a call of the model has read an identity; ``guide`` takes it back.
    """

    def __init__(self, guidance: str, scale: float):
        """How the user set them.

        guidance: one of GUIDANCES.
        scale: the identity's guidance scale, used by "own scale" only.
        """
        self.guidance = guidance
        self.scale = scale
        self.identity_read = False
        self._positive: frozenset[uuid.UUID] = frozenset()  # ComfyUI's uuids of the positive conditions
        self._plain_uuids: dict[uuid.UUID, uuid.UUID] = {}

    def check(self, guider) -> None:
        """Raises UserError where the passes are not those of plain classifier-free guidance."""
        if self.guidance == "both passes":
            return
        if type(guider).predict_noise is not comfy.samplers.CFGGuider.predict_noise:
            raise UserError(f"guidance {self.guidance} works only with plain classifier-free guidance, but "
                            f"{type(guider).__name__} makes other passes: sample with KSampler or CFGGuider, or set "
                            "guidance to both passes.")
        if self.guidance == OWN_SCALE and sum(isinstance(each, OwnScale) for each in guider.model_options.get(
                "sampler_pre_cfg_function", ())) > 1:
            raise UserError("two methods on this model use guidance own scale, but only one may: set the other to both "
                            "passes.")
        if self.guidance == OWN_SCALE and guider.cfg == 0:
            raise UserError("guidance own scale works only with a cfg above 0, but cfg is 0: set it to 1 for the "
                            "prompt without guidance.")

    def note_positive(self, guider) -> None:
        """To be called when ComfyUI has prepared the conditions.

        Where a prompt has an area, ComfyUI gives the other prompts a condition with that area, made from a copy of the
        first, uuid and all. It gets one of its own, so that the positive ones can be told.
        """
        self._positive = frozenset(cond["uuid"] for cond in guider.conds.get("positive", ()))
        for name, conds in guider.conds.items():
            for cond in conds if name != "positive" else ():
                if cond["uuid"] in self._positive:
                    cond["uuid"] = uuid.uuid4()

    def positive(self, options: dict, batch: int) -> torch.Tensor:
        """[B] bool, which of the batch of a model call are of a positive condition.

        ComfyUI puts several conditions in one batch, in any order, each with all latents that it samples. A node that
        cuts pictures into tiles puts several such batches one behind the other (ComfyUI-TiledDiffusion does).

        options: ``transformer_options`` of the call.
        batch: B.

        Raises UserError where the batch is not made so.
        """
        latents = latents_sampled(options)
        conditions = torch.tensor([each in self._positive for each in options["uuids"]])
        tiles, left_over = divmod(batch, latents * len(conditions))
        if left_over or not tiles:
            raise UserError(f"the model was called with a batch of {batch}, but ComfyUI's sampler made one of "
                            f"{latents * len(conditions)} ({len(conditions)} prompts with {latents} latents each), so "
                            "the positive prompt cannot be identified: remove the node that splits batches.")
        return conditions.repeat_interleave(latents).repeat(tiles)

    def readers(self, options: dict, batch: int) -> torch.Tensor | None:
        """[B] bool, which of the batch read the identity, or None for all.

        options, batch: as in ``positive``.
        """
        return None if self.guidance == "both passes" else self.positive(options, batch)

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


class OwnScale:
    """ComfyUI's sampler_pre_cfg_function of a model on which a method has guidance "own scale"."""

    def __init__(self, key: str, without: str):
        """The function of one method.

        key: of the method's run in ``transformer_options``.
        without: as in ``Passes.guide``.
        """
        self.key, self.without = key, without

    def __deepcopy__(self, memo):  # for node packs that deep-copy the options of a run
        return self

    def __call__(self, args: dict) -> list[torch.Tensor]:
        run = args["model_options"]["transformer_options"].get(self.key)
        return args["conds_out"] if run is None else run.passes.guide(args, self.without)
