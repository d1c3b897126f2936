"""What is known of a person."""
from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

from ..contracts import FaceCrop
from ..errors import UserError
from ..latents import in_pixels
from ..reference import answer_of
from ..words import counted, shown

SAME_VAE = 0.1  # share of the answer's norm; measured on a tiny VAE: in bf16 0.005 from fp32, random weights 1.0


class Use(enum.StrEnum):
    """The methods that a person is kept for, by their names in files."""

    STAND_IN = "stand_in"
    CONCAT_ID = "concat_id"
    ID_ANIMATOR = "id_animator"


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """A person in R photos.

    made_by: the pack with its version, the preset of the crops for Stand-In, and the detector, in words.
    photos: [R, H, W, 3] float32 in 0..1.
    crops: for each Use the face crops of all photos, as its method was trained to see them.
    latents: VAE space, [R, 16, 1, h, w] float32 on the CPU, for Stand-In of the crops and for Concat-ID of the crops
        fitted into one size of video; without those that no VAE has made.
    vae: the answer of the VAE that made them, see ``reference.answer_of``; None where there are none.
    hidden_states: [R + 1, L, w] float32 on the CPU, see ``clip_vision.hidden_states``; None where no CLIP vision model
        has made them.
    """

    name: str
    made_by: str
    photos: torch.Tensor
    crops: dict[Use, FaceCrop]
    latents: dict[Use, torch.Tensor]
    vae: torch.Tensor | None
    hidden_states: torch.Tensor | None

    @property
    def stand_in(self) -> FaceCrop:
        return self.crops[Use.STAND_IN]

    def in_place_of(self, image: torch.Tensor | None, latent: dict | None, use: Use, vae=None, most: int | None = None,
                    size: tuple[int, int] | None = None) -> tuple[torch.Tensor | None, dict | None]:
        """The person as the two inputs for a reference: a ComfyUI LATENT where it was kept, else the face crops.

        image, latent, vae: what is connected to these inputs.
        most: how many photos are read; None for all.
        size: height and width of the latent that is needed; None for any.

        Raises UserError where an image or a latent is connected too, and where a VAE is connected that is not the one
        which made the latents.
        """
        if image is not None or latent is not None:
            raise UserError("only one of a person and another reference can be read, but both came: disconnect one.")
        kept = self.latents.get(use)
        if kept is not None and size in (None, tuple(kept.shape[-2:])):
            if vae is not None:
                self._check_made_by(vae)
            return None, {"samples": kept[:most]}
        return self.crops[use].image[:most], None

    def _check_made_by(self, vae) -> None:
        assert self.vae is not None  # latents are kept with the answer of their VAE
        if (answer_of(vae) - self.vae).norm() > SAME_VAE * self.vae.norm():
            raise UserError(f"the latents of {shown(self.name)} were made by another VAE than the one that came: "
                            "disconnect the VAE if the model was trained with the other one, else save the person anew "
                            "with this one.")

    def as_text(self) -> str:
        """One fact a line."""
        count, height, width = self.photos.shape[:3]
        lines = [f"{self.name}: {counted(count, 'photo')} of {width}x{height}", f"made by {self.made_by}"]
        stand_in, concat_id = self.latents.get(Use.STAND_IN), self.latents.get(Use.CONCAT_ID)
        lines.append("Stand-In: " + ("needs the VAE" if stand_in is None else "latents kept, needs no VAE"))
        lines.append("Concat-ID: needs the VAE" + (
            "" if concat_id is None else f", except for a video of {in_pixels(concat_id.shape)}"))
        lines.append("ID-Animator: needs " + ("CLIP vision" if self.hidden_states is None else "no CLIP vision"))
        return "\n".join(lines)
