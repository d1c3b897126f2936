"""Measure finished videos against the photo, and pick the best."""
from comfy_api.latest import io

from ..standin_core.evaluation import (
    EMBEDDERS,
    REGIONS,
    CompareSettings,
    as_json,
    as_text,
    compare,
    contact_sheet,
    face_embedder_refusals,
    plot,
    rank,
    ranking_sheet,
    split_videos,
)
from ..standin_core.face import installed_models
from ..standin_core.likeness import MOST_COPIED
from .shared import ADVANCED, CATEGORY, checked, found_by, min_score_input, only, per_picture, previews


def compare_inputs():
    return (
        io.Combo.Input("embedder", options=list(EMBEDDERS), tooltip=(
            'The network that compares the pictures. "auto" uses insightface if you installed it with a model pack, '
            'else "arcface" (the ArcFace of facexlib) or "sface" if its file is installed, else CLIP vision. Figures '
            'of different embedders cannot be compared.')),
        io.Combo.Input("region", options=list(REGIONS), tooltip=(
            '"face" compares the largest face of each frame. "whole frame" compares the entire frame, for subjects '
            'without a face, and needs CLIP vision.')),
        min_score_input(),
    )


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
                *compare_inputs(),
            ],
            outputs=[
                io.Image.Output("plot", tooltip="A plot of similarity and copied pixels over the frames."),
                io.Image.Output("contact_sheet", tooltip=(
                    "The photo, and the frames that are least and most similar to it.")),
                io.String.Output("report", tooltip="The figures in words."),
                io.String.Output("json", tooltip="The figures as JSON, overall and for every frame."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, embedder, **inputs):
        return installed_models(), face_embedder_refusals() if embedder == "auto" else None

    @classmethod
    @checked
    def execute(cls, images, reference_image, clip_vision=None, **settings):
        result = compare(images, reference_image, CompareSettings(**settings), clip_vision, per_picture(images))
        pictures, text = (plot(result), contact_sheet(result)), result.as_text()
        return io.NodeOutput(*pictures, text, result.as_json(),
                             ui={"images": previews(cls, *pictures), "text": (text,)})


class BestOfN(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="BestOfN",
            display_name="Best of N",
            category=CATEGORY,
            is_input_list=True,  # the videos of several seeds are a list
            is_output_node=True,
            **found_by("best of", "choose a seed", "rank", "pick", "select", "likeness", "face similarity"),
            description="Ranks videos or pictures by how similar the person is to the photo, puts those that merely "
                        "copy the photo last, and outputs the best.",
            inputs=[
                io.Image.Input("images", tooltip=(
                    "The videos: a list with one batch of frames for each, or one batch that frames_per_video cuts.")),
                io.Image.Input("reference_image", tooltip=(
                    "The photo that was given to the model. Further pictures in the batch are other photos of the "
                    "same person; copying is then measured against them.")),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=(
                    "Any model from Load CLIP Vision. It is used if no face recognition network is installed.")),
                io.Int.Input("seeds", optional=True, force_input=True, min=0, max=2**64 - 1, tooltip=(
                    "The list of seeds that the videos were sampled with, in their order.")),
                io.Int.Input("frames_per_video", default=0, min=0, max=10000, tooltip=(
                    "Number of frames of one video in a batch; 1 compares single pictures. 0 takes each batch of the "
                    "list for one video.")),
                *compare_inputs(),
                io.Float.Input("most_copied", default=MOST_COPIED, min=0.0, max=1.0, step=0.05, **ADVANCED, tooltip=(
                    "A video that copies a larger share of the photo than this goes to the end: 0 is none of it, 1 "
                    "all of it. Higher lets more copies pass; 1 orders by likeness alone.")),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The frames of the best video."),
                io.Int.Output("seed", tooltip="The seed of the best video; without seeds, its place in the list."),
                io.Image.Output("contact_sheet", tooltip="Frames of all videos, the best first."),
                io.String.Output("report", tooltip="Likeness and copying of every video, the best first."),
                io.String.Output("json", tooltip="The same as JSON."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return installed_models(), face_embedder_refusals()

    @classmethod
    @checked
    def execute(cls, images, reference_image, seeds=None, clip_vision=None, **single):
        photo = only(reference_image, "reference_image")
        clip_vision = only(clip_vision, "clip_vision") if clip_vision else None
        given = {name: only(values, name) for name, values in single.items()}
        videos = split_videos(images, given.pop("frames_per_video"))
        ranking = rank(videos, photo, most_copied=given.pop("most_copied"), seeds=seeds,
                       settings=CompareSettings(**given), clip_vision=clip_vision, progress=per_picture(*videos))
        best, text, sheet = ranking[0], as_text(ranking), ranking_sheet(ranking, videos)
        return io.NodeOutput(videos[best.index], best.index if best.seed is None else best.seed, sheet, text,
                             as_json(ranking), ui={"images": previews(cls, sheet), "text": (text,)})
