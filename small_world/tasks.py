"""What is measured beside one person in one video: a face swap, two people, a ranking, a long video."""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode

from standin_core.concat_id.training import ADALN
from standin_core.face_swap import COLOR_REGIONS, composite_swap, encode_swap
from standin_core.face_swap.paste import paste
from standin_core.likeness import judge
from standin_core.sampler import SamplerSettings, sample
from standin_core.stand_in.adapter import load_adapter
from standin_core.stand_in.apply import apply_identity_branch

from .cases import Case, clip_of, pairs, real
from .conditions import concat_id_of, with_concat_id
from .kept_readings import KeptReadings
from .measure import kept
from .models import ADAPTER_FILE, FRAMES, LONG, SIDE, concat_id_file
from .photos import chin, points, subject
from .reader import Reader, Readings, features, halves, read
from .render import face_points
from .settings import PAPER, PLAIN
from .world import CFG, SHIFT, STEPS, World

TRUTH, WITHOUT, WITH = "real, through the VAE", PLAIN.measured_as, PAPER.measured_as
SWAP_DENOISE = 0.85  # the authors'
RANKED = 4  # seeds
PARTS_OF_LONG = 4
TWO_REFERENCES = "Concat-ID, two references"


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
        positive, negative = ([[world.contexts[words], {}]] for words in (other.clip.caption, ""))
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
    head = subject(case.person, case.photo_scene)
    head[chin(case.photo_scene):] = False
    reference = np.dstack((case.photo, (255 * head).astype(np.uint8)))
    there = points(case.photo_scene)
    frames, masks = zip(*(paste(frame, reference, there, face_points(other.scene, i / (FRAMES - 1), SIDE))
                          for i, frame in enumerate(source)))
    return tuple(torch.from_numpy(np.stack(each)).float() / 255 for each in (frames, masks))


def side_by_side(world: World, kept_readings: KeptReadings, count: int, folder: Path) -> dict[str, dict]:
    """Two people in one frame: how much of each is kept in their half, and how much of the other one there.

    folder: of the Concat-ID trainings, of which that with two references takes part if it is there.
    """
    adapter, both = load_adapter(ADAPTER_FILE), pairs(count)
    left = torch.zeros(1, SIDE, SIDE)
    left[..., :SIDE // 2] = 1

    def model(pair: tuple[Case, Case], regions: bool):
        patched = world.model
        for case, region in zip(pair, (left, 1 - left)):
            patched = apply_identity_branch(patched, adapter, world.reference(case.photo),
                                            region=region if regions else None)
        return patched

    ways = {TRUTH: lambda pair: world.through_vae(clip_of(*pair).video()),
            "without the branch": lambda pair: world.generate(clip_of(*pair), pair[0].seed),
            "with regions": lambda pair: world.generate(clip_of(*pair), pair[0].seed, model(pair, True)),
            "without regions": lambda pair: world.generate(clip_of(*pair), pair[0].seed, model(pair, False))}
    if trained := concat_id_of(folder, ADALN, people=2):
        ways[TWO_REFERENCES] = lambda pair: world.generate(
            clip_of(*pair), pair[0].seed, with_concat_id(world, *trained, *pair))
    readings = {name: kept_readings.readings(
        f"two people, {name}", functools.partial(in_halves, world.reader, video, both),
        concat_id_file(folder, ADALN, people=2) if name == TWO_REFERENCES else None) for name, video in ways.items()}
    own, others = [case for pair in both for case in pair], [case for pair in both for case in pair[::-1]]
    truth = readings[TRUTH]
    swapped_truth = [reading for i in range(0, len(truth), 2) for reading in (truth[i + 1], truth[i])]
    return {name: {"own": dataclasses.asdict(kept(own, found, truth, together=2)),
                   "the other's": dataclasses.asdict(kept(others, found, swapped_truth, together=2))}
            for name, found in readings.items()}


def ranking(world: World, some: list[Case]) -> dict[str, float]:
    """How much better the render is that Best of N and a batch put first, of RANKED seeds of the same person.

    They see photo and video alone, here by the reader's features; who the person is decides which render is right. The
    same network reads that, so an error of its own can help the ranking.
    """
    adapter, of_first, of_all, best, chance = load_adapter(ADAPTER_FILE), [], [], [], []
    for case in some:
        model, wanted = world.with_identity(case, adapter), features(world.reader, case.photo[None])[0]
        videos = [world.generate(case.clip, seed, model) for seed in range(RANKED)]
        verdicts = [judge(1.0, float((features(world.reader, video) @ wanted).mean()), 0.0) for video in videos]
        right = [read(world.reader, video).agreement(case.person) for video in videos]
        first = right[min(range(RANKED), key=lambda i: verdicts[i].sort_key)]
        of_first.append(first)
        of_all.append(np.mean(right))
        best.append(first == max(right))
        chance.append(np.mean(np.equal(right, max(right))))
    gain = np.subtract(of_first, of_all)
    found = {"agreement of the first": of_first, "of all": of_all, "the first is the best": best, "by chance": chance}
    return {"seeds": RANKED, "gain's standard error": round(float(gain.std(ddof=1) / np.sqrt(len(gain))), 4),
            **{name: round(float(np.mean(values)), 4) for name, values in found.items()}}


def drift(world: World, some: list[Case]) -> dict[str, list[float]]:
    """The agreement along a video of LONG frames, made by core's context windows of FRAMES, in PARTS_OF_LONG parts."""
    adapter = load_adapter(ADAPTER_FILE)

    def sampled(case: Case, model) -> np.ndarray:
        return world.generate(case.clip, case.seed, in_windows(model), LONG)

    ways = {TRUTH: lambda case: world.through_vae(case.clip.video(LONG)),
            WITHOUT: lambda case: sampled(case, world.model),
            WITH: lambda case: sampled(case, world.with_identity(case, adapter))}
    return {name: np.mean([_course(world.reader, video(case), case) for case in some], axis=0).round(4).tolist()
            for name, video in ways.items()}


def _course(reader: Reader, video: np.ndarray, case: Case) -> list[float]:
    right = read(reader, video).traits == case.person.labels
    return [part[:, case.person.visible].mean() for part in np.array_split(right, PARTS_OF_LONG)]


def in_windows(model):
    """The model as core's Wan Context Windows patches it: windows of FRAMES share one of their three latent frames."""
    return WanContextWindowsManualNode.execute(
        model, context_length=FRAMES, context_overlap=FRAMES // 2, context_schedule="standard_static",
        context_stride=1, closed_loop=False, fuse_method="pyramid", freenoise=True).args[0]


def in_halves(reader: Reader, video: Callable, both: list[tuple[Case, Case]]) -> Iterator[Readings]:
    """Left and right of each pair's video."""
    for pair in both:
        yield from (read(reader, half) for half in halves(video(pair)))
