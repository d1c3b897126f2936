"""A face of a video for another one."""
from comfy_api.latest import io

from ..standin_core.face import installed_models
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
    CATEGORY,
    FaceCropType,
    detector_input,
    download_input,
    given_face_inputs,
    min_score_input,
    show_text,
)


class FaceSwapPrepare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FaceSwapPrepare",
            display_name="Face Swap Prepare",
            category=CATEGORY,
            description="Follows one face through a video and warps the reference on it, for a partial denoise with "
                        "the identity. Trims to 4k+1 frames and crops to multiples of 16. Experimental, as the "
                        "authors say of theirs.",
            inputs=[
                io.Image.Input("images", tooltip="The frames of the video."),
                FaceCropType.Input("face", tooltip="The reference, cut out, from Face Preprocess."),
                detector_input(),
                io.Combo.Input("which_face", options=["largest", "from left"], tooltip=(
                    "Whom to follow: the largest face of the first frame that has one, or the one that face_index "
                    "counts from the left.")),
                io.Int.Input("face_index", default=0, min=0, max=99, tooltip=(
                    "For from left: 0 is the leftmost face, higher goes to the right.")),
                io.Float.Input("smoothing", default=0.5, min=0.0, max=1.0, step=0.05, tooltip=(
                    "Steadies the points of the face over time. Higher removes more jitter of a still face and may lag "
                    "behind a fast one; 0 is the authors', each frame by itself.")),
                io.Int.Input("hold_frames", default=8, min=0, max=1000, tooltip=(
                    "For how many frames without the face its last mask stays. Higher bridges longer turns and "
                    "occlusions; 0 is the authors', such frames pass through.")),
                download_input(),
                min_score_input(),
                *given_face_inputs("every frame"),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The frames with the reference warped on, for Face Swap Encode."),
                io.Mask.Output("mask", tooltip="Where the reference lies, a mask for each frame."),
                io.Int.Output("width", tooltip="Of the frames, in pixels."),
                io.Int.Output("height", tooltip="Of the frames, in pixels."),
                io.Int.Output("length", tooltip="Number of frames, 4k+1."),
                io.String.Output("report", tooltip="In how many frames the face was found."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, detector, **inputs):
        return installed_models() if detector == "auto" else ()

    @classmethod
    def execute(cls, images, face, face_box=None, face_mask=None, face_landmarks=None, **settings):
        swap = prepare_swap(images, face, SwapSettings(**settings), face_box, face_mask, face_landmarks)
        show_text(cls, swap.report)
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
            description="Encodes the prepared video and brings the mask to latent frames, for a sampler at a denoise "
                        "below 1 (the authors take 0.85).",
            inputs=[
                io.Image.Input("images", tooltip="The frames from Face Swap Prepare."),
                io.Mask.Input("mask", tooltip="The mask from Face Swap Prepare."),
                io.Vae.Input("vae", tooltip="Wan 2.1's VAE."),
                io.Combo.Input("background", options=list(SWAP_BACKGROUNDS), tooltip=(
                    "locked puts the source back outside the mask after every step: nothing else changes, and a "
                    "contour may show. free lets all of it change: a more natural face, and a background that "
                    "drifts with a higher denoise (the authors' default).")),
                io.Combo.Input("mask_edge", options=list(MASK_EDGES), tooltip=(
                    "For locked: hard denoises latent pixels that the mask covers by more than half, and keeps the "
                    "rest; soft blends by how much is covered, which hides the contour.")),
            ],
            outputs=[io.Latent.Output("latent", tooltip="For Stand-In Sampler or any other.")],
        )

    @classmethod
    def execute(cls, images, mask, vae, background, mask_edge):
        return io.NodeOutput(encode_swap(vae, images, mask, background, mask_edge))


class FaceSwapComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FaceSwapComposite",
            display_name="Face Swap Composite",
            category=CATEGORY,
            description="Puts the swapped face back over the source video, whose size and background it keeps.",
            inputs=[
                io.Image.Input("source", tooltip="The frames that went into Face Swap Prepare."),
                io.Image.Input("images", tooltip="The swapped video from VAE Decode."),
                io.Mask.Input("mask", tooltip="The mask from Face Swap Prepare, or one mask for all frames."),
                io.Int.Input("feather", default=12, min=0, max=256, tooltip=(
                    "Pixels over which the edge fades to either side. Higher hides the seam and lets more of the "
                    "swapped background in; 0 cuts along the mask.")),
                io.Float.Input("color_match", default=1.0, min=0.0, max=1.0, step=0.05, tooltip=(
                    "How far the colours of the swapped video are brought to the source's: higher nearer, 0 leaves "
                    "them.")),
                io.Combo.Input("color_region", options=list(COLOR_REGIONS), tooltip=(
                    "Where colours are compared: surroundings corrects a drift of the whole picture and leaves the new "
                    "skin alone; face gives the new face the colours of the old one.")),
            ],
            outputs=[io.Image.Output("images", tooltip="As many frames as were swapped, in the source's size.")],
        )

    @classmethod
    def execute(cls, source, images, mask, feather, color_match, color_region):
        return io.NodeOutput(composite_swap(source, images, mask, feather, color_match, color_region))
