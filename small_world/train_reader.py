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

from small_world.data import random_clip, random_photo, training_clip
from small_world.measure import calibrate, through_vae
from small_world.models import FRAMES, WEIGHTS, new_vae, save
from small_world.people import Person, split
from small_world.photos import photo
from small_world.reader import POSE, POSE_SCALE, READER_FILE, Reader, framed, halves
from small_world.scenes import Scene, photo_scene
from small_world.training import train

BATCH, LEARNING_RATE = 48, 2e-3
PHOTO_SHARE, BUSY, BLURRED, LARGEST_BLUR, NOISE = 0.15, 0.3, 0.5, 1.2, 6.0
DECODED, DECODED_SHARE = 600, 0.5  # clips; share of the pictures of a batch
POSE_WEIGHT = 6.0

Seen = tuple[np.ndarray, Person, Scene, float]  # [H, W, 3], and who does what at which time


def decoded_clips(count: int) -> list[np.ndarray]:
    """[FRAMES, HEIGHT, WIDTH, 3] uint8 each, of the first training clips, through the VAE."""
    vae = new_vae().eval()
    return [through_vae(vae, training_clip(number)[0].video()) for number in range(count)]


def seen(people, decoded: list[np.ndarray], rng: np.random.Generator) -> Seen:
    """One picture of one person, who is half of it where there are two."""
    if rng.random() < PHOTO_SHARE:
        person, scene = people[rng.integers(len(people))], photo_scene(rng, bool(rng.random() < BUSY))
        return photo(person, scene), person, scene, 0.0
    frame = int(rng.integers(FRAMES))
    if rng.random() < DECODED_SHARE:
        number = int(rng.integers(len(decoded)))
        clip, shown = training_clip(number)[0], decoded[number][frame]
    else:
        clip = random_clip(people, rng)
        shown = clip.picture(frame / (FRAMES - 1))
    which = int(rng.integers(len(clip.cast)))
    return halves(shown[None])[which][0] if len(clip.cast) > 1 else shown, *clip.cast[which], frame / (FRAMES - 1)
