"""Why a video or a clip is left out of the data: a cause to count by, and a detail that helps to change that."""
from __future__ import annotations

import enum
from dataclasses import dataclass

from ...errors import UserError


class Cause(enum.Enum):
    """The values stand in manifests on the disk and in what users read."""

    NO_CAPTION = "no caption"
    TOO_SHORT = "too short"
    NO_FACE = "no face in the clip"
    NO_REFERENCE = "no face outside of the clip"
    UNREADABLE = "cannot be read"
    NOT_VIDEO = "has no video in it"
    PHOTO_LOST = "a reference photo is missing or damaged"
    NOW_SHORTER = "the video is shorter than it was"


@dataclass(frozen=True, slots=True)
class Drop:
    """Why something was left out.

    cause: what drops are counted by.
    detail: what differs from one drop of this cause to the next; may be empty.
    """

    cause: Cause
    detail: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.cause.value, self.detail)))


class Unusable(UserError):
    """A video or a photo that is left out while the others are read; ``drop`` says why."""

    def __init__(self, cause: Cause, detail: str = ""):
        self.drop = Drop(cause, detail)
        super().__init__(str(self.drop))
