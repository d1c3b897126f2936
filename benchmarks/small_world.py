"""Is the person in the photo the person in the video? The small world's answers, for people nobody was trained on.

    .standin/venv/bin/python benchmarks/small_world.py --people 48

Every condition generates the same cases: the same people, photos, captions and seeds. What is measured is explained in
small_world/measure.py. Writes benchmarks/results/small_world_<name>.json.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import numpy as np
import torch

from machine import machine
from small_world.ablations import ABLATIONS, ablated_adapter
from small_world.measure import CFG, SHIFT, STEPS, Case, World, by_trait, calibrate, cases, kept, real, score, still
from small_world.models import ADAPTER_FILE, FRAMES, SIDE, WAN
from small_world.reader import read
from small_world.render import face_points, picture, subject_mask
from small_world.scenes import photo_scene
from small_world.settings import CLOSER, PAPER, PLAIN
from standin_core.controls import kept_tokens
from standin_core.face_swap import COLOR_REGIONS, composite_swap, encode_swap
from standin_core.face_swap.paste import paste
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.sampler import SamplerSettings, sample
from standin_core.stand_in.parameters import as_adapter, new_adapter
from standin_core.stand_in.adapter import load_adapter

RESULTS = Path(__file__).resolve().parent / "results"
WITHOUT, WITH = PLAIN.measured_as, PAPER.measured_as
SWAP_DENOISE = 0.85  # the authors'


def conditions(world: World) -> dict[str, Callable[[Case], object]]:
    """Name -> the model of a case, of the adapter that was trained as the paper does."""
    adapter = load_adapter(ADAPTER_FILE)
    untrained = as_adapter(new_adapter(WAN.blocks, WAN.dim, adapter.rank))

    def identity(**controls):
        return lambda case: world.with_identity(case, adapter, **controls)

    def several(count: int, **controls):
        def model(case: Case):
            rng = np.random.default_rng([7, case.seed])
            others = [picture(case.person, photo_scene(rng), 0.0, SIDE) for _ in range(count - 1)]
            return apply_identity_branch(world.model, adapter, world.reference(case.photo, *others), **controls)
        return model

    return {
        WITHOUT: lambda case: world.model,
        WITH: identity(),
        "adapter not trained": lambda case: world.with_identity(case, untrained),
        **{f"strength {strength:g}": identity(strength=strength) for strength in (0.25, 0.5, 2.0, 4.0)},
        **{f"from {start:.0%} to {end:.0%}": identity(start_percent=start, end_percent=end)
           for start, end in ((0.0, 0.25), (0.0, 0.5), (0.25, 1.0), (0.5, 1.0))},
        "3 photos": several(3),
        "3 photos, normalized": several(3, normalize_references=True),
        "background tokens dropped": lambda case: world.with_identity(case, adapter, kept_tokens=subject_tokens(case)),
        "fp8 cache": identity(cache="fp8"),
        CLOSER.measured_as: identity(**CLOSER.inputs),
    }


def subject_tokens(case: Case) -> torch.Tensor:
    """The tokens of the photo in which the person is, as reference_mask keeps them."""
    subject = torch.from_numpy(subject_mask(case.person, case.photo_scene, 0.0, SIDE).astype(np.float32))[None]
    return kept_tokens(subject, (SIDE // 16, SIDE // 16))


def generated(world: World, some: list[Case]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(condition, the video of each case)"""
    yield "the photo, still", [world.through_vae(still(case.photo)) for case in some]
    for name, model_of in conditions(world).items():
        yield name, [world.generate(case, model_of(case)) for case in some]
    for ablation in ABLATIONS:
        adapter = ablated_adapter(ablation)
        yield f"{ablation} instead", [world.generate(case, world.with_identity(case, adapter)) for case in some]


def swapped(world: World, some: list[Case]) -> dict[str, dict[str, float]]:
    """Face swap with a locked background, every person into the real video of the next: the agreement with who came in
    and with who was there, and how far what the model gives is, outside the mask, from the source through the VAE, of
    255. Beside it the pasted frames alone, and the same without the branch.
    """
    adapter, found = load_adapter(ADAPTER_FILE), {}
    for case, other in zip(some, [*some[1:], some[0]]):
        source = real(other)
        frames, mask = pasted(case, other, source)
        latent = encode_swap(world.vae, frames, mask, "locked", "soft")
        positive, negative = ([[world.contexts[words], {}]] for words in (other.scene.caption, ""))
        settings = SamplerSettings(case.seed, STEPS, CFG, shift=SHIFT, denoise=SWAP_DENOISE)
        outside = torch.nn.functional.max_pool2d(mask[:, None], 9, 1, 4)[:, 0].numpy() == 0
        unchanged = world.through_vae(source).astype(float)
        shown = {"the paste": frames}
        for name, model in ((WITHOUT, world.model), ("with it", world.with_identity(case, adapter))):
            sampled, _ = sample(model, None, positive, negative, latent, settings)
            shown[name] = world.vae.decode(sampled["samples"])[0]
        for name, given in shown.items():
            whole = composite_swap(torch.from_numpy(source).float() / 255, given, mask, 2, 0.0, COLOR_REGIONS[0])
            reading = read(world.reader, (255 * whole).round().to(torch.uint8).numpy())
            apart = np.abs(255 * given.clamp(0, 1).numpy() - unchanged)[outside].mean()
            found.setdefault(name, []).append((reading.agreement(case.person), reading.agreement(other.person), apart))
    return {name: dict(zip(("with_who_came", "with_who_was_there", "outside_of_255"),
                           np.mean(rows, axis=0).round(4).tolist())) for name, rows in found.items()}


def pasted(case: Case, other: Case, source: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The head of a case's photo on every frame of another's video: frames [F, H, W, 3] and mask [F, H, W] in 0..1."""
    pose = case.photo_scene.pose
    head = subject_mask(case.person, case.photo_scene, 0.0, SIDE)
    head[round((pose.y + 0.5 * pose.size) * SIDE):] = False  # below the chin
    reference = np.dstack((case.photo, (255 * head).astype(np.uint8)))
    points = face_points(case.photo_scene, 0.0, SIDE)
    frames, masks = zip(*(paste(frame, reference, points, face_points(other.scene, i / (FRAMES - 1), SIDE))
                          for i, frame in enumerate(source)))
    return tuple(torch.from_numpy(np.stack(each)).float() / 255 for each in (frames, masks))


@torch.inference_mode()
def main(people: int, name: str) -> None:
    world, some = World(), cases(people)
    truth = [read(world.reader, world.through_vae(real(case))) for case in some]
    found = {**machine(), "people": people, "calibration": calibrate(world.reader),
             "tokens without background": float(np.mean([len(subject_tokens(case)) for case in some])),
             "real, through the VAE": dataclasses.asdict(score(some, truth))}
    readings = {}
    for what, videos in generated(world, some):
        readings[what] = [read(world.reader, frames) for frames in videos]
        more = {other: dataclasses.asdict(kept(some, readings[what], truth, readings[other]))
                for other in (WITHOUT, WITH) if other in readings and other != what}
        found[what] = {**dataclasses.asdict(score(some, readings[what])),
                       **dataclasses.asdict(kept(some, readings[what], truth)), "more_than": more}
        if what in (WITHOUT, WITH):
            found[what]["traits"] = by_trait(some, readings[what])
        sys.stdout.write(f"{what}: {found[what]}\n")
        sys.stdout.flush()
    found["face swap"] = swapped(world, some)
    (RESULTS / f"small_world_{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=48)
    parser.add_argument("--name", default="cpu")
    options = parser.parse_args()
    main(options.people, options.name)
