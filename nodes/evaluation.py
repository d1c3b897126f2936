"""Measure a finished video against the photo."""
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..standin_core.evaluation import (
    EMBEDDERS,
    REGIONS,
    CompareSettings,
    compare,
    contact_sheet,
    face_embedder_refusals,
    plot,
)
from ..standin_core.face import installed_models
from .shared import ADVANCED, CATEGORY, checked, found_by, show_text, shown


class IdentityReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IdentityReport",
            display_name="Identity Report",
            category=CATEGORY,
            is_output_node=True,  # it measures, whether or not a node takes the figures
            **found_by("identity", "face similarity", "likeness", "arcface", "same person", "measure"),
            description="Measures in every frame how similar the person is to the photo, and how much of the photo is "
                        "merely copied. A good video has a high similarity with few copied pixels.",
            inputs=[
                io.Image.Input("images", tooltip="The frames of the video."),
                io.Image.Input("reference_image", tooltip=(
                    "The photo that was given to the model. Further pictures in the batch are other photos of the "
                    "same person; they add the copy-paste measure.")),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=(
                    "Any model from Load CLIP Vision. It tells faces apart less finely than a face recognition "
                    "network, but also compares subjects without a face. If it is connected, the report adds the CLIP "
                    "distance of whole pictures.")),
                io.Combo.Input("embedder", options=list(EMBEDDERS), tooltip=(
                    'The network that compares the pictures. "auto" uses insightface if you installed it with a model '
                    'pack, else "arcface" (the ArcFace of facexlib) or "sface" if its file is installed, else CLIP '
                    'vision. Figures of different embedders cannot be compared.')),
                io.Combo.Input("region", options=list(REGIONS), tooltip=(
                    '"face" compares the largest face of each frame. "whole frame" compares the entire frame, for '
                    'subjects without a face, and needs CLIP vision.')),
                io.Float.Input("min_score", default=0.5, min=0.0, max=1.0, step=0.05, **ADVANCED, tooltip=(
                    "Lowest score at which a detection counts as a face; the cascade has no score. Higher drops "
                    "doubtful faces; lower finds more faces and more false ones.")),
            ],
            outputs=[
                io.Image.Output("plot", tooltip="A plot of similarity and copied pixels over the frames."),
                io.Image.Output("contact_sheet", tooltip=(
                    "The photo, and the frames that are least and most similar to it.")),
                io.String.Output("report", tooltip="The figures in words."),
                io.String.Output("json", tooltip="The figures as JSON, overall and for every frame."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, embedder, **inputs):
        return installed_models(), face_embedder_refusals() if embedder == "auto" else None

    @classmethod
    @checked
    def execute(cls, images, reference_image, clip_vision=None, **settings):
        progress = ProgressBar(len(images))
        result = compare(images, reference_image, CompareSettings(**settings), clip_vision,
                         lambda: progress.update(1))
        pictures, text = (plot(result), contact_sheet(result)), result.as_text()
        show_text(cls, text)
        return io.NodeOutput(*pictures, text, result.as_json(),
                             ui={"images": shown(cls, *pictures), "text": (text,)})
