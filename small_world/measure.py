"""Is the person in the photo the person in the video? Asked of people whom no model of the small world has seen.

*Agreement* is the share of a person's visible traits that the reader finds in the frames. *Kept* puts it on a scale: 0
is the agreement of the same videos with the other people, chance; 1 is that of real videos of the same people through
the VAE.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import comfy.sd
import numpy as np
import torch

from standin_core.sampler import SamplerSettings, sample
from standin_core.stand_in.adapter import Adapter
from standin_core.stand_in.apply import apply_identity_branch

from .captions import caption_contexts
from .data import Clip
from .models import FRAMES, SIDE, WAN, WAN_FILE, load, new_vae, to_pixels
from .people import TRAITS, Person, split
from .photos import photo
from .reader import Reader, Readings, load_reader, read
from .scenes import ACTIONS, Pose, Scene, photo_scene, random_pair, random_scene

STEPS, CFG, SHIFT = 12, 2.0, 5.0  # chosen on the validation part
SAMPLED = {"steps": STEPS, "cfg": CFG, "shift": SHIFT}
CALIBRATED_ON = 64  # people
DRAWN = 1  # apart from the draws of the training clips
RESAMPLES = 1000
EXPRESSIONS = {"smiles": "smile", "talks": "mouth", "closes the eyes": "eyes"}  # action -> what it moves
VARIED = ("yaw", "pitch", "roll", "smile")  # of a pose, in photos as in videos; the crop centres the rest
AS_SURE = 0.05  # share of real videos that are read with less confidence than a video that counts as valid


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Somebody who was never trained on, the scene of a photo, and another one that has nothing to do with it."""

    person: Person
    photo_scene: Scene
    scene: Scene
    seed: int

    @property
    def photo(self) -> np.ndarray:
        """[SIDE, SIDE, 3] uint8, on white"""
        return photo(self.person, self.photo_scene)

    @property
    def clip(self) -> Clip:
        return clip_of(self)

    @property
    def busy_photo(self) -> np.ndarray:
        """The same before clutter."""
        return photo(self.person, dataclasses.replace(self.photo_scene, clutter=self.seed))

    def photos(self, count: int) -> list[np.ndarray]:
        """So many of the person, this one first."""
        rng = np.random.default_rng([DRAWN, 7, self.seed])
        return [self.photo, *(photo(self.person, photo_scene(rng)) for _ in range(count - 1))]


def pairs(count: int) -> list[tuple[Case, Case]]:
    """Two who stand side by side and do the same, every action in turn; the seed of the first is the pair's."""
    people, made = split().test, []
    for number in range(count):
        rng = np.random.default_rng([DRAWN, 2, number])
        scenes = random_pair(rng, list(ACTIONS)[number % len(ACTIONS)])
        chosen = rng.choice(len(people), 2, replace=False)
        made.append(tuple(Case(people[i], photo_scene(rng), scene, number) for i, scene in zip(chosen, scenes)))
    return made


def clip_of(*side_by_side: Case) -> Clip:
    return Clip(tuple((case.person, case.scene) for case in side_by_side))


def cases(count: int, seed: int = 0, people: list[Person] | None = None) -> list[Case]:
    """Every action in turn.

    people: who is drawn from; None for those to test on.
    """
    people, made = people or split().test, []
    for number in range(count):
        rng = np.random.default_rng([DRAWN, seed, number])
        person = people[rng.integers(len(people))]
        made.append(Case(person, photo_scene(rng), random_scene(rng, list(ACTIONS)[number % len(ACTIONS)]), number))
    return made


class World:
    """The trained models as ComfyUI loads them, and what is needed to ask them."""

    def __init__(self):
        self._plain_vae = new_vae().eval()
        self.vae = comfy.sd.VAE(sd=self._plain_vae.state_dict())
        self.model = comfy.sd.load_diffusion_model_state_dict(
            load(WAN_FILE), model_options={"dtype": torch.float32}, metadata=WAN.metadata())
        self.contexts = caption_contexts()
        self.reader = load_reader()

    def reference(self, *photos: np.ndarray) -> torch.Tensor:
        """[R, 16, 1, h, w], VAE space"""
        return torch.cat([self.vae.encode(torch.from_numpy(each)[None].float() / 255) for each in photos])

    def generate(self, clip: Clip, seed: int, model=None, frames: int = FRAMES, **settings) -> np.ndarray:
        """[frames, SIDE, SIDE, 3] uint8, of the clip's caption.

        model: None for the base model.
        settings: of the sampler, where they are not SAMPLED.
        """
        positive, negative = ([[self.contexts[words], {}]] for words in (clip.caption, ""))
        settings = SamplerSettings(seed, **SAMPLED | settings)
        latent, _ = sample(model or self.model, None, positive, negative, empty_latent(frames), settings)
        shown = self.vae.decode(latent["samples"])[0]
        return (255 * shown.clamp(0, 1)).round().to(torch.uint8).cpu().numpy()

    def through_vae(self, frames: np.ndarray) -> np.ndarray:
        """[frames, H, W, 3] uint8, there and back."""
        return through_vae(self._plain_vae, frames)

    def with_identity(self, case: Case, adapter: Adapter, **controls):
        return apply_identity_branch(self.model, adapter, self.reference(case.photo), **controls)


def empty_latent(frames: int = FRAMES) -> dict[str, torch.Tensor]:
    """The ComfyUI LATENT of a video of the small world, all zeros."""
    return {"samples": torch.zeros(1, 16, (frames - 1) // 4 + 1, SIDE // 8, SIDE // 8)}


@dataclass(frozen=True, slots=True)
class Score:
    """What the reader says of the videos of some cases.

    agreement, error: the mean over the cases, and its standard error.
    actions, backgrounds: the share of videos that have the caption's.
    motion: how far the pose moves, which is not 0 in a still video, since the reader errs.
    expression: how much more mouth, eyes and smile move in the videos whose caption says so than in the others.
    pose_of_photo: what is copied from the photo though it is not the person, the correlation over the videos of the
        photo's pose with theirs, the mean over VARIED.
    confidence: how sure the reader is of the traits, 0 to 1: it is not sure of what no person looks like.
    """

    agreement: float
    error: float
    actions: float
    backgrounds: float
    motion: float
    expression: float
    pose_of_photo: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Kept:
    """How much of the person, and the range of 95 % of what would come out of other cases."""

    kept: float
    low: float
    high: float


def score(cases: list[Case], readings: list[Readings]) -> Score:
    """One video for each case, and at least as many cases as there are ACTIONS."""
    own, both = np.diag(_agreements(cases, readings)), list(zip(cases, readings))
    return Score(*(round(float(value), 4) for value in (
        own.mean(), own.std(ddof=1) / np.sqrt(len(own)),
        np.mean([reading.action() == case.scene.action for case, reading in both]),
        np.mean([reading.background() == case.scene.background for case, reading in both]),
        np.mean([reading.motion for reading in readings]),
        np.mean([_more(both, action, part) for action, part in EXPRESSIONS.items()]),
        _correlation([[case.photo_scene.pose] for case in cases], readings),
        np.mean([reading.confidence.mean() for reading in readings]))))


def validity(readings: list[Readings], real: list[Readings]) -> float:
    """The share of videos of which the reader is as sure as of all but AS_SURE of the real ones."""
    least = np.quantile([reading.confidence.mean() for reading in real], AS_SURE)
    return round(float(np.mean([reading.confidence.mean() >= least for reading in readings])), 4)


def kept(cases: list[Case], readings: list[Readings], real: list[Readings],
         without: list[Readings] | None = None) -> Kept:
    """How much of the person is kept, or how much more than in other videos of the same cases, case by case.

    real: the readings of the cases' real videos through the VAE, which count as 1.
    without: the readings of the other videos; None for the whole.
    """
    ceilings, found = np.diag(_agreements(cases, real)), _agreements(cases, readings)
    less = None if without is None else _agreements(cases, without)

    def measured(chosen: np.ndarray) -> float:
        value = _kept(found, ceilings, chosen)
        return value if less is None else value - _kept(less, ceilings, chosen)

    rng, everyone = np.random.default_rng(0), np.arange(len(cases))
    drawn = [measured(rng.choice(everyone, len(everyone))) for _ in range(RESAMPLES)]
    return Kept(*(round(float(value), 4) for value in (measured(everyone), *np.quantile(drawn, (0.025, 0.975)))))


def by_trait(cases: list[Case], readings: list[Readings]) -> dict[str, float]:
    """The share of frames in which each trait is read as it is, of the people in whom it can be seen."""
    right = np.stack([reading.traits == case.person.labels for case, reading in zip(cases, readings)])
    seen = np.broadcast_to(np.stack([case.person.visible for case in cases])[:, None], right.shape)
    return {trait: round(float(right[..., i][seen[..., i]].mean()), 4) for i, trait in enumerate(TRAITS)}


def _agreements(cases: list[Case], readings: list[Readings]) -> np.ndarray:
    """[n, n]: of the person of each case with the video of each."""
    return np.array([[reading.agreement(case.person) for reading in readings] for case in cases])


def _kept(agreements: np.ndarray, ceilings: np.ndarray, chosen: np.ndarray) -> float:
    others = agreements[np.ix_(chosen, chosen)][chosen[:, None] != chosen].mean()
    return (np.diag(agreements)[chosen].mean() - others) / (ceilings[chosen].mean() - others)


def _more(both: list[tuple[Case, Readings]], action: str, part: str) -> float:
    """How much more a part of the pose moves where the action is asked for, in units of POSE_SCALE."""
    moves = {asked: [reading.part(part).std() for case, reading in both
                     if (case.scene.action == action) == asked] for asked in (True, False)}
    return np.mean(moves[True]) - np.mean(moves[False])


def _correlation(courses: list[list[Pose]], readings: list[Readings]) -> float:
    """The correlation of the poses' means over time with those that were read; the mean over VARIED."""
    return np.mean([np.corrcoef([np.mean([getattr(pose, part) for pose in course]) for course in courses],
                                [reading.part(part).mean() for reading in readings])[0, 1] for part in VARIED])


def real(case: Case) -> np.ndarray:
    """The case as it is, [FRAMES, SIDE, SIDE, 3] uint8."""
    return case.clip.video()


def still(picture: np.ndarray) -> np.ndarray:
    """A video in which nothing moves, [FRAMES, H, W, 3] uint8."""
    return np.repeat(picture[None], FRAMES, axis=0)


def through_vae(vae: torch.nn.Module, frames: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        decoded = vae.decode(vae.encode(to_pixels(torch.from_numpy(frames)[None])))[0]
    return ((decoded.movedim(0, -1) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).numpy()


def calibrate(reader: Reader | None = None, people: int | None = None) -> dict[str, dict]:
    """What the reader says of real videos of people who were never trained on, and how often it is right on each trait.

    The videos are as rendered, through the VAE, and through the VAE with the first frame alone.

    people: how many; None for CALIBRATED_ON.
    """
    reader, vae, some, found = reader or load_reader(), new_vae().eval(), cases(people or CALIBRATED_ON, seed=1), {}
    for name, shown in {"rendered": real, "through the VAE": lambda case: through_vae(vae, real(case)),
                        "still, through the VAE": lambda case: through_vae(vae, still(real(case)[0]))}.items():
        readings = [read(reader, shown(case)) for case in some]
        found[name] = {**dataclasses.asdict(score(some, readings)), "traits": by_trait(some, readings)}
    return found
