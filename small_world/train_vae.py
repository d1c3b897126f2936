"""Train the VAE of the small world: clips and photos of drawn people in, the same out.

    .standin/venv/bin/python small_world/train_vae.py --minutes 40     # goes on from the weights that are there
    .standin/venv/bin/python small_world/train_vae.py --minutes 40 --decoder      # the latents stay what they are

Single pictures first, which cost a ninth of a clip and teach the most, then clips too. Latents are drawn towards the
mean and the deviation that ComfyUI takes off for Wan, so that the model sees numbers near a normal distribution. The
decoder alone can be trained on at the end, which leaves valid what was trained on latents.
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

import numpy as np
import torch

from small_world.models import ENCODER, FRAMES, SIDE, VAE_FILE, WEIGHTS, new_vae, save, to_model_space, to_pixels
from small_world.people import split
from small_world.render import picture, video
from small_world.scenes import photo_scene, random_scene

PICTURES, CLIPS = 6, 2  # batch sizes
LEARNING_RATE, WARM_UP = 1e-3, 100
LATENT_NOISE, NORMAL_WEIGHT, EDGE_WEIGHT = 0.05, 0.02, 0.5
FACE_SPREAD = 0.2  # of the side
SAVED_EVERY = 200


def batch(people, rng: np.random.Generator, pictures_alone: bool) -> torch.Tensor:
    """[B, frames, SIDE, SIDE, 3] uint8: pictures, clips of 5 frames or of FRAMES."""
    kind = "pictures" if pictures_alone else rng.choice(["pictures", "short", "long"], p=(0.3, 0.2, 0.5))
    some = [people[rng.integers(len(people))] for _ in range(PICTURES if kind == "pictures" else CLIPS)]
    if kind == "pictures":
        shown = [picture(person, photo_scene(rng) if rng.random() < 0.3 else random_scene(rng), rng.random(),
                         SIDE)[None] for person in some]
    else:
        shown = [video(person, random_scene(rng), 5 if kind == "short" else FRAMES, SIDE) for person in some]
    return torch.from_numpy(np.stack(shown))


def face_weight() -> torch.Tensor:
    """[SIDE, SIDE], mean 1: the face counts four times as much as the border."""
    across = (torch.arange(SIDE) + 0.5) / SIDE - 0.5
    weight = 1 + 3 * torch.exp(-(across[:, None] ** 2 + across[None, :] ** 2) / (2 * FACE_SPREAD ** 2))
    return weight / weight.mean()


def main(minutes: float, pictures_alone: float, decoder: bool, seed: int, out: Path) -> None:
    torch.manual_seed(seed)
    rng, (people, _) = np.random.default_rng(seed), split()
    vae = new_vae()
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(not (decoder and name.startswith(ENCODER)))
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    weight = face_weight()
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    errors, started, step = [], time.monotonic(), 0
    while (done := (time.monotonic() - started) / (60 * minutes)) < 1:
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * (1 + np.cos(np.pi * done)) / 2)
        optimizer.param_groups[0]["lr"] = rate
        pixels = to_pixels(batch(people, rng, done < pictures_alone))
        latent = vae.encode(pixels)
        wrong = vae.decode(latent + LATENT_NOISE * torch.randn_like(latent)) - pixels
        normal = to_model_space(latent)
        error = wrong.abs().mean()
        wrong = weight * wrong
        edges = wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean()
        normality = normal.mean().square() + (normal.std() - 1).square()
        loss = wrong.abs().mean() + EDGE_WEIGHT * edges + NORMAL_WEIGHT * normality
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        errors.append(float(error.detach()))
        if step % SAVED_EVERY == 0:
            record = {"seed": seed, "minutes": round(done * minutes, 1), "step": step,
                      "error_of_255": round(127.5 * float(np.mean(errors)), 2),
                      "latent_deviation": round(float(normal.detach().std()), 3)}
            errors.clear()
            save(vae.state_dict(), out / VAE_FILE.name, record)
            sys.stdout.write(f"{record}\n")
            sys.stdout.flush()
    save(vae.state_dict(), out / VAE_FILE.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--pictures-alone", type=float, default=0.3, help="share of the time, at the beginning")
    parser.add_argument("--decoder", action="store_true", help="train it alone, without a phase of pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    main(options.minutes, 0.0 if options.decoder else options.pictures_alone, options.decoder, options.seed,
         options.out)
