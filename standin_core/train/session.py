"""A training run on a model that ComfyUI has loaded."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import torch

from ..contracts import Adapter, StandInError
from ..sampler import SamplerSettings
from ..wan import Wan
from ..weights import check_fit, load_adapter
from .cache import CachedExamples
from .config import AdapterSettings, SampleSettings
from .loop import Trainer, TrainSettings
from .plan import activation_bytes, size_of
from .run import TrainingRun
from .samples import sample_grid
from .weights import as_adapter, new_adapter, parameters

RUNS = "runs"  # below the folder of the data


def training_run(model, shards: Path, folder: Path, adapter: AdapterSettings, settings: TrainSettings,
                 samples: SampleSettings | None = None, vae=None, start_from: Adapter | None = None,
                 base_model: str = "", processes=None) -> TrainingRun:
    """model: a ModelPatcher of a Wan, which is brought to its device. shards: of ``make_dataset``; folder: of the run.
    samples, vae: to draw what the adapter makes, None for no pictures. start_from: an adapter to go on from,
    whose rank counts then.
    base_model: its name, for the file. processes: see Trainer.

    Raises StandInError for a model that is not Wan and an adapter that does not fit it.
    """
    model = trainable(model)
    wan, examples = Wan(model.model), CachedExamples(shards)
    example = examples[0]
    needed = activation_bytes(size_of(wan), *(wan.count(latent.shape) for latent in (example.video, example.photos)),
                              settings.checkpointing, wan.dtype.itemsize)
    comfy.model_management.load_models_gpu([model], memory_required=needed)
    if start_from is not None:
        check_fit(start_from, len(wan.blocks), wan.dim)
    rank = adapter.rank if start_from is None else start_from.rank
    module = new_adapter(len(wan.blocks), wan.dim, rank, settings.seed, model.load_device)
    if start_from is not None:
        with torch.no_grad():
            for key, tensor in parameters(as_adapter(module)).items():
                tensor.copy_(parameters(start_from)[key])
    origin = {"base_model": base_model, "rank": str(rank), "expert": adapter.expert, "data": shards.name}
    trainer = Trainer(wan, module, examples, settings, origin, processes)
    draw = None
    if samples is not None and vae is not None:
        sampler = SamplerSettings(settings.seed, samples.steps, samples.cfg, shift=samples.shift)
        shown = [examples[index] for index in range(min(samples.count, len(examples)))]

        def draw():
            return sample_grid(model, as_adapter(module), vae, shown, sampler)

    return TrainingRun(trainer, folder, adapter.name, 0 if samples is None else samples.every, draw,
                       processes is None or processes.is_main_process)


def train_adapter(model, shards: Path, file: Path, adapter: AdapterSettings, settings: TrainSettings,
                  on_step: Callable[[int, float], None], **others) -> tuple[Adapter, Path]:
    """Train to the end within a node, which may be interrupted between two steps and goes on the next time; returns
    the adapter that was written to file, and the run's folder. on_step: takes steps done and loss; others: as in
    ``training_run``.
    """
    folder = shards.parent / RUNS / adapter.name
    with torch.inference_mode(False), torch.enable_grad():
        run = training_run(model, shards, folder, adapter, settings, **others)
        for step, loss in run.steps():
            on_step(step, loss)
            comfy.model_management.throw_exception_if_processing_interrupted()
        run.finish(file)
    return load_adapter(file), folder


def trainable(model):
    """The model itself, or where a node loaded it, another of the same file: ComfyUI runs nodes in inference mode, and
    through tensors that were made there no gradient passes. To be called outside of that mode.
    """
    if not any(parameter.is_inference() for parameter in model.model.parameters()):
        return model
    try:
        return model.clone(force_deepcopy=True)
    except (TypeError, RuntimeError) as error:  # before 0.30, or a loader that does not say how to load again
        raise StandInError(f"this model cannot be loaded again for training ({error}): take Load Diffusion Model of "
                           "ComfyUI 0.30 or newer, or train with scripts/train.py.") from error
