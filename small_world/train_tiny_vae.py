"""Train the tiny Wan VAE that demo and tests use, on scikit-image's photographs panned and zoomed.

    python small_world/train_tiny_vae.py --minutes 30 --frames 5     # in the environment of scripts/test.py, 2 cores
    python small_world/train_tiny_vae.py --minutes 25 --frames 9

ComfyUI's own WanVAE at a width of 8, in tests/data/tiny_wan_vae.safetensors: blurred, but pictures come out as they
went in. It goes on from the weights that are there. Latent frames after the second are decoded alike, so longer videos
need to be seen once.
"""
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
import safetensors.torch
import skimage.data
import torch
from small_world.tiny_models import VAE_FILE, random_weights, tiny_vae, vae_weights

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
SIDE, BATCH = 64, 2
LEARNING_RATE, WARM_UP = 1.5e-3, 50
LATENT_NOISE = 0.02  # so that the decoder is smooth
LATENT_WEIGHT = 1e-4
WEIGHTS_DTYPE = torch.float16


def clips(photos: list[np.ndarray], frames: int, rng: np.random.Generator) -> torch.Tensor:
    """[BATCH, 3, frames, SIDE, SIDE] in -1..1: windows that wander over a photo, some mirrored, some recoloured."""
    batch = np.empty((BATCH, frames, SIDE, SIDE, 3), np.float32)
    for clip in batch:
        photo = photos[rng.integers(len(photos))]
        height, width = photo.shape[:2]
        scale, angle = np.exp(rng.uniform(-1.0, 0.5)), rng.uniform(-0.2, 0.2)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        dx, dy = rng.normal(scale=4, size=2) / scale
        gain = rng.uniform(0.6, 1.1, size=3)
        for i in range(frames):
            cos, sin = scale * np.cos(angle), scale * np.sin(angle)
            matrix = np.array([[cos, -sin, 0], [sin, cos, 0]])
            matrix[:, 2] = SIDE / 2 - matrix[:, :2] @ (x + i * dx, y + i * dy)
            clip[i] = cv2.warpAffine(photo, matrix, (SIDE, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
        clip[:] = np.clip(clip / 255 * gain, 0, 1)[:, :, ::rng.choice((1, -1))]
    return torch.from_numpy(batch).permute(0, 4, 1, 2, 3) * 2 - 1


def main(minutes: float, frames: int) -> None:
    torch.manual_seed(frames)
    rng = np.random.default_rng(frames)
    photos = []
    for name in PHOTOS:
        photo = getattr(skimage.data, name)()[..., :3]
        shrink = 512 / max(photo.shape[:2])
        photos.append(cv2.resize(photo, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA))
    vae = tiny_vae()
    vae.load_state_dict(vae_weights() if VAE_FILE.exists() else random_weights(vae, seed=3))
    vae.requires_grad_(True)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=0)
    start = time.monotonic()
    step, seen = 0, []
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * (1 + np.cos(np.pi * done)) / 2)
        optimizer.param_groups[0]["lr"] = rate
        video = clips(photos, frames, rng)
        latent = vae.encode(video)
        decoded = vae.decode(latent + LATENT_NOISE * torch.randn_like(latent))
        error = (decoded - video).abs().mean()
        loss = error + LATENT_WEIGHT * latent.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        seen.append(error.item())
        if step % 100 == 0:
            sys.stdout.write(f"step {step}, {100 * done:.0f} %, mean error {127.5 * np.mean(seen[-100:]):.1f} of 255, "
                             f"latents' deviation {latent.std().item():.2f}\n")
            sys.stdout.flush()
    save(vae, VAE_FILE)


def save(vae: torch.nn.Module, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file({key: value.detach().to(WEIGHTS_DTYPE).contiguous()
                                 for key, value in vae.state_dict().items()}, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--frames", type=int, default=9, help="4k+1")
    options = parser.parse_args()
    main(options.minutes, options.frames)
