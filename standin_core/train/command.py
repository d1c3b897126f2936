"""A whole training from one configuration, as the command line runs it."""
from __future__ import annotations

import importlib
from pathlib import Path

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.utils

from ..contracts import StandInError
from ..folders import ADAPTERS, find_file, new_adapter_file
from ..weights import load_adapter
from .config import FileSettings, TrainConfig
from .data.dataset import Say, make_dataset
from .data.encoders import Encoders
from .data.prepare import Captioner
from .data.sources import sources_in
from .session import train_adapter


def train(config: TrainConfig, say: Say, processes=None) -> Path:
    """Make the data, train, and write the adapter to ComfyUI's folder of adapters; returns its file.

    say: takes a line for the user. processes: see Trainer; the first of them makes the data. Calling again goes on
    where it was interrupted. Raises StandInError that says what to mend.
    """
    is_first = processes is None or processes.is_main_process
    model_file = find_file("diffusion_models", config.files.diffusion_model)
    start_from = load_adapter(find_file(ADAPTERS, config.adapter.start_from)) if config.adapter.start_from else None
    file = new_adapter_file(config.adapter.name)
    shards = _dataset(config, say) if is_first else None
    if processes is not None:
        from accelerate.utils import broadcast_object_list

        (shards,) = broadcast_object_list([shards])
    comfy.model_management.unload_all_models()

    def on_step(step: int, loss: float) -> None:
        if is_first:
            say(f"step {step:,} of {config.train.steps:,}: loss {loss:.4f}")

    train_adapter(comfy.sd.load_diffusion_model(str(model_file)), shards, file, config.adapter, config.train, on_step,
                  samples=config.samples, vae=load_vae(config.files) if is_first else None, start_from=start_from,
                  base_model=model_file.name, processes=processes)
    return file


def load_vae(files: FileSettings):
    weights, metadata = comfy.utils.load_torch_file(str(find_file("vae", files.vae)), return_metadata=True)
    return comfy.sd.VAE(sd=weights, metadata=metadata)


def _dataset(config: TrainConfig, say: Say) -> Path:
    files = config.files
    clip = comfy.sd.load_clip(ckpt_paths=[str(find_file("text_encoders", files.text_encoder))],
                              clip_type=comfy.sd.CLIPType.WAN)
    clip_vision = None
    if config.pairs is not None and files.clip_vision:
        clip_vision = comfy.clip_vision.load(str(find_file("clip_vision", files.clip_vision)))
    return make_dataset(sources_in(Path(files.videos)), Path(files.data), config.data, Encoders(load_vae(files), clip),
                        say, config.pairs, clip_vision, _captioner(files.captioner))


def _captioner(name: str) -> Captioner | None:
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise StandInError(f"captioner is {name}, which cannot be imported ({error}): needed is module:function, a "
                           "function of frames [n, H, W, 3] uint8 that returns a caption.") from error
