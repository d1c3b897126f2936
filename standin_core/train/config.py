"""The training's configuration: one TOML file, every key of which is checked before anything starts."""
from __future__ import annotations

import dataclasses
import inspect
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic
import pydantic_core

from ..errors import UserError
from .data.pairs import PairSettings
from .data.recipe import DataSettings, PhotoSettings
from .method import Method
from .settings import EXPERTS, MethodSettings, SampleSettings, TrainSettings


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
    """The whole file; each of these but ``method`` is a table.

    method: the name of what is trained.
    settings: the method's own; the table has the name that the method gives it.
    pairs: None for photos of the clip's own video.
    """

    method: str
    files: FileSettings
    settings: MethodSettings
    data: DataSettings = DataSettings()
    photos: PhotoSettings = PhotoSettings()
    pairs: PairSettings | None = None
    train: TrainSettings = TrainSettings()
    samples: SampleSettings = SampleSettings()


def read_config(path: Path, methods: Mapping[str, type[Method]]) -> TrainConfig:
    """The configuration of a file, from whose folder relative paths in it are taken.

    methods: those that a file may name; the first one where it names none.

    Raises UserError that names every key that is wrong.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): it must be a TOML file.") from error
    config = parse_config(table, methods)
    here = path.resolve().parent
    folders = {name: str(here / getattr(config.files, name)) for name in ("videos", "data")}
    return config.model_copy(update={"files": dataclasses.replace(config.files, **folders)})


def parse_config(table: dict, methods: Mapping[str, type[Method]]) -> TrainConfig:
    """The configuration of a table as TOML gives it.

    methods: as in ``read_config``.

    Raises UserError that names every key that is wrong.
    """
    name = table.get("method", next(iter(methods)))
    if not isinstance(name, str) or name not in methods:
        known = ", ".join(f"{known} ({method.makes})" for known, method in methods.items())
        raise UserError(f"method must be one of {known}, but is {name!r}.")
    method = methods[name]
    kind = pydantic.create_model(TrainConfig.__name__, __base__=TrainConfig,
                                 settings=(method.Settings, pydantic.Field(alias=method.table)))
    try:
        # in strict mode, pydantic makes dataclasses of JSON's tables but not of dictionaries
        config = kind.model_validate_json(pydantic_core.to_json(
            _merged(_merged(method.defaults, table), {"method": name}), inf_nan_mode="constants"))
    except pydantic.ValidationError as error:
        raise UserError(" ".join(_in_words(each, kind) for each in error.errors())) from error
    expert = config.settings.expert
    if expert == "single":
        return config
    if table.get("train", {}).keys() & {"noise_from", "noise_to"}:
        raise UserError(f"expert is {expert}, which sets the noise levels: take noise_from and noise_to out of "
                        "[train], or set expert to single.")
    noise_from, noise_to = EXPERTS[expert]
    return config.model_copy(update={
        "train": dataclasses.replace(config.train, noise_from=noise_from, noise_to=noise_to)})


def _merged(defaults: Mapping, given: Mapping) -> dict:
    """What is given, and the defaults where nothing is given."""
    return {**defaults, **{key: _merged(defaults[key], value) if isinstance(value, dict) and key in defaults else value
                           for key, value in given.items()}}


def _in_words(error: pydantic_core.ErrorDetails, kind: type[TrainConfig]) -> str:
    *outer, key = error["loc"]
    tables = [str(table) for table in outer]
    where = f"[{'.'.join(tables)}]" if tables else "the file"
    match error["type"]:
        case "value_error":  # a sentence of our own
            return str(error["ctx"]["error"])
        case "missing":
            return f"{where} lacks {key!r}: add it."
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{where} has {key!r}, which nothing reads; it may have {', '.join(_keys(kind, tables))}."
        case "dataclass_type":
            return f"[{'.'.join(map(str, error['loc']))}] must be a table, but is {error['input']!r}."
    return f"{where} {key} must be {error['msg'].removeprefix('Input should be ')}, but is {error['input']!r}."


def _keys(kind: type, tables: Sequence[str]) -> list[str]:
    """What may stand in a table of a file of this kind."""
    for name in tables:
        hint = (inspect.signature(kind).parameters[name].annotation if issubclass(kind, pydantic.BaseModel)
                else typing.get_type_hints(kind)[name])
        kind = next(each for each in (hint, *typing.get_args(hint))
                    if isinstance(each, type) and dataclasses.is_dataclass(each))
    return list(inspect.signature(kind).parameters)
