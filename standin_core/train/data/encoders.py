"""Clips, photos and captions as the model reads them: encoded once, by ComfyUI's VAE and text encoder."""
from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.latent_formats
import comfy.sd
import numpy as np
import torch

from ...reference import encode_reference, fitted
from .dropped import Cause, Drop, Unusable
from .manifest import Clip
from .photos import read_photo
from .recipe import PLAIN, TO_CLIP, DataSettings, PhotoSettings
from .shards import Example, write_shards
from .video import clips as read_clips


@dataclass(frozen=True, slots=True)
class Encoders:
    """ComfyUI's models that pixels and words go through.

    vae: Wan 2.1's.
    clip: Wan's text encoder.
    """

    vae: comfy.sd.VAE
    clip: comfy.sd.CLIP

    def latent(self, frames: torch.Tensor) -> torch.Tensor:
        """[4k+1, H, W, 3] in 0..1 -> [16, k+1, h, w], model space."""
        return _to_model_space(self.vae.encode(frames))[0]

    def photos(self, pictures: torch.Tensor) -> torch.Tensor:
        """[P, H, W, 3] in 0..1 -> [P, 16, 1, H/8, W/8], model space."""
        return _to_model_space(encode_reference(self.vae, pictures))

    def context(self, caption: str) -> torch.Tensor:
        """The caption -> [N, text dim]."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption))[0][0][0]

    def fingerprint(self) -> list[str]:
        """A hash for each of the two, from its small tensors, which differ between any two checkpoints."""
        return [_fingerprint(self.vae.first_stage_model), _fingerprint(self.clip.cond_stage_model)]


def data_hash(clips: list[Clip], settings: dict, encoders: list[str], photos: PhotoSettings) -> str:
    """Hash of all that the encoded clips follow from, 16 hexadecimal digits.

    settings: of ``kept_settings``.
    encoders: their ``fingerprint``.
    """
    rows = [[clip.name, clip.caption, clip.references] for clip in clips]
    # left out at their defaults, as in the shards of an earlier version, which are read on
    others = [] if photos == PLAIN else [asdict(photos)]
    return hashlib.sha256(json.dumps([rows, settings, encoders, *others], sort_keys=True).encode()).hexdigest()[:16]


def encode_clips(folder: Path, clips: list[Clip], videos: dict[str, Path], data: Path, settings: DataSettings,
                 photos: PhotoSettings, encoders: Encoders) -> Iterator[str]:
    """Write the shards that are missing; yields a line for each.

    folder: of the shards.
    clips: all that the shards are to hold.
    videos: name of a source -> its file.
    data: the folder below which the clips' photos lie.
    """
    return write_shards(folder, [clip.name for clip in clips],
                        lambda missing: _encoded([clip for clip in clips if clip.name in missing], videos, data,
                                                 settings, photos, encoders), photos.fit)


def _encoded(clips: list[Clip], videos: dict[str, Path], data: Path, settings: DataSettings, photos: PhotoSettings,
             encoders: Encoders) -> Iterator[tuple[str, Example | Drop]]:
    for video, group in itertools.groupby(clips, key=lambda clip: clip.video):
        waiting = list(group)
        try:
            read = read_clips(videos[video], settings.fps, (settings.width, settings.height),
                              [clip.start for clip in waiting], settings.frames)
            for _, frames in read:
                clip = waiting.pop(0)
                yield clip.name, _example(clip, frames, data, settings, photos, encoders)
            drop = Drop(Cause.NOW_SHORTER)
        except Unusable as error:
            drop = error.drop
        for clip in waiting:
            yield clip.name, drop


def _example(clip: Clip, frames: np.ndarray, data: Path, settings: DataSettings, photos: PhotoSettings,
             encoders: Encoders) -> Example | Drop:
    try:
        files = np.stack([read_photo(data / file) for file in clip.references])
    except Unusable as error:
        return error.drop
    pictures = torch.from_numpy(np.stack(np.split(files, settings.people, axis=2), axis=1)).float() / 255
    if photos.fit == TO_CLIP:
        pictures = torch.stack([torch.stack([fitted(picture, *frames.shape[1:3]) for picture in each])
                                for each in pictures])
    if photos.noise_draws:
        pictures = with_noise(pictures, photos, f"{settings.seed} {clip.name}")
    latents = encoders.photos(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
    return Example(encoders.latent(torch.from_numpy(frames).float() / 255), latents.squeeze(3).transpose(1, 2),
                   encoders.context(clip.caption))


def with_noise(photos: torch.Tensor, settings: PhotoSettings, seed: str) -> torch.Tensor:
    """Each photo ``noise_draws`` times, each time with noise of its own on the pixels.

    As in ML-GSAI/Concat-ID's training, ``exp(N(noise_mean, noise_deviation))`` is the noise's standard deviation for
    pixels in -1..1, and nothing is clamped.

    photos: [P, M, H, W, 3] in 0..1.
    seed: decides the noise.

    Returns [P * noise_draws, M, H, W, 3].
    """
    generator = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:15], 16))
    photos = photos.repeat_interleave(settings.noise_draws, dim=0)
    logarithm = torch.randn(*photos.shape[:2], 1, 1, 1, generator=generator)
    logarithm = logarithm * settings.noise_deviation + settings.noise_mean
    return photos + logarithm.exp() / 2 * torch.randn(photos.shape, generator=generator)


def _to_model_space(latent: torch.Tensor) -> torch.Tensor:
    return comfy.latent_formats.Wan21().process_in(latent)


def _fingerprint(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        if tensor.ndim == 1:  # of norms and biases
            digest.update(key.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
