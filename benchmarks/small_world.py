"""Is the person in the photo the person in the video? The small world's answers, for people nobody was trained on.

    .standin/venv/bin/python benchmarks/small_world.py --people 48

Every condition generates the same cases: the same people, photos, captions and seeds. What is measured is explained in
small_world/measure.py. Writes benchmarks/results/small_world_<name>.json and docs/images/small_world.jpg.
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
from environment import import_comfyui

import_comfyui("--cpu", "--use-pytorch-cross-attention")

import numpy as np
import PIL.Image
import torch

from machine import machine
from small_world.ablations import ABLATIONS, ablated, with_ordinary_attention
from small_world.measure import CFG, SHIFT, STEPS, Case, World, calibrate, cases, real, score
from small_world.models import ADAPTER_FILE, FRAMES, SIDE, WAN, adapter_file
from small_world.reader import read
from small_world.render import face_points, picture
from small_world.scenes import photo_scene
from standin_core.controls import kept_tokens
from standin_core.face_swap import COLOR_REGIONS, composite_swap, encode_swap
from standin_core.face_swap.prepare import paste
from standin_core.run import apply_identity_branch
from standin_core.sampler import SamplerSettings, sample
from standin_core.train.weights import as_adapter, new_adapter
from standin_core.weights import load_adapter

RESULTS = Path(__file__).resolve().parent / "results"
IMAGE = PACK / "docs" / "images" / "small_world.jpg"
SHOWN, ZOOM = 6, 2
WHITE = 235
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

    def without_background(case: Case):
        subject = torch.from_numpy((case.photo.min(axis=-1) < WHITE).astype(np.float32))[None]
        return world.with_identity(case, adapter, kept_tokens=kept_tokens(subject, (SIDE // 16, SIDE // 16)))

    return {
        "without the branch": lambda case: world.model,
        "with the branch": identity(),
        "adapter off": lambda case: world.with_identity(case, untrained),
        **{f"strength {strength:g}": identity(strength=strength) for strength in (0.25, 0.5, 2.0, 4.0)},
        **{f"from {start:.0%} to {end:.0%}": identity(start_percent=start, end_percent=end)
           for start, end in ((0.0, 0.25), (0.0, 0.5), (0.25, 1.0), (0.5, 1.0))},
        "3 photos": several(3),
        "3 photos, normalized": several(3, normalize_references=True),
        "background tokens dropped": without_background,
        "fp8 cache": identity(cache="fp8"),
        "positive pass": identity(guidance="positive pass"),
    }


def generated(world: World, some: list[Case]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(condition, the video of each case)"""
    for name, model_of in conditions(world).items():
        yield name, [world.generate(case, model_of(case)) for case in some]
    for ablation in ABLATIONS:
        if not adapter_file(ablation).exists():
            continue
        adapter = load_adapter(adapter_file(ablation))
        with ablated(ablation):
            if ablation == "ordinary attention":
                models = (with_ordinary_attention(world.model, adapter, world.reference(case.photo)) for case in some)
            else:
                models = (world.with_identity(case, adapter) for case in some)
            yield f"{ablation} instead", [world.generate(case, model) for case, model in zip(some, models)]


def swapped(world: World, some: list[Case]) -> dict[str, float]:
    """Face swap with a locked background: every person into the real video of the next. The agreement with who came in
    and with who was there, and how far pixels well outside the mask are from the source, of 255.
    """
    adapter, came, was, apart = load_adapter(ADAPTER_FILE), [], [], []
    for case, other in zip(some, [*some[1:], some[0]]):
        source = real(other)
        reference = np.dstack((case.photo, np.where(case.photo.min(axis=-1) < WHITE, 255, 0).astype(np.uint8)))
        points = face_points(case.photo_scene, 0.0, SIDE)
        pasted, masks = zip(*(paste(frame, reference, points, face_points(other.scene, i / (FRAMES - 1), SIDE))
                              for i, frame in enumerate(source)))
        frames, mask = (torch.from_numpy(np.stack(each)).float() / 255 for each in (pasted, masks))
        latent = encode_swap(world.vae, frames, mask, "locked", "soft")
        positive, negative = ([[world.contexts[words], {}]] for words in (other.scene.caption, ""))
        settings = SamplerSettings(case.seed, STEPS, CFG, shift=SHIFT, denoise=SWAP_DENOISE)
        sampled, _ = sample(world.with_identity(case, adapter), None, positive, negative, latent, settings)
        result = composite_swap(torch.from_numpy(source).float() / 255, world.vae.decode(sampled["samples"])[0], mask,
                                2, 0.0, COLOR_REGIONS[0])
        result = (255 * result).round().to(torch.uint8).numpy()
        reading = read(world.reader, result)
        came.append(reading.agreement(case.person))
        was.append(reading.agreement(other.person))
        outside = torch.nn.functional.max_pool2d(mask[:, None], 9, 1, 4)[:, 0].numpy() == 0
        apart.append(np.abs(result.astype(float) - source)[outside].mean())
    return {name: round(float(np.mean(values)), 4) for name, values in (
        ("agreement_with_who_came", came), ("agreement_with_who_was_there", was), ("background_of_255", apart))}


@torch.inference_mode()
def main(people: int, name: str) -> None:
    world, some = World(), cases(people)
    found, sheets = {**machine(), "people": people, "calibration": calibrate(world.reader)}, {}
    ceiling = found["calibration"]["through the VAE"]["agreement"]
    for what, videos in generated(world, some):
        readings = [read(world.reader, frames) for frames in videos]
        found[what] = dataclasses.asdict(score(some, readings, ceiling))
        sheets[what] = videos[:SHOWN]
        sys.stdout.write(f"{what}: {found[what]}\n")
        sys.stdout.flush()
    found["face swap"] = swapped(world, some)
    (RESULTS / f"small_world_{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = [np.concatenate([case.photo, *(frame for what in ("with the branch", "without the branch")
                                          for frame in sheets[what][i][[0, 4, 8]])], axis=1)
            for i, case in enumerate(some[:SHOWN])]
    sheet = PIL.Image.fromarray(np.concatenate(rows))
    sheet.resize((ZOOM * sheet.width, ZOOM * sheet.height), PIL.Image.Resampling.LANCZOS).save(IMAGE, quality=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=48)
    parser.add_argument("--name", default="cpu")
    options = parser.parse_args()
    main(options.people, options.name)
