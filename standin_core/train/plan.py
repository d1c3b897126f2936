"""What a training will be, told before it starts: its data, its parameters, the memory it needs."""
from __future__ import annotations

from pathlib import Path

from ..latents import PIXELS_PER_TOKEN
from .config import TrainConfig
from .memory import activation_bytes, model_size, parameter_bytes, tokens
from .method import Method

COMPUTED_BYTES = 2  # of bf16 and fp16, in which the published models compute


def plan(config: TrainConfig, method: Method, model_file: Path, devices: int = 1) -> str:
    """The plan in words, from the configuration and the header of the model's file."""
    size, data, train = model_size(model_file), config.data, config.train
    height, width = config.photos.size(data)
    video = tokens(data.frames, data.height, data.width)
    photo = data.people * (height // PIXELS_PER_TOKEN) * (width // PIXELS_PER_TOKEN)
    frozen, trained = method.frozen_bytes(size), parameter_bytes(method, size, train)
    activations = activation_bytes(method, size, train, video, photo, COMPUTED_BYTES)
    given = ", ".join(f"{key} {value}" for key, value in method.origin.items() if value)
    photos = f"photos of the same video, from {data.photos_from}" if config.pairs is None else (
        f"photos of other videos of the person, similarity {config.pairs.lowest:g} to {config.pairs.highest:g}")
    if train.reference_dropout:
        photos += f"; zeros in {train.reference_dropout:.0%} of the examples"
    if config.photos.noise_draws:
        photos += f"; each encoded {config.photos.noise_draws} times, with noise"
    return "\n".join([
        f"model       {model_file.name}: {size.blocks} blocks of {size.dim}, {_gib(size.bytes)}",
        f"{method.table:<11} {method.settings.name}, {given}: {method.parameters(size) / 1e6:.1f} M parameters, "
        f"{method.settings.expert}, noise levels {train.noise_from:g} to {train.noise_to:g}",
        *method.lines(size),
        f"clips       {data.frames} frames at {data.fps:g} fps, {data.width}x{data.height}: {video:,} tokens",
        f"references  {data.references} a clip, {f'{data.people} people, ' * (data.people > 1)}{width}x{height}: "
        f"{photo:,} tokens; {photos}",
        f"training    {train.steps:,} steps of {train.batch_size} on {devices} device{'s' * (devices > 1)}, "
        f"learning rate {train.learning_rate:g}, seed {train.seed}",
        f"memory      about {_gib(frozen + trained + activations)} on each device: {_gib(frozen)} frozen model, "
        f"{_gib(trained)} what is trained and its optimiser, {_gib(activations)} activations "
        f"{'with' if train.checkpointing else 'without'} checkpointing",
    ])


def _gib(count: int) -> str:
    return f"{count / 2**30:.{0 if count >= 100 * 2**30 else 1}f} GiB"
