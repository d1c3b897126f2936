"""Train the reader of the small world on renders: sharp, blurred, and as they come out of the VAE.

At the end it says how often the reader is right on people whom it never saw.

    .standin/venv/bin/python small_world/train_reader.py --minutes 12     # goes on from the weights that are there
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu")

import cv2
import numpy as np
import torch

from small_world.data import training_clip
from small_world.measure import calibrate, through_vae
from small_world.models import FRAMES, SIDE, WEIGHTS, new_vae, save
from small_world.people import split
from small_world.reader import POSE, POSE_SCALE, READER_FILE, Reader, load_reader
from small_world.render import picture, video
from small_world.scenes import photo_scene, random_scene

BATCH, LEARNING_RATE = 48, 2e-3
PHOTO_SHARE, BLURRED, LARGEST_BLUR, NOISE = 0.2, 0.6, 1.6, 6.0
DECODED, DECODED_SHARE = 800, 0.5  # clips; share of the pictures of a batch
POSE_WEIGHT = 6.0
REPORTED_EVERY = 200


def decoded_clips(count: int) -> list[np.ndarray]:
    """[FRAMES, SIDE, SIDE, 3] uint8 each, of the first training clips."""
    vae = new_vae().eval()
    return [through_vae(vae, video(*training_clip(number)[:2], FRAMES, SIDE)) for number in range(count)]


def examples(people, decoded: list[np.ndarray],
             rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels [B, 3, SIDE, SIDE], labels and whether they can be seen [B, 7], poses [B, 9]."""
    pixels, labels, visible, poses = [], [], [], []
    for _ in range(BATCH):
        if rng.random() < DECODED_SHARE:
            number, frame = int(rng.integers(len(decoded))), int(rng.integers(FRAMES))
            person, scene, _ = training_clip(number)
            t, shown = frame / (FRAMES - 1), decoded[number][frame].astype(np.float32)
        else:
            person, t = people[rng.integers(len(people))], rng.random()
            scene = photo_scene(rng) if rng.random() < PHOTO_SHARE else random_scene(rng)
            shown = picture(person, scene, t, SIDE).astype(np.float32)
            if rng.random() < BLURRED:
                shown = cv2.GaussianBlur(shown, (0, 0), rng.uniform(0.2, LARGEST_BLUR))
        pixels.append(shown + rng.normal(0, rng.uniform(0, NOISE), shown.shape))
        labels.append(person.labels)
        visible.append(person.visible)
        poses.append([getattr(scene.at(t), name) for name in POSE])
    return (torch.from_numpy(np.stack(pixels)).movedim(-1, 1).float() / 127.5 - 1, torch.from_numpy(np.stack(labels)),
            torch.from_numpy(np.stack(visible)), torch.tensor(poses, dtype=torch.float32) / POSE_SCALE)


def main(minutes: float, seed: int, clips: int, out: Path) -> None:
    torch.manual_seed(seed)
    rng, (people, _), decoded = np.random.default_rng(seed), split(), decoded_clips(clips)
    reader = (load_reader() if READER_FILE.exists() else Reader()).train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    losses, started, step = [], time.monotonic(), 0
    while (done := (time.monotonic() - started) / (60 * minutes)) < 1:
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (0.01 + 0.99 * (1 + np.cos(np.pi * done)) / 2)
        pixels, labels, visible, poses = examples(people, decoded, rng)
        logits, pose = reader(pixels)
        of_traits = torch.stack([torch.nn.functional.cross_entropy(each, labels[:, i], reduction="none")
                                 for i, each in enumerate(logits)], dim=1)
        loss = of_traits[visible].mean() + POSE_WEIGHT * torch.nn.functional.smooth_l1_loss(pose, poses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        losses.append(float(loss.detach()))
        if step % REPORTED_EVERY == 0:
            sys.stdout.write(f"{100 * done:.0f} % step {step} loss {np.mean(losses):.4f}\n")
            sys.stdout.flush()
            losses.clear()
    save(reader.state_dict(), out / READER_FILE.name, {"seed": seed, "minutes": minutes, "steps": step})
    sys.stdout.write(f"{calibrate(reader.eval())}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=DECODED, help="that go through the VAE")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    main(options.minutes, options.seed, options.clips, options.out)
