"""Train the reader of the small world on renders: sharp, blurred, and as they come out of the VAE.

At the end it says how often the reader is right on people whom it never saw.

    .standin/venv/bin/python small_world/train_reader.py --minutes 30     # goes on where it was stopped
"""
from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu")

import cv2
import numpy as np
import torch

from small_world.data import Clip, random_clip, training_clip
from small_world.measure import calibrate
from small_world.models import FRAMES, WEIGHTS, new_vae, save
from small_world.people import Person, split
from small_world.photos import photo
from small_world.photos import pose as photo_pose
from small_world.reader import POSE, POSE_SCALE, READER_FILE, Reader, framed, halves
from small_world.scenes import Pose, photo_scene
from small_world.training import train
from small_world.world import through_vae

BATCH, LEARNING_RATE = 48, 2e-3
PHOTO_SHARE, BUSY, BLURRED, LARGEST_BLUR, NOISE = 0.15, 0.3, 0.5, 1.2, 6.0
DECODED, DECODED_SHARE = 600, 0.5  # clips; share of the pictures of a batch
POSE_WEIGHT = 6.0

Seen = tuple[np.ndarray, Person, Pose]  # [H, W, 3], and who it shows how


def decoded_clips(count: int) -> list[np.ndarray]:
    """The first training clips through the VAE, each [FRAMES, SIDE, SIDE, 3] uint8."""
    vae = new_vae().eval()
    return [through_vae(vae, decoded_clip(number).video()) for number in range(count)]


def decoded_clip(number: int) -> Clip:
    """Every tenth has two people."""
    return training_clip(number, 1 if number % 10 else 2)[0]


def seen(people, decoded: list[np.ndarray], rng: np.random.Generator) -> Seen:
    """One picture of one person, who is half of it where there are two."""
    if rng.random() < PHOTO_SHARE:
        person, scene = people[rng.integers(len(people))], photo_scene(rng, bool(rng.random() < BUSY))
        return photo(person, scene), person, photo_pose(scene)
    frame = int(rng.integers(FRAMES))
    if rng.random() < DECODED_SHARE:
        number = int(rng.integers(len(decoded)))
        clip, shown = decoded_clip(number), decoded[number][frame]
    else:
        clip = random_clip(people, rng)
        shown = clip.picture(frame / (FRAMES - 1))
    which = int(rng.integers(len(clip.cast)))
    person, scene = clip.cast[which]
    pose = scene.at(frame / (FRAMES - 1))
    if len(clip.cast) == 1:
        return shown, person, pose
    # a half stands in the middle of what the reader sees
    return halves(shown[None])[which][0], person, dataclasses.replace(pose, x=pose.x + 0.25 - 0.5 * which)


def examples(people, decoded: list[np.ndarray],
             rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels [B, 3, SIDE, SIDE], labels and whether they can be seen [B, 7], poses [B, 9]."""
    pixels, labels, visible, poses = [], [], [], []
    for _ in range(BATCH):
        shown, person, pose = seen(people, decoded, rng)
        shown = shown.astype(np.float32)
        if rng.random() < BLURRED:
            shown = cv2.GaussianBlur(shown, (0, 0), rng.uniform(0.2, LARGEST_BLUR))
        shown += rng.normal(0, rng.uniform(0, NOISE), shown.shape)
        pixels.append(framed(torch.from_numpy(shown).movedim(-1, 0)[None] / 127.5 - 1))
        labels.append(person.labels)
        visible.append(person.visible)
        poses.append([getattr(pose, name) for name in POSE])
    return (torch.cat(pixels).float(), torch.from_numpy(np.stack(labels)), torch.from_numpy(np.stack(visible)),
            torch.tensor(poses, dtype=torch.float32) / POSE_SCALE)


def main(minutes: float, seed: int, clips: int, state: Path, out: Path) -> None:
    torch.manual_seed(seed)
    people, decoded, reader = split().train, decoded_clips(clips), Reader().train()

    def losses_of(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        pixels, labels, visible, poses = examples(people, decoded, rng)
        logits, pose = reader(pixels)
        of_traits = torch.stack([torch.nn.functional.cross_entropy(each, labels[:, i], reduction="none")
                                 for i, each in enumerate(logits)], dim=1)
        return {"traits": of_traits[visible].mean(),
                "pose": POSE_WEIGHT * torch.nn.functional.smooth_l1_loss(pose, poses)}

    optimizer = torch.optim.AdamW(reader.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    file = out / READER_FILE.name
    weights = train(reader, [optimizer], minutes, state, losses_of,
                    lambda average, record: save(average, file, {"seed": seed, **record}), seed)
    save(weights, file)
    reader.load_state_dict(weights)
    sys.stdout.write(f"{calibrate(reader.eval())}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=DECODED, help="that go through the VAE")
    parser.add_argument("--state", type=Path, default=PACK / ".standin" / "small_world" / "reader.state")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    main(options.minutes, options.seed, options.clips, options.state, options.out)
