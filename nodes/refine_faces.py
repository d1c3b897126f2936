"""Refine small faces of a finished video."""
from comfy_api.latest import io

from ..standin_core.face_swap import COLOR_REGIONS, RefineSettings, enlarge_small_face, enlarged, put_back
from .shared import (
    ADVANCED,
    CATEGORY,
    FaceTrackType,
    checked,
    detector_input,
    download_input,
    face_models_for,
    followed_face_inputs,
    found_by,
    given_face_inputs,
    keeps_what_it_shows,
    min_score_input,
)


class RefineFacesPrepare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RefineFacesPrepare",
            display_name="Refine Faces Prepare",
            category=CATEGORY,
            **found_by("refine face", "face detailer", "small face", "distant face", "adetailer"),
            **keeps_what_it_shows(),
            description="Follows one small face through a finished video and enlarges a steady square around it, so "
                        "that sampling with the identity and a low denoise can draw it anew. Refine Faces Composite "
                        "puts it back. Refine several people one after the other.",
            inputs=[
                io.Image.Input("images", tooltip="The frames of the finished video."),
                *followed_face_inputs(),
                io.Int.Input("largest_face", default=128, min=8, max=4096, tooltip=(
                    "Longer side of the face box in pixels, from hairline to chin. Frames with a larger face stay as "
                    "they are. Higher refines more frames.")),
                io.Float.Input("crop_scale", default=2.5, min=1.2, max=8.0, step=0.1, tooltip=(
                    "Side of the square over the longer side of the face. Higher shows the model more of the scene and "
                    "enlarges the face less.")),
                io.Int.Input("size", default=624, min=64, max=2048, step=16, tooltip=(
                    "Side of the enlarged square in pixels. The adapters were trained on videos of 832x480, which "
                    "have as many pixels as 624x624. Higher draws finer detail and takes longer; lower is faster.")),
                io.Float.Input("smoothing", default=0.5, min=0.0, max=1.0, step=0.05, **ADVANCED, tooltip=(
                    "How steady the square is. Higher removes more shaking, but a fast face moves inside the square. "
                    "0 follows every detection.")),
                io.Int.Input("hold_frames", default=8, min=0, max=1000, **ADVANCED, tooltip=(
                    "Number of frames for which the face is refined while it is not found. Higher bridges longer turns "
                    "and occlusions. 0 leaves such frames unchanged.")),
                download_input(),
                detector_input(),
                min_score_input(),
                *given_face_inputs("every frame"),
            ],
            outputs=[
                io.Image.Output("images", tooltip=(
                    "The enlarged face, 4k+1 square frames. Connect them to Face Swap Encode.")),
                io.Mask.Output("mask", tooltip=(
                    "Where the face is in them. Connect it to Face Swap Encode and to Refine Faces Composite.")),
                FaceTrackType.Output("face_track", tooltip=(
                    "Where the squares lie in the video. Connect it to Refine Faces Composite.")),
                io.String.Output("report", tooltip=(
                    "Which frames are refined, and how large the face is in them; or why none is, and the video goes "
                    "on unchanged.")),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, detector, **inputs):
        return face_models_for(detector)

    @classmethod
    @checked
    def execute(cls, images, face_box=None, face_mask=None, face_landmarks=None, **settings):
        face = enlarge_small_face(images, RefineSettings(**settings), face_box, face_mask, face_landmarks)
        return io.NodeOutput(face.frames, face.mask, face.track, face.report, ui={"text": (face.report,)})


class RefineFacesComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RefineFacesComposite",
            display_name="Refine Faces Composite",
            category=CATEGORY,
            **found_by("refine face", "face detailer", "small face", "paste back"),
            description="Puts the refined face back into the video, with a soft edge and matched colours. Everything "
                        "else stays as it was.",
            inputs=[
                io.Image.Input("source", tooltip="The same frames that went into Refine Faces Prepare."),
                io.Image.Input("images", tooltip="The refined face from VAE Decode."),
                io.Mask.Input("mask", tooltip="The mask from Refine Faces Prepare."),
                FaceTrackType.Input("face_track", tooltip="The face track from Refine Faces Prepare."),
                io.Int.Input("feather", default=24, min=0, max=256, tooltip=(
                    "Width in pixels of the enlarged face over which the edge of the mask fades to either side. Higher "
                    "hides the seam and lets in more of the refined surroundings. 0 cuts along the mask.")),
                io.Float.Input("color_match", default=1.0, min=0.0, max=1.0, step=0.05, tooltip=(
                    "How closely the colours of the refined face are matched to the source. Higher matches them more "
                    "closely; 0 leaves them unchanged.")),
                io.Combo.Input("color_region", options=list(COLOR_REGIONS), tooltip=(
                    'Where the colours are compared, inside the square. "surroundings" corrects a colour drift of the '
                    'whole square. "face" gives the refined face the colours of the old one.')),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The video with the refined face, as many frames as came."),
                io.Image.Output("face", tooltip=(
                    "The same squares of the result, enlarged. Connect them to Identity Report, beside the images of "
                    "Refine Faces Prepare, for before and after.")),
            ],
        )

    @classmethod
    @checked
    def execute(cls, source, images, mask, face_track, feather, color_match, color_region):
        result = put_back(source, images, mask, face_track, feather, color_match, color_region)
        return io.NodeOutput(result, enlarged(result, face_track, images.shape[1]))
