"""The training's configuration: one TOML file, every key of which is checked before anything starts."""
from __future__ import annotations

import dataclasses
import inspect
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic
import pydantic_core

from ..contracts import UserError
from .data.pairs import PairSettings
from .data.recipe import DataSettings
from .settings import EXPERTS, AdapterSettings, SampleSettings, TrainSettings


@dataclass(frozen=True, slots=True)
class FileSettings:
    """Where everything lies.

    videos: a folder of videos with captions.
    data: a folder for what is made of them, and for the runs.
    diffusion_model, text_encoder, vae: files, as ComfyUI's loaders name them or as paths.
    captioner: "module:function", a ``data.prepare.Captioner``.
    clip_vision: a file, for pairs where no face recognition network can run.
    """

    videos: str
    data: str
    diffusion_model: str
    text_encoder: str
    vae: str
    captioner: str = ""
    clip_vision: str = ""


class TrainConfig(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """The whole file; each of these is a table.

    pairs: None for photos of the clip's own video, as the paper does.
    """

    files: FileSettings
    adapter: AdapterSettings
    data: DataSettings = DataSettings()
    pairs: PairSettings | None = None
    train: TrainSettings = TrainSettings()
    samples: SampleSettings = SampleSettings()


def read_config(path: Path) -> TrainConfig:
    """The configuration of a file, from whose folder relative paths in it are taken.

    Raises UserError that names every key that is wrong.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): it must be a TOML file.") from error
    config = parse_config(table)
    here = path.resolve().parent
    folders = {name: str(here / getattr(config.files, name)) for name in ("videos", "data")}
    return config.model_copy(update={"files": dataclasses.replace(config.files, **folders)})


def parse_config(table: dict) -> TrainConfig:
    """The configuration of a table as TOML gives it; raises UserError that names every key that is wrong."""
    try:
        # in strict mode, pydantic makes dataclasses of JSON's tables but not of dictionaries
        config = TrainConfig.model_validate_json(pydantic_core.to_json(table, inf_nan_mode="constants"))
    except pydantic.ValidationError as error:
        raise UserError(" ".join(map(_in_words, error.errors()))) from error
    if config.adapter.expert == "single":
        return config
    if table.get("train", {}).keys() & {"noise_from", "noise_to"}:
        raise UserError(f"expert is {config.adapter.expert}, which sets the noise levels: take noise_from and "
                        "noise_to out of [train], or set expert to single.")
    noise_from, noise_to = EXPERTS[config.adapter.expert]
    return config.model_copy(update={
        "train": dataclasses.replace(config.train, noise_from=noise_from, noise_to=noise_to)})


def _in_words(error: pydantic_core.ErrorDetails) -> str:
    *outer, key = error["loc"]
    tables = [str(table) for table in outer]
    where = f"[{'.'.join(tables)}]" if tables else "the file"
    match error["type"]:
        case "value_error":  # a sentence of our own
            return str(error["ctx"]["error"])
        case "missing":
            return f"{where} lacks {key!r}: add it."
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{where} has {key!r}, which nothing reads; it may have {', '.join(_keys(tables))}."
        case "dataclass_type":
            return f"[{'.'.join(map(str, error['loc']))}] is {error['input']!r}, needed is a table."
    return f"{where} {key} is {error['input']!r}, needed is {error['msg'].removeprefix('Input should be ')}."


def _keys(tables: Sequence[str]) -> list[str]:
    """What may stand in a table."""
    kind: type = TrainConfig
    for name in tables:
        hint = typing.get_type_hints(kind)[name]
        kind = next(each for each in (hint, *typing.get_args(hint))
                    if isinstance(each, type) and dataclasses.is_dataclass(each))
    return list(inspect.signature(kind).parameters)
