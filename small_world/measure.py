"""Is the person in the photo the person in the video? Asked of people whom no model of the small world has seen.

*Agreement* is the share of a person's visible traits that the reader finds in the frames. *Kept* puts it on a scale: 0
is the agreement of the same videos with other people, chance; 1 is that of real renders of the person through the VAE.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import comfy.sd
import numpy as np
import torch

from standin_core.contracts import Adapter
from standin_core.run import apply_identity_branch
from standin_core.sampler import SamplerSettings, sample

from .captions import caption_contexts
from .models import FRAMES, SIDE, WAN, WAN_FILE, load, new_vae, to_pixels
from .people import TRAITS, Person, split
from .reader import Reader, Readings, load_reader, read
from .render import picture, video
from .scenes import ACTIONS, Pose, Scene, photo_scene, random_scene

STEPS, CFG, SHIFT = 12, 3.0, 3.0
CALIBRATED_ON = 64  # people
VARIED = ("yaw", "pitch", "roll", "x", "y", "size", "smile")  # of a pose, in photos as in videos


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Somebody who was never trained on, the scene of a photo, and another one that has nothing to do with it."""

    person: Person
    photo_scene: Scene
    scene: Scene
    seed: int

    @property
    def photo(self) -> np.ndarray:
        """[SIDE, SIDE, 3] uint8"""
        return picture(self.person, self.photo_scene, 0.0, SIDE)


def cases(count: int, seed: int = 0) -> list[Case]:
    """Every action in turn."""
    _, people = split()
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        person = people[rng.integers(len(people))]
        made.append(Case(person, photo_scene(rng), random_scene(rng, list(ACTIONS)[number % len(ACTIONS)]), number))
    return made


class World:
    """The trained models as ComfyUI loads them, and what is needed to ask them."""

    def __init__(self):
        self.vae = comfy.sd.VAE(sd=new_vae().state_dict())
        self.model = comfy.sd.load_diffusion_model_state_dict(
            load(WAN_FILE), model_options={"dtype": torch.float32}, metadata=WAN.metadata())
        self.contexts = caption_contexts()
        self.reader = load_reader()

    def reference(self, *photos: np.ndarray) -> torch.Tensor:
        """[R, 16, 1, h, w], VAE space"""
        return torch.cat([self.vae.encode(torch.from_numpy(photo)[None].float() / 255) for photo in photos])

    def generate(self, case: Case, model=None, frames: int = FRAMES, side: int = SIDE) -> np.ndarray:
        """[frames, side, side, 3] uint8, of the case's caption and seed; model: None for the base model."""
        positive, negative = ([[self.contexts[words], {}]] for words in (case.scene.caption, ""))
        empty = {"samples": torch.zeros(1, 16, (frames - 1) // 4 + 1, side // 8, side // 8)}
        settings = SamplerSettings(case.seed, STEPS, CFG, shift=SHIFT)
        latent, _ = sample(model or self.model, None, positive, negative, empty, settings)
        shown = self.vae.decode(latent["samples"])[0]
        return (255 * shown.clamp(0, 1)).round().to(torch.uint8).cpu().numpy()

    def with_identity(self, case: Case, adapter: Adapter, **controls):
        return apply_identity_branch(self.model, adapter, self.reference(case.photo), **controls)


@dataclass(frozen=True, slots=True)
class Score:
    """Of some videos. agreement, with its standard error; of_others, kept: see above. actions, backgrounds: the share
    of videos that have the caption's; motion: how far the pose moves.

    What is copied from the photo though it is not the person: pose_of_photo, the correlation over the videos of the
    photo's pose with theirs, the mean over VARIED; smile_asked, smile_unasked: how far the smile rises in videos whose
    caption says "smiles", 1.4 in the truth, and in the others, 0. pose_of_scene: the same correlation with the case's
    scene, which says how well poses can be read where the video is of that scene.
    """

    agreement: float
    error: float
    of_others: float
    kept: float
    actions: float
    backgrounds: float
    motion: float
    pose_of_photo: float
    pose_of_scene: float
    smile_asked: float
    smile_unasked: float


def score(cases: list[Case], readings: list[Readings], ceiling: float) -> Score:
    """ceiling: the agreement of real renders through the VAE."""
    own = np.array([reading.agreement(case.person) for case, reading in zip(cases, readings)])
    others = np.mean([reading.agreement(case.person) for i, case in enumerate(cases)
                      for j, reading in enumerate(readings) if i != j])
    both = list(zip(cases, readings))
    rises = np.array([reading.part("smile")[-1] - reading.part("smile")[0] for reading in readings])
    asked = np.array([case.scene.action == "smiles" for case in cases])
    return Score(*(round(float(value), 4) for value in (
        own.mean(), own.std(ddof=1) / np.sqrt(len(own)), others, (own.mean() - others) / (ceiling - others),
        np.mean([reading.action() == case.scene.action for case, reading in both]),
        np.mean([reading.background() == case.scene.background for case, reading in both]),
        np.mean([reading.motion for reading in readings]),
        _correlation([[case.photo_scene.pose] for case in cases], readings),
        _correlation([[case.scene.at(t) for t in np.linspace(0, 1, FRAMES)] for case in cases], readings),
        rises[asked].mean(), rises[~asked].mean())))


def _correlation(courses: list[list[Pose]], readings: list[Readings]) -> float:
    """Of poses, their means over time, with those that were read; the mean over VARIED."""
    return np.mean([np.corrcoef([np.mean([getattr(pose, part) for pose in course]) for course in courses],
                                [reading.part(part).mean() for reading in readings])[0, 1] for part in VARIED])


def real(case: Case) -> np.ndarray:
    """The case as it is, [FRAMES, SIDE, SIDE, 3] uint8."""
    return video(case.person, case.scene, FRAMES, SIDE)


def through_vae(vae: torch.nn.Module, frames: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        decoded = vae.decode(vae.encode(to_pixels(torch.from_numpy(frames)[None])))[0]
    return ((decoded.movedim(0, -1) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).numpy()


def calibrate(reader: Reader | None = None) -> dict:
    """How often the reader is right on real videos of people nobody was trained on, as rendered and through the VAE: of
    all traits, of each, and of actions."""
    reader, vae = reader or load_reader(), new_vae().eval()
    some, found = cases(CALIBRATED_ON, seed=1), {}
    for name, shown in (("rendered", real), ("through the VAE", lambda case: through_vae(vae, real(case)))):
        readings = [read(reader, shown(case)) for case in some]
        right = np.stack([reading.traits == case.person.labels for case, reading in zip(some, readings)])
        seen = np.broadcast_to(np.stack([case.person.visible for case in some])[:, None], right.shape)
        found[name] = {**dataclasses.asdict(score(some, readings, 1.0)),
                       "traits": {trait: round(float(right[..., i][seen[..., i]].mean()), 4)
                                  for i, trait in enumerate(TRAITS)}}
    return found
