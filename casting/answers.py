"""The shapes of what a batch reads back: from servers, whose nodes other packs may have replaced, and from its folder,
in which anybody may have written.
"""
from __future__ import annotations

import json
import math

import pydantic

from support.comfyui_server import PromptFailed

from .workflow import RECORD, SAVES, of_class


class Figures(pydantic.BaseModel):
    mean: float | None = None


class Similarity(Figures):
    coverage: float = pydantic.Field(ge=0, le=1)


class Summary(pydantic.BaseModel):
    similarity: Similarity
    copied_pixels: Figures = Figures()
    copy_paste: Figures = Figures()

    @pydantic.model_validator(mode="after")
    def faces_are_measured(self):
        measured = (each.mean for each in (self.similarity, self.copied_pixels))
        if self.similarity.coverage and not all(each is not None and math.isfinite(each) for each in measured):
            raise ValueError("a face was seen and not measured")
        return self


class Report(pydantic.BaseModel):
    """What is read of Identity Report's JSON."""

    embedder: str
    summary: Summary


class _Record(pydantic.BaseModel):
    id: str
    workflow: str
    person: str
    prompt: str
    seed: int
    tries: int


class Failed(_Record):
    error: str


class _Rendered(_Record):
    files: list[str]
    seconds: float = pydantic.Field(ge=0, allow_inf_nan=False)
    worker: str


class NotMeasured(_Rendered):
    not_measured: str


class Measured(_Rendered):
    report: Report


RECORDS: pydantic.TypeAdapter = pydantic.TypeAdapter(Failed | NotMeasured | Measured)


class _Saved(pydantic.BaseModel):
    filename: str
    subfolder: str = ""
    type: str = "output"


def saved(outputs: dict, graph: dict) -> list[dict[str, str]]:
    """What the saving nodes of a filled workflow wrote, as ComfyUI's /view takes it.

    outputs: node id -> what the node put into the UI.

    Raises PromptFailed where a node says something else, and where nothing was saved.
    """
    try:
        saving = of_class(graph, *SAVES)  # nodes that ComfyUI put in place of others have ids of their own
        found = [_Saved.model_validate(item).model_dump() for key, output in outputs.items() if key in saving
                 for item in output["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise PromptFailed("a node that saves did not say what it wrote: use ComfyUI's own Save Video or Save Image"
                           ) from error
    if not found:
        raise PromptFailed("no node that saves was run: look at the workflow in ComfyUI, where a switch may leave out "
                           "Save Video or Save Image")
    return found


def reported(outputs: dict) -> dict:
    """Identity Report's figures.

    outputs: as for ``saved``.

    Raises PromptFailed of the node RECORD where they are something else.
    """
    try:
        (text,) = outputs[RECORD]["text"]
        Report.model_validate_json(text, strict=True)
        return json.loads(text)
    except (KeyError, TypeError, ValueError) as error:
        raise PromptFailed("the figures of Identity Report have another shape: have the same version of the pack on "
                           "the server, and no other pack that replaces Identity Report or Preview as Text",
                           RECORD) from error
