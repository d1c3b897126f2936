"""A training run on a model that ComfyUI has loaded."""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import torch

from ..errors import UserError
from ..runs import has_identity
from ..sampler import SamplerSettings
from ..wan import WITH_GRADIENTS, Wan
from .checkpoints import TrainingRun, check_replaceable
from .data.shards import CachedExamples
from .loop import Trainer
from .memory import activation_bytes, parameter_bytes, size_of
from .method import Method
from .samples import sample_grid
from .settings import SampleSettings, TrainSettings

RUNS = "runs"  # below the folder of the data


def training_run(model, method: Method, shards: Path, folder: Path, settings: TrainSettings,
                 samples: SampleSettings | None = None, vae=None, base_model: str = "",
                 accelerator=None) -> TrainingRun:
    """Bring a model to its device and begin, or go on with, a training on it.

    model: a ModelPatcher of a Wan.
    method: what is trained.
    shards: of ``make_dataset``.
    folder: of the run.
    samples, vae: to draw what the method makes; None for no pictures.
    base_model: the model's name, for the file that is made.
    accelerator: see ``Trainer``.

    Raises UserError for a model that is not a Wan or has an identity on it, and where the method cannot train it or not
    on these data.
    """
    if has_identity(model):
        raise UserError("the model has an identity on it already, which would be in every picture beside the one that "
                        "is trained: connect the model that goes into the Apply node, not the one that comes out.")
    model = trainable(model)
    wan, examples = Wan(model.model, WITH_GRADIENTS), CachedExamples(shards)
    latents = (examples[0].video, examples[0].photos[0])
    clip_shape, photo_shape = (tuple(latent.shape) for latent in latents)
    method.check(wan, clip_shape, photo_shape, examples.fit)
    size, (video, photo) = size_of(wan), (wan.count(latent.shape) for latent in latents)
    needed = parameter_bytes(method, size, settings) + activation_bytes(method, size, settings, video, photo,
                                                                        wan.dtype.itemsize)

    def load() -> None:
        # weights that are fetched while a block runs are gone when its backward pass comes
        comfy.model_management.load_models_gpu([model], memory_required=needed, force_full_load=True)

    load()
    learner = method.begin(wan, settings.seed, model.load_device)
    came_from = file_of(model)
    origin = {"base_model": base_model or (came_from.name if came_from else ""), "expert": method.settings.expert,
              "data": shards.name, **method.origin}
    trainer = Trainer(learner, examples, settings, origin, accelerator)
    draw = None
    if samples is not None and vae is not None:
        sampler = SamplerSettings(settings.seed, samples.steps, samples.cfg, shift=samples.shift)
        shown = [examples[index] for index in range(min(samples.count, len(examples)))]

        def draw():
            with trainer.as_saved():
                drawn = sample_grid(model, functools.partial(learner.applied, model), vae, shown, sampler,
                                    settings.noise_to)
            load()  # the VAE may have taken its place
            return drawn

    return TrainingRun(trainer, folder, method.settings.name, 0 if samples is None else samples.every, draw,
                       accelerator is None or accelerator.is_main_process)


def train(model, method: Method, shards: Path, settings: TrainSettings, on_step: Callable[[int, float], None],
          accelerator=None, **others) -> Path:
    """Train to the end and write the method's file, which may be there already if this training made it.

    on_step: takes steps done and loss, and may raise to interrupt: the next call goes on.
    others: as in ``training_run``.

    Returns the folder of the run. Raises UserError, too, where the file is there and is not of this training, and where
    memory does not suffice.
    """
    folder = shards.parent / RUNS / method.settings.name
    with torch.inference_mode(False), torch.enable_grad():
        run = training_run(model, method, shards, folder, settings, accelerator=accelerator, **others)
        check_replaceable(method.file, run.trainer.origin)
        try:
            with contextlib.closing(run.steps()) as steps:
                for step, loss in steps:
                    on_step(step, loss)
        except comfy.model_management.OOM_EXCEPTION as error:
            raise UserError(f"the device is out of memory ({error}): take {_lighter(settings, method)}; "
                            "scripts/train.py --dry-run says how much each needs.") from error
        run.finish(method.file)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return folder


def _lighter(settings: TrainSettings, method: Method) -> str:
    """What takes less memory than these settings, in words; a setting that is there already is not named."""
    *ways, last = ["fewer frames", "a smaller picture", *["checkpointing"] * (not settings.checkpointing),
                   *["together 1"] * (settings.together > 1), method.saving]
    return f"{', '.join(ways)} or {last}"


def trainable(model):
    """A ModelPatcher whose weights gradients can pass through; to be called outside of inference mode.

    That is the model itself, or where a node loaded it, another of the same file: ComfyUI runs nodes in inference mode,
    and through tensors that were made there no gradient passes. The weights stay where they are loaded to.
    """
    inference = any(parameter.is_inference() for parameter in model.model.parameters())
    return loaded_again(model) if inference or _is_dynamic(model) else model


def _is_dynamic(model) -> bool:
    return hasattr(model, "is_dynamic") and model.is_dynamic()


def loaded_again(model):
    """Another ModelPatcher of the same file, with weights of its own, which stay where they are loaded to.

    Raises UserError where the model does not know how.
    """
    try:
        return model.clone(disable_dynamic=True) if _is_dynamic(model) else model.clone(force_deepcopy=True)
    except comfy.model_management.OOM_EXCEPTION:  # may be a RuntimeError, and ComfyUI knows what to do about it
        raise
    except (TypeError, RuntimeError) as error:  # before 0.30, or a loader that does not say how to load again
        raise UserError(f"this model cannot be loaded again for training ({error}): take Load Diffusion Model of "
                        "ComfyUI 0.30 or newer, or train with scripts/train.py.") from error


def file_of(model) -> Path | None:
    """The file that a ModelPatcher was loaded from, where it knows."""
    _, arguments, *_ = getattr(model, "cached_patcher_init", None) or (None, ())
    return Path(arguments[0]) if arguments and isinstance(arguments[0], str | Path) else None
