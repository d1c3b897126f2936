"""Swap a face in a video."""
from comfy_api.latest import io

from ..standin_core.face_swap import (
    COLOR_REGIONS,
    MASK_EDGES,
    SWAP_BACKGROUNDS,
    SwapSettings,
    composite_swap,
    encode_swap,
    prepare_swap,
)
from .shared import (
    ADVANCED,
    CATEGORY,
    FaceCropType,
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


class FaceSwapPrepare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FaceSwapPrepare",
            display_name="Face Swap Prepare",
            category=CATEGORY,
            **found_by("face swap", "deepfake", "reactor", "paste face"), **keeps_what_it_shows(),
            description="Follows one face through a video and pastes the reference face over it, so that sampling "
                        "with the identity and a denoise below 1 can turn the paste into a new face. Trims the video "
                        "to 4k+1 frames and crops it to multiples of 16. Experimental, as the Stand-In authors say of "
                        "their own face swap.",
            inputs=[
                io.Image.Input("images", tooltip="The frames of the video."),
                FaceCropType.Input("face", tooltip=(
                    "The reference face with its background removed, from the output face of Face Preprocess.")),
                detector_input(),
                *followed_face_inputs(),
                io.Float.Input("smoothing", default=0.5, min=0.0, max=1.0, step=0.05, **ADVANCED, tooltip=(
                    "Smooths the key points over time. Higher removes more jitter of a still face and may lag behind "
                    "a fast one. 0 treats each frame on its own, as the Stand-In authors do.")),
                io.Int.Input("hold_frames", default=8, min=0, max=1000, **ADVANCED, tooltip=(
                    "Number of frames for which the last mask stays while the face is not found. Higher bridges "
                    "longer turns and occlusions. 0 leaves such frames unchanged, as the Stand-In authors do.")),
                download_input(),
                min_score_input(),
                *given_face_inputs("every frame"),
            ],
            outputs=[
                io.Image.Output("images", tooltip=(
                    "The frames with the reference face pasted on. Connect them to Face Swap Encode.")),
                io.Mask.Output("mask", tooltip="Where the paste lies, with one mask for each frame."),
                io.Int.Output("width", tooltip="Width of the frames in pixels."),
                io.Int.Output("height", tooltip="Height of the frames in pixels."),
                io.Int.Output("length", tooltip="Number of frames, 4k+1."),
                io.String.Output("report", tooltip="In how many frames the face was found."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, detector, **inputs):
        return face_models_for(detector)

    @classmethod
    @checked
    def execute(cls, images, face, face_box=None, face_mask=None, face_landmarks=None, **settings):
        swap = prepare_swap(images, face, SwapSettings(**settings), face_box, face_mask, face_landmarks)
        length, height, width = swap.mask.shape
        return io.NodeOutput(swap.frames, swap.mask, width, height, length, swap.report,
                             ui={"text": (swap.report,)})


class FaceSwapEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FaceSwapEncode",
            display_name="Face Swap Encode",
            category=CATEGORY,
            **found_by("face swap", "video mask"),
            description="Encodes the video from Face Swap Prepare and converts its mask to latent frames, for a "
                        "sampler with a denoise below 1. The Stand-In authors use 0.85.",
            inputs=[
                io.Image.Input("images", tooltip="The frames from Face Swap Prepare."),
                io.Mask.Input("mask", tooltip="The mask from Face Swap Prepare."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
                io.Combo.Input("background", options=list(SWAP_BACKGROUNDS), tooltip=(
                    '"locked" puts the source video back outside the mask after every step: nothing else changes, but '
                    'a contour may show. "free", the default of the Stand-In authors, lets the whole frame change: '
                    'the face looks more natural, but the background drifts more with a higher denoise.')),
                io.Combo.Input("mask_edge", options=list(MASK_EDGES), tooltip=(
                    'Used by "locked" only. "hard" denoises the latent pixels that the mask covers by more than half '
                    'and keeps the rest. "soft" blends by the covered share, which hides the contour.')),
            ],
            outputs=[io.Latent.Output("latent", tooltip=(
                "The video to denoise. Connect it to Stand-In Sampler or any other sampler."))],
        )

    @classmethod
    @checked
    def execute(cls, images, mask, vae, background, mask_edge):
        return io.NodeOutput(encode_swap(vae, images, mask, background, mask_edge))


class FaceSwapComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FaceSwapComposite",
            display_name="Face Swap Composite",
            category=CATEGORY,
            **found_by("face swap", "paste back", "restore background"),
            description="Puts the swapped face back into the source video. The result keeps the size and the "
                        "background of the source.",
            inputs=[
                io.Image.Input("source", tooltip="The same frames that went into Face Swap Prepare."),
                io.Image.Input("images", tooltip="The swapped video from VAE Decode."),
                io.Mask.Input("mask", tooltip="The mask from Face Swap Prepare, or one mask for all frames."),
                io.Int.Input("feather", default=12, min=0, max=256, tooltip=(
                    "Width in pixels over which the edge of the mask fades to either side. Higher hides the seam and "
                    "lets in more of the swapped background. 0 cuts along the mask.")),
                io.Float.Input("color_match", default=1.0, min=0.0, max=1.0, step=0.05, tooltip=(
                    "How closely the colours of the swapped video are matched to the source. Higher matches them more "
                    "closely; 0 leaves them unchanged.")),
                io.Combo.Input("color_region", options=list(COLOR_REGIONS), tooltip=(
                    'Where the colours are compared. "surroundings" corrects a colour drift of the whole picture and '
                    'leaves the new skin alone. "face" gives the new face the colours of the old one.')),
            ],
            outputs=[io.Image.Output("images", tooltip="As many frames as were swapped, in the size of the source.")],
        )

    @classmethod
    @checked
    def execute(cls, source, images, mask, feather, color_match, color_region):
        return io.NodeOutput(composite_swap(source, images, mask, feather, color_match, color_region))
