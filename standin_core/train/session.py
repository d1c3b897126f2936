"""A training run on a model that ComfyUI has loaded."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import torch

from ..contracts import Adapter, StandInError
from ..sampler import SamplerSettings
from ..wan import WITH_GRADIENTS, Wan
from ..weights import check_fit, load_adapter, parse_adapter
from .config import AdapterSettings, SampleSettings
from .data.shards import CachedExamples
from .loop import Trainer, TrainSettings
from .plan import activation_bytes, adapter_bytes, adapter_parameters, size_of
from .run import TrainingRun, check_replaceable
from .samples import sample_grid
from .weights import as_adapter, new_adapter, parameters

RUNS = "runs"  # below the folder of the data


def training_run(model, shards: Path, folder: Path, adapter: AdapterSettings, settings: TrainSettings,
                 samples: SampleSettings | None = None, vae=None, start_from: Adapter | None = None,
                 base_model: str = "", processes=None) -> TrainingRun:
    """model: a ModelPatcher of a Wan, which is brought to its device. shards: of ``make_dataset``; folder: of the run.
    samples, vae: to draw what the adapter makes, None for no pictures. start_from: an adapter to go on from, whose rank
    counts then. base_model: its name, for the file. processes: see Trainer.

    Raises StandInError for a model that is not a Wan from text alone, and an adapter that does not fit it.
    """
    model = trainable(model)
    wan, examples = Wan(model.model, WITH_GRADIENTS), CachedExamples(shards)
    if not wan.from_text_alone:
        raise StandInError("this Wan takes more than noise and text (image-to-video, VACE, 5B), and adapters are "
                           "trained on the text-to-video models: connect one of those; the adapter serves VACE too.")
    if start_from is not None:
        check_fit(start_from, len(wan.blocks), wan.dim)
    rank = adapter.rank if start_from is None else start_from.rank
    video, photo = (wan.count(latent.shape) for latent in (examples[0].video, examples[0].photos))
    needed = adapter_bytes(adapter_parameters(len(wan.blocks), wan.dim, rank), settings) + settings.together * (
        activation_bytes(size_of(wan), video, photo, settings.checkpointing, wan.dtype.itemsize))

    def load() -> None:
        # weights that are fetched while a block runs are gone when its backward pass comes
        comfy.model_management.load_models_gpu([model], memory_required=needed, force_full_load=True)

    load()
    module = new_adapter(len(wan.blocks), wan.dim, rank, settings.seed, model.load_device)
    if start_from is not None:
        with torch.no_grad():
            for key, tensor in parameters(as_adapter(module)).items():
                tensor.copy_(parameters(start_from)[key])
    origin = {"base_model": base_model or _file_of(model), "rank": str(rank), "expert": adapter.expert,
              "data": shards.name, "start_from": start_from.sha256[:16] if start_from else ""}
    trainer = Trainer(wan, module, examples, settings, origin, processes)
    draw = None
    if samples is not None and vae is not None:
        sampler = SamplerSettings(settings.seed, samples.steps, samples.cfg, shift=samples.shift)
        shown = [examples[index] for index in range(min(samples.count, len(examples)))]

        def draw():
            drawn = sample_grid(model, parse_adapter(trainer.trained, adapter.name), vae, shown, sampler,
                                settings.noise_to)
            load()  # the VAE may have taken its place
            return drawn

    return TrainingRun(trainer, folder, adapter.name, 0 if samples is None else samples.every, draw,
                       processes is None or processes.is_main_process)


def train_adapter(model, shards: Path, file: Path, adapter: AdapterSettings, settings: TrainSettings,
                  on_step: Callable[[int, float], None], **others) -> tuple[Adapter, Path]:
    """Train to the end, and write the adapter to file; returns it, and the run's folder. on_step: takes steps done and
    loss, and may raise to interrupt: the next time goes on; others: as in ``training_run``.

    Raises StandInError, too, where file is there already and not of this training, and where memory does not suffice.
    """
    folder = shards.parent / RUNS / adapter.name
    with torch.inference_mode(False), torch.enable_grad():
        run = training_run(model, shards, folder, adapter, settings, **others)
        check_replaceable(file, run.trainer.origin)
        try:
            with contextlib.closing(run.steps()) as steps:
                for step, loss in steps:
                    on_step(step, loss)
        except comfy.model_management.OOM_EXCEPTION as error:
            raise StandInError(f"the device is out of memory ({error}): take fewer frames or a smaller picture, "
                               "checkpointing, together 1, or weights in fp8; scripts/train.py --dry-run says how much "
                               "each needs.") from error
        run.finish(file)
    if others.get("processes") is not None:
        others["processes"].wait_for_everyone()
    return load_adapter(file), folder


def trainable(model):
    """The model itself, or where a node loaded it, another of the same file: ComfyUI runs nodes in inference mode, and
    through tensors that were made there no gradient passes. Its weights stay where they are loaded to. To be called
    outside of that mode.
    """
    inference = any(parameter.is_inference() for parameter in model.model.parameters())
    dynamic = hasattr(model, "is_dynamic") and model.is_dynamic()
    if not inference and not dynamic:
        return model
    try:
        return model.clone(disable_dynamic=True) if dynamic else model.clone(force_deepcopy=True)
    except (TypeError, RuntimeError) as error:  # before 0.30, or a loader that does not say how to load again
        raise StandInError(f"this model cannot be loaded again for training ({error}): take Load Diffusion Model of "
                           "ComfyUI 0.30 or newer, or train with scripts/train.py.") from error


def _file_of(model) -> str:
    """The name of the file that a ModelPatcher was loaded from, as far as it knows."""
    _, arguments, *_ = getattr(model, "cached_patcher_init", None) or (None, ())
    return Path(arguments[0]).name if arguments and isinstance(arguments[0], str) else ""
