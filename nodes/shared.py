"""What several nodes share: types, inputs, and how a node shows pictures."""
import dataclasses
import functools
from collections.abc import Callable

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..standin_core.checks import check_choice, check_made, check_number, check_switch, check_text
from ..standin_core.concat_id.model import ConcatID
from ..standin_core.contracts import FaceCrop
from ..standin_core.errors import UserError
from ..standin_core.face import DETECTORS, installed_models
from ..standin_core.face_swap import FaceTrack
from ..standin_core.folders import Fingerprint, filenames, listed_file
from ..standin_core.id_animator.adapter import Adapter as IDAnimatorAdapter
from ..standin_core.person import Person
from ..standin_core.stand_in.adapter import Adapter as StandInAdapter
from ..standin_core.stand_in.attention_map import AttentionMap
from ..standin_core.train import TrainingData

CATEGORY = "Stand-In"

StandIn = io.Custom("STAND_IN")
ConcatIDType = io.Custom("CONCAT_ID")
IDAnimatorType = io.Custom("ID_ANIMATOR")
FaceCropType = io.Custom("FACE_CROP")
PersonType = io.Custom("PERSON")
FaceTrackType = io.Custom("FACE_TRACK")
AttentionMapType = io.Custom("IDENTITY_ATTENTION_MAP")
TrainingDataType = io.Custom("STAND_IN_TRAINING_DATA")

# by the types of the pack: what goes through such a socket, and what makes it
MADE = {
    StandIn.io_type: (StandInAdapter, "the output stand_in of Load Stand-In or Train Stand-In"),
    ConcatIDType.io_type: (ConcatID, "the output concat_id of Load Concat-ID or Train Concat-ID"),
    IDAnimatorType.io_type: (IDAnimatorAdapter, "the output id_animator of Load ID-Animator"),
    FaceCropType.io_type: (FaceCrop, "the output face of Face Preprocess or Load Person"),
    PersonType.io_type: (Person, "the output person of Load Person or Save Person"),
    FaceTrackType.io_type: (FaceTrack, "the output face_track of Refine Faces Prepare"),
    AttentionMapType.io_type: (list[AttentionMap], "the output attention_map of Stand-In Sampler"),
    TrainingDataType.io_type: (TrainingData, "the output training_data of Prepare Training Data"),
}

ADVANCED = {"advanced": True}  # the page folds these inputs away
EVERY_NODE = ("stand-in", "stand in", "standin")  # what every node of the pack is found by


def found_by(*words: str) -> dict:
    """Schema fields: what a user may type into the page's search, beside the node's own name."""
    return _known(search_aliases=[*EVERY_NODE, *words])


def keeps_what_it_shows() -> dict:
    """Schema fields: what the node shows comes back with every run in which ComfyUI has its result already."""
    return _known(has_intermediate_output=True)


def _known(**fields) -> dict:
    """Without the fields that this ComfyUI does not know."""
    return {name: value for name, value in fields.items()
            if name in {field.name for field in dataclasses.fields(io.Schema)}}


class FileInput(io.Combo.Input):
    """A file of one of ComfyUI's model folders, which ``folders.listed_file`` finds."""

    def __init__(self, name: str, folder: str, tooltip: str):
        super().__init__(name, options=filenames(folder), tooltip=tooltip)


def face_models_for(*chosen: str) -> tuple[Fingerprint, ...]:
    """What a node's fingerprint has of the face models.

    chosen: the node's detector, and its parser where it has one; the result of "auto" depends on what is installed.
    """
    return installed_models() if "auto" in chosen else ()


def loads(load: Callable, folder: str, name: str):
    """The output of a node that loads an adapter, which the user may interrupt.

    load: takes the file and what raises where the user has interrupted.
    folder, name: as for ``folders.listed_file``.
    """
    return io.NodeOutput(load(listed_file(folder, name), throw_exception_if_processing_interrupted))


def checked(execute):
    """A node's ``execute`` that first holds the value of every widget and of every socket of the pack's own types
    against the node's own schema.

    ComfyUI does so for what is typed, and not for what comes through a link: there it compares the names of types, and
    any node may say that it makes them. Numbers of numpy become Python's, which a run's report can hold.
    """
    @functools.wraps(execute)
    def checked_execute(cls, **inputs):
        schema = cls.SCHEMA or cls.GET_SCHEMA()  # ComfyUI runs a class that takes no attributes any more
        for widget in schema.inputs:
            came = inputs.get(widget.id)
            if widget.id in inputs and not (widget.optional and came is None):
                inputs[widget.id] = ([_checked(widget, each) for each in came] if schema.is_input_list
                                     else _checked(widget, came))
        return execute(cls, **inputs)

    return checked_execute


def _checked(widget, value):
    if isinstance(widget, io.Int.Input | io.Float.Input):
        is_whole = isinstance(widget, io.Int.Input)
        check_number(value, widget.id, widget.min, widget.max, whole=is_whole)
        return int(value) if is_whole else float(value)
    if isinstance(widget, io.String.Input | FileInput):
        check_text(value, widget.id)
    elif isinstance(widget, io.Boolean.Input):
        check_switch(value, widget.id)
    elif isinstance(widget, io.Combo.Input):
        check_choice(value, widget.id, widget.options)
    elif widget.get_io_type() in MADE:
        check_made(value, widget.id, *MADE[widget.get_io_type()])
    return value


def only(values: list, name: str):
    """The one value of an input of a node that takes lists."""
    if len(values) != 1:
        raise UserError(f"{name} must be one value, but {len(values)} came: connect a single one, not a list.")
    return values[0]


def detector_input():
    return io.Combo.Input("detector", options=list(DETECTORS), default="auto", **ADVANCED, tooltip=(
        'What finds the face. "auto" uses RetinaFace if its file is installed, else insightface if you installed it, '
        'else YuNet if its file is installed, else the built-in cascade (frontal faces only, no key points). "none" '
        'looks for no face: Face Preprocess then takes the whole image, and other nodes find nobody.'))


def min_score_input():
    return io.Float.Input("min_score", default=0.5, min=0.0, max=1.0, step=0.05, **ADVANCED, tooltip=(
        "Lowest score at which a detection counts as a face; the cascade has no score. Higher drops doubtful faces; "
        "lower finds more faces and more false ones."))


def download_input(others: str = ""):
    """others: the files that the node needs beside a detector."""
    return io.Boolean.Input("download_missing", default=False, tooltip=(
        f'On: downloads missing face models (RetinaFace 110 MB, or YuNet 0.2 MB if detector is "yunet"{others}) from '
        'their publishers on GitHub into models/facexlib and checks their hashes. Off: downloads nothing.'))


def person_input(what_it_spares: str):
    return PersonType.Input("person", optional=True, tooltip=f"A person from Load Person. {what_it_spares}")


def followed_face_inputs():
    return one_face_inputs("Which face to follow: the largest in the first frame that has one, or the one that "
                           "face_index counts from the left.")


def one_face_inputs(which: str):
    """which: the tooltip of which_face."""
    return (
        io.Combo.Input("which_face", options=["largest", "from left"], tooltip=which),
        io.Int.Input("face_index", default=0, min=0, max=99, tooltip=(
            'Used by "from left" only. 0 is the leftmost face; higher numbers are further to the right.')),
    )


def given_face_inputs(where: str):
    return (
        # forced to be an input, or it is a widget with a box of its own
        io.Custom("BOUNDING_BOX").Input("face_box", optional=True, extra_dict={"forceInput": True}, tooltip=(
            f"The face in {where} as a bounding box, from any node that outputs one. It replaces the detector.")),
        io.Mask.Input("face_mask", optional=True, tooltip=(
            f"The face in {where} as a mask, whose bounding box is used. It replaces the detector.")),
        io.Custom("FACE_LANDMARKS").Input("face_landmarks", optional=True, tooltip=(
            f"The face in {where} with key points, from ComfyUI's Detect Face Landmarks (MediaPipe). It replaces the "
            "detector.")),
    )


def per_picture(*batches) -> Callable[[], None]:
    """A function that moves the node's progress bar on by one picture of the batches.

    The pictures are counted at its first call: what came is pictures only once the engine has checked it.
    """
    bar = functools.cache(lambda: ProgressBar(sum(map(len, batches))))
    return lambda: bar().update(1)


def previews(cls, *batches) -> list[dict]:
    """The pictures of several batches, for the node to show."""
    return [picture for batch in batches for picture in ui.PreviewImage(batch, cls=cls).as_dict()["images"]]
