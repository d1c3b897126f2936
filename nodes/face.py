"""Turn a photo into a face crop."""
from comfy_api.latest import io

from ..standin_core.face import (
    BORDER_RULES,
    FROM_PRESET,
    KEPT_LABELS,
    NO_FACE,
    NORMALIZATIONS,
    PARSERS,
    PRESETS,
    WHICH,
    FaceSettings,
    crop_faces,
)
from .shared import (
    ADVANCED,
    CATEGORY,
    FaceCropType,
    checked,
    detector_input,
    download_input,
    face_models_for,
    found_by,
    given_face_inputs,
    min_score_input,
    per_picture,
    previews,
)


class FacePreprocess(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FacePreprocess",
            display_name="Face Preprocess",
            category=CATEGORY,
            is_output_node=True,  # the crop can be seen before anything else runs
            **found_by("identity", "face", "face crop", "person", "crop", "background removal"),
            description="Finds the face in a photo, crops it to a square and puts it on a plain background, as the "
                        "Stand-In authors do. It also runs by itself, so that you see the crop first.",
            inputs=[
                io.Image.Input("image", tooltip=(
                    "The photo. One clear, frontal face gives the best likeness. Transparent parts of the photo are "
                    "removed.")),
                io.Combo.Input("preset", options=list(PRESETS), tooltip=(
                    '"Stand-In inference" is what the Stand-In authors run: it crops at 1.5 and removes only the '
                    'background. "Stand-In ComfyUI preprocessor", also theirs, keeps only face and hair. "face only" '
                    'removes the hair too; "head and shoulders" crops at 2.5 or more. "Concat-ID" is what the '
                    'Concat-ID authors run: it turns and scales the face to fixed places in 448 pixels and removes '
                    'background, clothes and hat. "ID-Animator" does the same in 224 pixels and removes nothing.')),
                detector_input(),
                io.Combo.Input("which_face", options=list(WHICH), tooltip=(
                    'Which face to crop: the largest, or the one with the number face_index. The preview shows the '
                    'numbers, from left to right. "all" crops every face and gives a batch.')),
                io.Int.Input("face_index", default=0, min=0, max=99, tooltip=(
                    'Used by "from left" only: the number of the face in the preview. 0 is the leftmost face; higher '
                    'numbers are further to the right.')),
                io.Combo.Input("no_face", options=list(NO_FACE), tooltip=(
                    'What to do if no face is found. "error" stops before the long run. "whole image" pads the whole '
                    'photo to a square, as the Stand-In authors do for subjects without a face; so does detector '
                    '"none".')),
                io.Float.Input("crop_scale", default=1.5, min=1.0, max=4.0, step=0.05, tooltip=(
                    "Side of the crop relative to the face box. Higher keeps more hair and shoulders; lower fills the "
                    "crop with the face; 1 is the face box itself. The Stand-In authors use 1.5.")),
                io.Int.Input("size", default=512, min=64, max=2048, step=16, **ADVANCED, tooltip=(
                    "Side of the face crop in pixels. Lower is faster and loses detail; higher needs more memory and "
                    "gives more identity tokens than the adapter was trained with. The Stand-In authors use 512, "
                    'which gives 1,024 identity tokens. The presets "Concat-ID" and "ID-Animator" always give 448 and '
                    '224.')),
                io.String.Input("background", default=FROM_PRESET, **ADVANCED, tooltip=(
                    'Colour behind the subject and in the padding: white, grey, another colour name, or #rrggbb. '
                    '"preset" is white for Stand-In and black for Concat-ID and ID-Animator.')),
                io.Combo.Input("parser", options=list(PARSERS), **ADVANCED, tooltip=(
                    'What removes the background. "auto" uses BiSeNet if its file is installed and keeps the '
                    'background otherwise; "bisenet" needs the file; "none" keeps the background. A connected '
                    'subject_mask replaces the parser.')),
                download_input("; BiSeNet 53 MB"),
                min_score_input(),
                io.Combo.Input("border_rule", options=[FROM_PRESET, *BORDER_RULES], **ADVANCED, tooltip=(
                    'When a face counts as filling the photo, which is then padded whole instead of cropped. "all '
                    'sides": the face is near all four borders, as in the inference code of the Stand-In authors. '
                    '"any side": it is near any border, as in their ComfyUI preprocessor; a face at the edge then '
                    'comes out tiny.')),
                io.Combo.Input("keep", options=[FROM_PRESET, *KEPT_LABELS], **ADVANCED, tooltip=(
                    "Which parts of the person BiSeNet keeps. Everything else becomes background.")),
                io.Combo.Input("normalization", options=[FROM_PRESET, *NORMALIZATIONS], **ADVANCED, tooltip=(
                    'How pixel values are scaled for BiSeNet. "0.5" is the inference code of the Stand-In authors, '
                    'which made their results. "imagenet" is what BiSeNet was trained with and what their ComfyUI '
                    'preprocessor uses.')),
                io.Int.Input("feather", default=0, min=0, max=128, **ADVANCED, tooltip=(
                    "Width in pixels over which the mask fades inwards. Higher hides jagged edges and loses some "
                    "hair. 0 is the hard edge that the Stand-In authors use.")),
                io.Boolean.Input("level_eyes", default=False, **ADVANCED, tooltip=(
                    "On: rotates the photo until the eyes are level, which needs key points. Off: the head keeps its "
                    "tilt, as in the code of the Stand-In authors.")),
                io.Boolean.Input("balance_colors", default=False, **ADVANCED, tooltip=(
                    "On: removes a colour cast and stretches the exposure. Off: the photo keeps its light, as in the "
                    "code of the Stand-In authors.")),
                *given_face_inputs("the photo"),
                io.Mask.Input("subject_mask", optional=True, tooltip=(
                    "A mask from any matting node, 1 where the subject is. It replaces the parser and the alpha "
                    "channel. The mask of Load Image is 1 where the photo is transparent: invert it first.")),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The square face crop. Connect it to Apply Identity Branch."),
                io.Mask.Output("mask", tooltip=(
                    "1 where the subject is. If the background was kept, 1 where the photo is.")),
                io.Image.Output("rgba", tooltip=(
                    "The face crop before the background is replaced, with the mask as its alpha channel.")),
                io.Image.Output("preview", tooltip=(
                    "The photo with the face box (green), the crop (blue), the key points (red) and the number of each "
                    "face. Removed parts are dark.")),
                io.String.Output("verdict", tooltip="Size, sharpness and pose of each face, and how it was cropped."),
                FaceCropType.Output("face", tooltip=(
                    "The face crop with its key points. Connect it to Face Swap Prepare.")),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, detector, parser, **inputs):
        return face_models_for(detector, parser)

    @classmethod
    @checked
    def execute(cls, image, face_box=None, face_mask=None, face_landmarks=None, subject_mask=None, **settings):
        face = crop_faces(image, FaceSettings(**settings), face_box, face_mask, face_landmarks, subject_mask,
                          per_picture(image))
        return io.NodeOutput(face.image, face.rgba[..., 3], face.rgba, face.preview, face.verdict, face,
                             ui={"images": previews(cls, face.image, face.preview), "text": (face.verdict,)})
