"""A whole training from one configuration, as the command line runs it."""
from __future__ import annotations

import importlib
from pathlib import Path

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.utils

from ..errors import UserError
from ..folders import find_file
from . import session
from .config import FileSettings, TrainConfig
from .data.dataset import Say, make_dataset
from .data.encoders import Encoders
from .data.prepare import Captioner
from .data.sources import sources_in
from .method import Method


def train_from_config(config: TrainConfig, method: Method, say: Say, accelerator=None) -> None:
    """Make the data, train, and write the method's file; calling again goes on where it was interrupted.

    say: takes a line for the user.
    accelerator: see ``Trainer``; its first process makes the data.

    Raises UserError that says what to change.
    """
    is_first = accelerator is None or accelerator.is_main_process
    model_file = find_file("diffusion_models", config.files.diffusion_model)
    shards = _dataset(config, say) if is_first else None
    if accelerator is not None:
        from accelerate.utils import broadcast_object_list

        (shards,) = broadcast_object_list([shards])
    assert shards is not None  # the first process made them, and the others know by now
    comfy.model_management.unload_all_models()

    def on_step(step: int, loss: float) -> None:
        if is_first:
            say(f"step {step:,} of {config.train.steps:,}: loss {loss:.4f}")

    session.train(method.load(model_file), method, shards, config.train, on_step, accelerator, samples=config.samples,
                  vae=_load_vae(config.files) if is_first else None, base_model=model_file.name)


def _load_vae(files: FileSettings):
    weights, metadata = comfy.utils.load_torch_file(str(find_file("vae", files.vae)), return_metadata=True)
    return comfy.sd.VAE(sd=weights, metadata=metadata)


def _dataset(config: TrainConfig, say: Say) -> Path:
    files = config.files
    clip = comfy.sd.load_clip(ckpt_paths=[str(find_file("text_encoders", files.text_encoder))],
                              clip_type=comfy.sd.CLIPType.WAN)
    clip_vision = None
    if config.pairs is not None and files.clip_vision:
        clip_vision = comfy.clip_vision.load(str(find_file("clip_vision", files.clip_vision)))
    return make_dataset(sources_in(Path(files.videos)), Path(files.data), config.data, Encoders(_load_vae(files), clip),
                        say, config.pairs, clip_vision, _captioner(files.captioner), config.photos)


def _captioner(name: str) -> Captioner | None:
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError("captioner must be module:function, a function of frames [n, H, W, 3] uint8 that returns a "
                        f"caption, but {name} cannot be imported ({error}).") from error
