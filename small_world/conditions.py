"""What users can turn, one thing at a time: every condition generates the same cases."""
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from standin_core.concat_id.apply import apply_concat_id
from standin_core.concat_id.model import ConcatID, load_concat_id
from standin_core.concat_id.training import VARIANTS
from standin_core.controls import kept_tokens, parse_schedule
from standin_core.stand_in.adapter import Adapter, load_adapter
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.parameters import as_adapter, new_adapter

from . import ablations
from .cases import Case
from .latents import TOKEN
from .models import ADAPTER_FILE, SIDE, SNAPSHOTS, WAN, concat_id_file, snapshot_file
from .photos import subject
from .settings import CLOSER, PAPER, PLAIN
from .world import World, empty_latent

STRENGTHS = (0.25, 0.5, 0.75, 1.5, 2.0, 3.0, 4.0)
SCHEDULES = {"low early, high late": "0:0.25, 0.5:1, 1:2", "high early, low late": "0:2, 0.5:1, 1:0.25",
             "rising within the first fifth": "0:0, 0.2:1"}
SPANS = ((0.0, 0.25), (0.0, 0.5), (0.0, 0.75), (0.25, 1.0), (0.5, 1.0), (0.75, 1.0))
BLOCKS = {"first half of the blocks": (0, WAN.blocks // 2 - 1), "second half of the blocks": (WAN.blocks // 2, -1)}
OWN_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
CFGS, STEPS = (1.0, 3.0, 5.0), (4, 8, 25)
PHOTOS = (2, 3, 5, 8)


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to generate a case.

    model_of: the case -> the model that samples it.
    curve: the name of what is turned, which has a plot; "" for a condition that stands alone.
    at: how far it is turned, or the words for it.
    sampled: settings of the sampler that differ.
    weights: the file of the training that is sampled, if it is not the one that ships.
    """

    model_of: Callable[[Case], object]
    curve: str = ""
    at: float | str = ""
    sampled: dict = field(default_factory=dict)
    weights: Path | None = None


def conditions(world: World, trained: Path) -> dict[str, Condition]:
    """Name -> condition; the first two are those that the others are compared with.

    trained: the folder of the other trainings' adapters, of which those that are there take part.
    """
    adapter = load_adapter(ADAPTER_FILE)

    def identity(read: Adapter = adapter, photos: int = 1, **controls):
        return lambda case: apply_identity_branch(world.model, read, world.reference(*case.photos(photos)), **controls)

    def curve(name: str, values, controls_of: Callable[..., dict]) -> dict[str, Condition]:
        return {f"{name} {at}" if isinstance(at, str) else f"{name} {at:g}":
                Condition(identity(**controls_of(at)), name, at) for at in values}

    def without_background(case: Case):
        tokens = subject_tokens(case)
        return world.with_identity(case, adapter, kept_tokens=tokens)

    untrained = as_adapter(new_adapter(WAN.blocks, WAN.dim, adapter.rank))
    return {
        PLAIN.measured_as: Condition(lambda case: world.model),
        PAPER.measured_as: Condition(identity()),
        CLOSER.measured_as: Condition(identity(**CLOSER.controls)),
        "adapter not trained": Condition(identity(untrained)),
        **curve("strength", STRENGTHS, lambda at: {"strength": at}),
        **{f"from {start:.0%} to {end:.0%}": Condition(
            identity(start_percent=start, end_percent=end), "start and end", f"{start:.0%} to {end:.0%}")
           for start, end in SPANS},
        **{name: Condition(identity(schedule=parse_schedule(text)), "schedule", name)
           for name, text in SCHEDULES.items()},
        **{name: Condition(identity(first_block=first, last_block=last), "blocks", name)
           for name, (first, last) in BLOCKS.items()},
        **curve("own scale", OWN_SCALES, lambda at: {"guidance": "own scale", "guidance_scale": at}),
        **curve("photos", PHOTOS, lambda at: {"photos": at}),
        **{f"{name}, normalized": Condition(each.model_of, "photos, normalized", each.at) for name, each in
           curve("photos", PHOTOS, lambda at: {"photos": at, "normalize_references": True}).items()},
        "background tokens dropped": Condition(without_background),
        "photo before clutter": Condition(lambda case: apply_identity_branch(
            world.model, adapter, world.reference(case.busy_photo))),
        "fp8 cache": Condition(identity(cache="fp8")),
        **{f"cfg {at:g}": Condition(identity(), "cfg", at, {"cfg": at}) for at in CFGS},
        **{f"steps {at}": Condition(identity(), "steps", at, {"steps": at}) for at in STEPS},
        **_of_trainings(trained, identity),
        **{f"Concat-ID, {variant}": Condition(
            functools.partial(with_concat_id, world, *found), weights=concat_id_file(trained, variant))
           for variant in VARIANTS if (found := concat_id_of(trained, variant))},
    }


def _of_trainings(folder: Path, identity: Callable) -> dict[str, Condition]:
    found = {}
    for variant in ablations.VARIANTS:
        for seed in ablations.SEEDS:
            file = ablations.compared_file(folder, variant, seed)
            if file.exists():
                found[f"{variant}, seed {seed}"] = Condition(identity(load_adapter(file)), variant, seed,
                                                               weights=file)
    for steps in SNAPSHOTS:
        file = snapshot_file(folder, steps)
        if file.exists():
            found[f"{steps} steps of training"] = Condition(identity(load_adapter(file)), "training", steps,
                                                             weights=file)
    return found


def concat_id_of(folder: Path, variant: str, people: int = 1) -> tuple | None:
    """The ModelPatcher and the ConcatID of a training, or None where there is none."""
    file = concat_id_file(folder, variant, people)
    return load_concat_id(file, {"dtype": torch.float32}) if file.exists() else None


def with_concat_id(world: World, model, concat_id: ConcatID, *cases: Case):
    """The model that reads the photos of the cases, from the left."""
    photos = torch.from_numpy(np.stack([case.photo for case in cases])).float() / 255
    return apply_concat_id(model, concat_id, empty_latent(), world.vae, photos)


def subject_tokens(case: Case) -> torch.Tensor:
    """The tokens of the photo in which the person is, as reference_mask keeps them."""
    mask = torch.from_numpy(subject(case.person, case.photo_scene).astype(np.float32))[None]
    return kept_tokens(mask, (SIDE // TOKEN, SIDE // TOKEN))
