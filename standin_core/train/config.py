"""The training's configuration: one TOML file, every key of which is checked before anything starts."""
from __future__ import annotations

import dataclasses
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path

from ..contracts import StandInError
from ..folders import plain_name
from .data.pairs import PairSettings
from .data.settings import DataSettings
from .loop import TrainSettings

# noise levels of Wan 2.2's experts: the boundary of its text-to-video model (Wan 2.2, wan/configs/wan_t2v_A14B.py)
EXPERTS = {"single": (0.0, 1.0), "high noise": (0.875, 1.0), "low noise": (0.0, 0.875)}


@dataclass(frozen=True, slots=True)
class FileSettings:
    """Where everything lies. videos: a folder of videos with captions; data: a folder for what is made of them, and for
    the runs. diffusion_model, text_encoder, vae: files, as ComfyUI's loaders name them or as paths. captioner:
    "module:function", see ``prepare``. clip_vision: for pairs, where insightface is not there.
    """

    videos: str
    data: str
    diffusion_model: str
    text_encoder: str
    vae: str
    captioner: str = ""
    clip_vision: str = ""


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """name: of the file; rank: 128 with the authors; expert: one of EXPERTS, which sets the noise levels; start_from:
    an adapter to go on from, whose rank then counts, as Load Stand-In names it.
    """

    name: str
    rank: int = 128
    expert: str = "single"
    start_from: str = ""

    def __post_init__(self):
        if self.expert not in EXPERTS:
            raise StandInError(f"expert is {self.expert}, needed is one of {', '.join(EXPERTS)}.")
        if self.rank < 1:
            raise StandInError(f"rank is {self.rank}, needed is at least 1; the authors take 128.")
        plain_name(self.name)


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """every: steps between two checkpoints, each with a picture of what the adapter makes of the first ``count``
    examples; 0 for a checkpoint at the end alone. steps, cfg, shift: of the sampler.
    """

    every: int = 500
    count: int = 4
    steps: int = 20
    cfg: float = 5.0
    shift: float = 5.0


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """pairs: None for photos of the clip's own video, as the paper does."""

    files: FileSettings
    adapter: AdapterSettings
    data: DataSettings = field(default_factory=DataSettings)
    pairs: PairSettings | None = None
    train: TrainSettings = field(default_factory=TrainSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)


def read_config(path: Path) -> TrainConfig:
    """Paths in it are taken from the folder of the file. Raises StandInError that names what is wrong and the key."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StandInError(f"{path} cannot be read ({error}): it must be a TOML file.") from error
    config = parse_config(table)
    here = path.resolve().parent
    files = {name: str(here / getattr(config.files, name)) for name in ("videos", "data")}
    return dataclasses.replace(config, files=dataclasses.replace(config.files, **files))


def parse_config(table: dict) -> TrainConfig:
    config = _record(TrainConfig, table, "the file")
    given = table.get("train", {})
    if config.adapter.expert != "single":
        if "noise_from" in given or "noise_to" in given:
            raise StandInError(f"expert is {config.adapter.expert}, which sets the noise levels: take noise_from and "
                               "noise_to out of [train], or set expert to single.")
        noise_from, noise_to = EXPERTS[config.adapter.expert]
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, noise_from=noise_from,
                                                                       noise_to=noise_to))
    return config


def _record(kind: type, table: dict, where: str):
    """A dataclass from a table, in which records are tables again."""
    kinds = typing.get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}
    unknown = [key for key in table if key not in fields]
    if unknown:
        raise StandInError(f"{where} has {unknown[0]!r}, which nothing reads; it may have {', '.join(fields)}.")
    missing = [name for name, each in fields.items()
               if name not in table and each.default is each.default_factory is dataclasses.MISSING]
    if missing:
        raise StandInError(f"{where} lacks {missing[0]!r}: add it.")
    return kind(**{key: _value(kinds[key], value, f"[{key}]" if where == "the file" else f"{where} {key}")
                   for key, value in table.items()})


def _value(kind, value, where: str):
    record = next((each for each in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(each)), None)
    if record is not None:
        if not isinstance(value, dict):
            raise StandInError(f"{where} is {value!r}, needed is a table.")
        return _record(record, value, where)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise StandInError(f"{where} is {value!r}, needed is of type {kind.__name__}.")
    return value
