"""A photo to a face crop."""
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
    installed_models,
)
from .shared import (
    ADVANCED,
    CATEGORY,
    FaceCropType,
    detector_input,
    download_input,
    given_face_inputs,
    min_score_input,
    show_text,
    shown,
)


class FacePreprocess(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FacePreprocess",
            display_name="Face Preprocess",
            category=CATEGORY,
            description="Finds the face in a photo, crops it to a square and puts it on a plain background, as the "
                        "authors do. The preset sets what is not set by hand.",
            inputs=[
                io.Image.Input("image", tooltip=(
                    "The photo. One clear, frontal face gives the best likeness. What an alpha channel leaves "
                    "transparent is removed.")),
                io.Combo.Input("preset", options=list(PRESETS), tooltip=(
                    "Stand-In inference is what the authors run: crop 1.5, all but the background kept. Their ComfyUI "
                    "preprocessor keeps face and hair alone, and pads the whole photo if the face is near any border. "
                    "Face only drops the hair too; head and shoulders crops at 2.5.")),
                detector_input(),
                io.Combo.Input("which_face", options=list(WHICH), tooltip=(
                    "The largest face, the one that face_index counts from the left, or all: a batch, one crop each.")),
                io.Int.Input("face_index", default=0, min=0, max=99, tooltip=(
                    "For from left: 0 is the leftmost face, higher goes to the right.")),
                io.Combo.Input("no_face", options=list(NO_FACE), tooltip=(
                    "Without a face: the whole image, padded to a square, as the authors do for subjects that have "
                    "none; or an error.")),
                io.Float.Input("crop_scale", default=0.0, min=0.0, max=4.0, step=0.05, tooltip=(
                    "Side of the crop relative to the face box; 0 takes the preset's. Higher keeps more hair and "
                    "shoulders, lower fills the crop with the face. The authors use 1.5.")),
                io.Int.Input("size", default=512, min=64, max=2048, step=16, tooltip=(
                    "Side of the result in pixels. 512, the authors' size, gives 1,024 identity tokens; lower is "
                    "faster and loses detail, higher costs memory and gives more tokens than the adapter knows.")),
                io.String.Input("background", default="white", tooltip=(
                    "Colour behind the subject and in the padding: white, grey, any other name, or #rrggbb. The "
                    "authors use white.")),
                io.Combo.Input("parser", options=list(PARSERS), tooltip=(
                    "What removes the background. auto takes BiSeNet where its file is and keeps the background "
                    "otherwise; none keeps it. A connected subject_mask takes its place.")),
                download_input(),
                min_score_input(),
                io.Combo.Input("border_rule", options=[FROM_PRESET, *BORDER_RULES], **ADVANCED, tooltip=(
                    "When a face fills the photo, which is then padded whole: near all four borders (the authors' "
                    "inference) or near any one (their preprocessor; a face at the edge comes out tiny).")),
                io.Combo.Input("keep", options=[FROM_PRESET, *KEPT_LABELS], **ADVANCED, tooltip=(
                    "Which parts BiSeNet keeps; the rest becomes background.")),
                io.Combo.Input("normalization", options=[FROM_PRESET, *NORMALIZATIONS], **ADVANCED, tooltip=(
                    "How pixels enter BiSeNet. 0.5 is the authors' inference code, with which their results were made; "
                    "imagenet is what the network was trained with and what their preprocessor uses.")),
                io.Int.Input("feather", default=0, min=0, max=128, **ADVANCED, tooltip=(
                    "Pixels over which the mask fades inwards. 0 is the authors' hard edge; higher hides jagged "
                    "edges and loses some hair.")),
                io.Boolean.Input("level_eyes", default=False, **ADVANCED, tooltip=(
                    "Turns the photo until the eyes are level; needs key points. Off, the tilt of the head stays, as "
                    "with the authors.")),
                io.Boolean.Input("balance_colors", default=False, **ADVANCED, tooltip=(
                    "Removes a colour cast and stretches the exposure. Off, the photo's light stays, as "
                    "with the authors.")),
                *given_face_inputs("the photo"),
                io.Mask.Input("subject_mask", optional=True, tooltip=(
                    "1 where the subject is, from any matting node; takes the place of parser and alpha. The mask of "
                    "Load Image is 1 where the photo is transparent: invert it.")),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The square crop, for Apply Identity Branch."),
                io.Mask.Output("mask", tooltip="1 where the subject is; without a parser, where the photo is."),
                io.Image.Output("rgba", tooltip="The crop with the photo's own pixels and the mask as alpha."),
                io.Image.Output("preview", tooltip=(
                    "The photo with the face box (green), the crop (blue) and the key points (red); what is dropped "
                    "is dark.")),
                io.String.Output("verdict", tooltip="Size, sharpness and pose of each face, and what was done."),
                FaceCropType.Output("face", tooltip="The crop with its key points, for Face Swap Prepare."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, detector, parser, **inputs):
        return installed_models() if "auto" in (detector, parser) else ()

    @classmethod
    def execute(cls, image, face_box=None, face_mask=None, face_landmarks=None, subject_mask=None, **settings):
        face = crop_faces(image, FaceSettings(**settings), face_box, face_mask, face_landmarks, subject_mask)
        show_text(cls, face.verdict)
        return io.NodeOutput(face.image, face.rgba[..., 3], face.rgba, face.preview, face.verdict, face,
                             ui={"images": shown(cls, face.image, face.preview), "text": (face.verdict,)})
