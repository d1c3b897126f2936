"""The nodes: a schema and one call into standin_core each."""
import functools
import inspect

import folder_paths
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, io, ui
from server import PromptServer

from .standin_core.attention_map import show_map
from .standin_core.contracts import ATTENTION_PATHS, CACHE_MODES, GUIDANCES
from .standin_core.controls import parse_schedule
from .standin_core.evaluation import (
    EMBEDDERS,
    REGIONS,
    CompareSettings,
    compare,
    comparing_missing,
    contact_sheet,
    plot,
)
from .standin_core.face import (
    BORDER_RULES,
    DETECTORS,
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
from .standin_core.face_swap import (
    COLOR_REGIONS,
    MASK_EDGES,
    SWAP_BACKGROUNDS,
    SwapSettings,
    composite_swap,
    encode_swap,
    prepare_swap,
)
from .standin_core.folders import ADAPTERS, new_adapter_file, register_adapters, training_folder
from .standin_core.report import as_json, as_text
from .standin_core.run import apply_reference
from .standin_core.sampler import SamplerSettings, sample, sampler_names, scheduler_names
from .standin_core.stand_in.training import train_adapter
from .standin_core.train import (
    EXPERTS,
    REFERENCES_FROM,
    AdapterSettings,
    DataSettings,
    Encoders,
    PairSettings,
    SampleSettings,
    TrainSettings,
    make_dataset,
    run_pictures,
    sources_of,
    summary,
)
from .standin_core.weights import load_adapter

CATEGORY = "Stand-In"

StandIn = io.Custom("STAND_IN")
FaceCropType = io.Custom("FACE_CROP")
AttentionMapType = io.Custom("IDENTITY_ATTENTION_MAP")
TrainingDataType = io.Custom("STAND_IN_TRAINING_DATA")

# ComfyUI 0.3.64 knows no advanced inputs, 0.16.3 does
ADVANCED = {"advanced": True} if "advanced" in inspect.signature(io.Int.Input.__init__).parameters else {}

# the page draws another seed after every run unless told not to, and what another run left could not be gone on with
KEPT_SEED = {"control_after_generate": False}


class LoadStandIn(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadStandIn",
            display_name="Load Stand-In",
            category=CATEGORY,
            description="Loads a Stand-In adapter, the low-rank weights that give a Wan model its identity branch.",
            inputs=[
                io.Combo.Input("adapter", options=folder_paths.get_filename_list(ADAPTERS), tooltip=(
                    "A Stand-In file from models/stand_in (models/loras is searched too). Wan 2.2 has one for each "
                    "expert: high noise and low noise. An ordinary LoRA does not belong here.")),
            ],
            outputs=[StandIn.Output("stand_in", tooltip="The adapter, for Apply Identity Branch.")],
        )

    @classmethod
    def execute(cls, adapter):
        return io.NodeOutput(load_adapter(folder_paths.get_full_path_or_raise(ADAPTERS, adapter)))


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
                _detector_input(),
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
                _download_input(),
                _min_score_input(),
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
                *_given_face_inputs("the photo"),
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
                             ui={"images": _shown(cls, face.image, face.preview), "text": (face.verdict,)})


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
                _detector_input(),
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
                _download_input(),
                _min_score_input(),
                *_given_face_inputs("every frame"),
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


class ApplyIdentityBranch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ApplyIdentityBranch",
            display_name="Apply Identity Branch",
            category=CATEGORY,
            description="Gives a Wan model the identity of a reference: every video token reads the reference's keys "
                        "and values in every block. The model works in any sampler. Applied again, it adds another "
                        "person.",
            inputs=[
                io.Model.Input("model", tooltip="A Wan 2.1 or 2.2 model, with its LoRAs if there are any."),
                StandIn.Input("stand_in", tooltip="The adapter made for this model."),
                io.Vae.Input("vae", optional=True, tooltip="Wan 2.1's VAE; not needed with a reference latent."),
                io.Image.Input("reference_image", optional=True, tooltip=(
                    "The face crop from Face Preprocess, 512x512 on white with the authors. A batch is several photos "
                    "of one person, each read for itself: experimental, the released adapters were made with one.")),
                io.Latent.Input("reference_latent", optional=True, tooltip=(
                    "The reference as a latent already, instead of an image and a VAE.")),
                io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.05, tooltip=(
                    "Weight of the identity in the attention. 1 is the paper; higher holds the likeness harder and may "
                    "freeze the expression, lower gives the prompt more room, 0 is the base model bit for bit.")),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Part of the sampling at which the identity begins. Higher leaves the composition to the prompt.")),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Part of the sampling at which the identity ends. Lower leaves fine detail to the base model.")),
                io.Int.Input("time_offset", default=-1, min=-100, max=0, **ADVANCED, tooltip=(
                    "Frame at which the reference stands before the video, which begins at 0. -1 is the paper; farther "
                    "away (-5, -25) some users see less of the photo leak into the picture, and less likeness.")),
                io.Combo.Input("attention", options=list(ATTENTION_PATHS), default="auto", **ADVANCED, tooltip=(
                    "How the video reads the identity; the result is the same. merge computes the two attentions "
                    "apart, by PyTorch, SageAttention 2 or FlashAttention, and copies nothing. concatenate appends "
                    "keys for whatever attention is in use, and knows one strength for all, 1. auto merges where the "
                    "attention in use can, or a control needs it, and otherwise concatenates.")),
                # what came later is optional, so that saved prompts without it still run
                io.Mask.Input("reference_mask", optional=True, tooltip=(
                    "The mask of Face Preprocess: identity tokens without any of the subject are left out, which costs "
                    "less. The adapter was made with all of them; without a mask all are read.")),
                io.Mask.Input("region", optional=True, tooltip=(
                    "Where in the video this person is: 1 reads the identity, 0 does not; one mask, or one for each "
                    "frame. Without it everywhere.")),
                io.String.Input("strength_schedule", default="", optional=True, **ADVANCED, tooltip=(
                    "Factors on strength over the sampling as percent:factor, like 0:0.5, 0.3:1, linear between. "
                    "Low at first leaves the composition to the prompt, low at the end the fine detail. Empty for "
                    "none.")),
                io.Int.Input("first_block", default=0, min=0, max=999, optional=True, **ADVANCED, tooltip=(
                    "First of the model's blocks that reads the identity. Higher leaves out early blocks, which shape "
                    "the layout.")),
                io.Int.Input("last_block", default=-1, min=-1, max=999, optional=True, **ADVANCED, tooltip=(
                    "Last block that reads it, -1 for the last there is. Lower leaves out late blocks, which shape "
                    "detail.")),
                io.Combo.Input("guidance", options=list(GUIDANCES), optional=True, **ADVANCED, tooltip=(
                    "Which pass reads the identity. both passes is the paper: cfg does not raise the likeness. "
                    "positive pass raises it with cfg. own scale has a scale of its own, guidance_scale, and costs "
                    "one more pass.")),
                io.Float.Input("guidance_scale", default=1.0, min=0.0, max=30.0, step=0.1, optional=True, **ADVANCED,
                               tooltip=(
                    "For own scale: 0 is the base model, higher holds the likeness harder and may burn, as cfg does.")),
                io.Boolean.Input("normalize_references", default=False, optional=True, **ADVANCED, tooltip=(
                    "On, several photos weigh together as much as one; off, each has the full weight.")),
                io.Combo.Input("cache", options=list(CACHE_MODES), optional=True, **ADVANCED, tooltip=(
                    "Where the identity's keys and values live; the result is the same but for fp8. resident on the "
                    "GPU (839 MB for 14B); fp8 takes half of that and rounds; offloaded in host memory; streaming "
                    "computes them anew in every call (3 % slower with the model's weights on the GPU); auto is "
                    "resident where there is room, else offloaded.")),
            ],
            outputs=[io.Model.Output(tooltip="The model with the identity, for any sampler.")],
        )

    @classmethod
    def execute(cls, model, stand_in, vae=None, reference_image=None, reference_latent=None, reference_mask=None,
                strength_schedule="", **controls):
        return io.NodeOutput(apply_reference(model, stand_in, vae, reference_image, reference_latent, reference_mask,
                                             schedule=parse_schedule(strength_schedule), **controls))


class StandInSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandInSampler",
            display_name="Stand-In Sampler",
            category=CATEGORY,
            description="Samples as the authors do, with one model or with Wan 2.2's two experts, and reports what the "
                        "identity did.",
            inputs=[
                io.Model.Input("model", tooltip="The model, or Wan 2.2's high-noise expert."),
                io.Model.Input("low_noise_model", optional=True, tooltip=(
                    "Wan 2.2's low-noise expert, with its own Apply Identity Branch and adapter.")),
                io.Conditioning.Input("positive", tooltip=(
                    'The prompt. Say "a man" or "a woman" and what happens; do not describe the face.')),
                io.Conditioning.Input("negative", tooltip="What to keep out."),
                io.Latent.Input("latent_image", tooltip=(
                    "An empty video latent, or an encoded video for a denoise below 1. A noise mask keeps the rest.")),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="The same seed and settings give the same video."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip=(
                    "Higher is finer and slower. The authors use 20; a distilled LoRA needs 4 to 8.")),
                io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=(
                    "Higher follows the prompt harder and may burn; 1 skips the negative prompt and halves the time. "
                    "The authors use 5; a distilled LoRA needs 1.")),
                io.Combo.Input("sampler_name", options=sampler_names(), default="euler",
                               tooltip="The authors use euler."),
                io.Combo.Input("scheduler", options=scheduler_names(), default="flow_matching", tooltip=(
                    "flow_matching is the authors' schedule; the others are ComfyUI's.")),
                io.Float.Input("shift", default=5.0, min=0.01, max=100.0, step=0.01, tooltip=(
                    "Replaces the shift of the model. Higher spends more steps on composition and motion, lower more "
                    "on detail. The authors use 5.")),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01, tooltip=(
                    "1 begins from noise; lower keeps more of the video that the latent holds.")),
                io.Float.Input("boundary", default=0.875, min=0.0, max=1.0, step=0.001, **ADVANCED, tooltip=(
                    "Noise level at which the low-noise expert takes over; higher hands over earlier. The step follows "
                    "from the schedule. Wan 2.2's text-to-video uses 0.875. Unused with one model.")),
                io.Boolean.Input("attention_map", default=False, optional=True, **ADVANCED, tooltip=(
                    "On, records in every block how much of the video's attention lies on the identity, for Identity "
                    "Attention Map, which takes a little time. Off, nothing is recorded.")),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The denoised latent, for VAE Decode."),
                io.String.Output("report", tooltip="What the identity did in each run, in words."),
                AttentionMapType.Output("attention_map", tooltip=(
                    "Where the identity was read, for Identity Attention Map; empty while attention_map is off.")),
                io.String.Output("json", tooltip="The report as JSON, a record for each run."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent_image, seed, steps, cfg, sampler_name, scheduler, shift, denoise,
                boundary, low_noise_model=None, attention_map=False):
        settings = SamplerSettings(seed, steps, cfg, sampler_name, scheduler, shift, denoise, boundary, attention_map)
        latent, sink = sample(model, low_noise_model, positive, negative, latent_image, settings)
        text = "\n\n".join(map(as_text, sink.reports)) or "no identity: put Apply Identity Branch before this node"
        show_text(cls, text)
        return io.NodeOutput(latent, text, sink.maps, as_json(sink.reports), ui=ui.PreviewText(text))


class IdentityAttentionMap(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IdentityAttentionMap",
            display_name="Identity Attention Map",
            category=CATEGORY,
            description="Shows where in the video the identity was read: the share of the attention that lies on the "
                        "photo, as a heat map over the frames.",
            inputs=[
                io.Image.Input("images", tooltip="The frames of the run, from VAE Decode."),
                AttentionMapType.Input("attention_map", tooltip=(
                    "From Stand-In Sampler, with its attention_map switched on.")),
                io.Int.Input("person", default=0, min=0, max=99, tooltip=(
                    "Whose map: 0 is the first Apply Identity Branch of the chain, higher the later ones.")),
                io.Int.Input("first_block", default=0, min=0, max=999, tooltip=(
                    "First block of the mean; higher leaves out early blocks. A block that did not read counts as 0.")),
                io.Int.Input("last_block", default=-1, min=-1, max=999, tooltip=(
                    "Last block of the mean, included; lower leaves out late blocks, -1 is the last there is.")),
                io.Float.Input("opacity", default=0.6, min=0.0, max=1.0, step=0.05, tooltip=(
                    "Higher shows more of the map and less of the frames: 1 the map alone, 0 the frames alone.")),
                io.Int.Input("trim_latent", default=0, min=0, max=99, **ADVANCED, tooltip=(
                    "How many latent frames were cut off the beginning, as the trim_latent of WanVaceToVideo says: 1 "
                    "with a reference picture of VACE, 0 otherwise.")),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The frames with the map over them, black to yellow."),
                io.Mask.Output("mask", tooltip="The map, 1 where the most attention lies."),
                io.String.Output("report", tooltip="The share of the attention, in all and by block."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, attention_map, opacity, **choice):
        frames, mask, text = show_map(images, attention_map, opacity, **choice)
        show_text(cls, text)
        return io.NodeOutput(frames, mask, text, ui={"text": (text,)})


class IdentityReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IdentityReport",
            display_name="Identity Report",
            category=CATEGORY,
            description="Measures in every frame how alike the person is to the photo, and how much is merely copied "
                        "from it. Likeness with little copied is what to look for.",
            inputs=[
                io.Image.Input("images", tooltip="The frames of the video."),
                io.Image.Input("reference_image", tooltip=(
                    "The photo that was given to the model. More pictures in the batch are other photos of the same "
                    "person: with them comes the copy-paste measure.")),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=(
                    "Any model of Load CLIP Vision. It tells faces apart less finely than insightface, and compares "
                    "subjects without a face too; connected, it also gives the CLIP distance of whole pictures.")),
                io.Combo.Input("embedder", options=list(EMBEDDERS), tooltip=(
                    "What compares. auto takes insightface where you installed it with a model pack, else CLIP "
                    "vision. Figures of different embedders cannot be compared.")),
                io.Combo.Input("region", options=list(REGIONS), tooltip=(
                    "face compares the largest face of each frame; whole frame all of it, for subjects without a "
                    "face, and needs CLIP vision.")),
                io.Float.Input("min_score", default=0.5, min=0.0, max=1.0, step=0.05, **ADVANCED, tooltip=(
                    "How sure the detector must be of a face. Lower finds more and more that are none; the cascade "
                    "has no score.")),
            ],
            outputs=[
                io.Image.Output("plot", tooltip="Similarity and copied pixels over the frames."),
                io.Image.Output("contact_sheet", tooltip="The frames least and most like the photo."),
                io.String.Output("report", tooltip="The figures in words."),
                io.String.Output("json", tooltip=(
                    "The figures, and those of every frame, as JSON.")),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, embedder, **inputs):
        return installed_models(), comparing_missing() if embedder == "auto" else None

    @classmethod
    def execute(cls, images, reference_image, clip_vision=None, **settings):
        progress = ProgressBar(len(images))
        result = compare(images, reference_image, CompareSettings(**settings), clip_vision,
                         lambda: progress.update(1))
        pictures, text = (plot(result), contact_sheet(result)), result.as_text()
        show_text(cls, text)
        return io.NodeOutput(*pictures, text, result.as_json(),
                             ui={"images": _shown(cls, *pictures), "text": (text,)})


class PrepareTrainingData(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PrepareTrainingData",
            display_name="Prepare Training Data",
            category=f"{CATEGORY}/training",
            description="Cuts videos of people into clips, takes reference photos from frames outside of each clip, "
                        "and encodes all of it once, for Train Stand-In. Run it again after an interrupt: it goes on.",
            is_input_list=True,  # the videos and captions of core's dataset node are lists
            inputs=[
                io.Video.Input("videos", tooltip="From Load Video-Text (from Folder), many of them."),
                io.String.Input("captions", force_input=True, tooltip=(
                    "One for each video, from the same node: what happens in it, never who the person is.")),
                io.Vae.Input("vae", tooltip="Wan 2.1's."),
                io.Clip.Input("clip", tooltip="The text encoder of Wan, umT5-XXL."),
                io.String.Input("name", default="my_people", tooltip=(
                    "Of the folder below output/stand_in_training that keeps the data, and what was dropped and why.")),
                io.Int.Input("width", default=832, min=16, max=2048, step=16, tooltip=(
                    "Of the clips, which are filled up and cropped to it. The authors take 832x480; less is faster.")),
                io.Int.Input("height", default=480, min=16, max=2048, step=16, tooltip="Of the clips."),
                io.Int.Input("frames", default=81, min=5, max=401, step=4, tooltip=(
                    "Of a clip. A video needs more than that: its photos come from the rest.")),
                io.Float.Input("fps", default=25.0, min=1.0, max=120.0, step=1.0, tooltip=(
                    "To which the videos are resampled. The authors take 25; Wan makes 16.")),
                io.Int.Input("references", default=5, min=1, max=16, tooltip=(
                    "Photos for each clip, of which a step takes one at random.")),
                io.Combo.Input("references_from", options=list(REFERENCES_FROM), tooltip=(
                    "The same video is the paper. Other videos pairs clips of the same person, which teaches not to "
                    "copy (Concat-ID), and drops clips without a partner.")),
                io.Float.Input("lowest_similarity", default=0.7, min=-1.0, max=1.0, step=0.01, **ADVANCED, tooltip=(
                    "For other videos: less alike is somebody else. Figures of ArcFace; other embedders differ.")),
                io.Float.Input("highest_similarity", default=0.9, min=-1.0, max=1.0, step=0.01, **ADVANCED, tooltip=(
                    "For other videos: more alike is nearly the same picture.")),
                io.Combo.Input("preset", options=list(PRESETS), **ADVANCED, tooltip=(
                    "How the faces are cropped, as in Face Preprocess.")),
                io.Int.Input("photo_size", default=512, min=64, max=1024, step=16, **ADVANCED, tooltip=(
                    "Side of the photos in pixels, as they will be given to the model later.")),
                _detector_input(),
                _download_input(),
                io.Int.Input("seed", default=0, min=0, max=2**31, **KEPT_SEED, **ADVANCED, tooltip=(
                    "Of the choice of photos.")),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=(
                    "For other videos, where insightface is not installed: it tells people apart less finely.")),
            ],
            outputs=[
                TrainingDataType.Output("training_data", tooltip="For Train Stand-In."),
                io.String.Output("report", tooltip="How many clips and photos, and what was dropped and why."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, videos, captions, clip_vision=None, **single):
        (clip_vision,) = clip_vision or (None,)
        given = {name: value for name, (value,) in single.items()}
        face = FaceSettings(preset=given["preset"], detector=given["detector"], size=given["photo_size"],
                            download_missing=given["download_missing"])
        settings = DataSettings(face=face, **{name: given[name] for name in (
            "fps", "width", "height", "frames", "references", "seed")})
        pairs = None
        if given["references_from"] == "other videos":
            pairs = PairSettings(given["lowest_similarity"], given["highest_similarity"])
        folder = training_folder(given["name"])
        shards = make_dataset(sources_of(videos, captions), folder, settings, Encoders(given["vae"], given["clip"]),
                              functools.partial(show_text, cls), pairs, clip_vision)
        report = summary(folder)
        show_text(cls, report)
        return io.NodeOutput(shards, report, ui={"text": (report,)})


class TrainStandIn(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TrainStandIn",
            display_name="Train Stand-In",
            category=f"{CATEGORY}/training",
            description="Trains an adapter on the data of Prepare Training Data and puts it into models/stand_in. The "
                        "model stays as it is. Run it again after an interrupt: it goes on.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The Wan to train for, from Load Diffusion Model, without an adapter."),
                TrainingDataType.Input("training_data", tooltip="From Prepare Training Data."),
                io.String.Input("name", default="my_stand_in", tooltip="Of the adapter's file."),
                io.Int.Input("steps", default=3000, min=1, max=1_000_000, tooltip=(
                    "The authors take 3,000 steps of 48 clips. With more than before, a run goes on.")),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip=(
                    "Clips of a step, one after the other: more costs time and no memory.")),
                io.Float.Input("learning_rate", default=1e-4, min=0.0, max=1.0, step=1e-6, tooltip=(
                    "The authors do not say theirs; 1e-4 is usual for low-rank weights.")),
                io.Int.Input("rank", default=128, min=1, max=1024, tooltip=(
                    "Of the low-rank weights, 128 with the authors. Less is a smaller file that learns less.")),
                io.Combo.Input("expert", options=list(EXPERTS), tooltip=(
                    "Wan 2.2 has two models, each with noise levels of its own, and needs an adapter for each.")),
                io.Float.Input("shift", default=1.0, min=0.1, max=20.0, step=0.1, **ADVANCED, tooltip=(
                    "Of the noise levels: 1 draws all alike, as the authors; more trains more on noise, where the "
                    "layout is decided.")),
                io.Float.Input("ema", default=0.0, min=0.0, max=0.9999, step=0.001, **ADVANCED, tooltip=(
                    "Decay of a moving average, which is then what is saved; 0 for none, 0.999 for long runs.")),
                io.Boolean.Input("checkpointing", default=True, **ADVANCED, tooltip=(
                    "Compute again what is inside the blocks instead of keeping it: a third more time, several times "
                    "less memory.")),
                io.Int.Input("sample_every", default=500, min=0, max=100_000, tooltip=(
                    "Steps between two checkpoints, each with a picture of what the adapter makes if a VAE is "
                    "connected; 0 for one at the end.")),
                io.Int.Input("seed", default=0, min=0, max=2**31, **KEPT_SEED, tooltip="Of everything that is drawn."),
                StandIn.Input("start_from", optional=True, tooltip="An adapter to go on from; its rank counts then."),
                io.Vae.Input("vae", optional=True, tooltip="Wan 2.1's, for the pictures."),
            ],
            outputs=[
                StandIn.Output("stand_in", tooltip="The adapter, for Apply Identity Branch."),
                io.Image.Output("loss", tooltip="The loss of every step."),
                io.Image.Output("samples", tooltip=(
                    "What the adapter made of the first examples at the last checkpoint: the photo, then frames. "
                    "Without a VAE, the loss again.")),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, training_data, name, rank, expert, sample_every, start_from=None, vae=None, **settings):
        progress = ProgressBar(settings["steps"])

        def on_step(step: int, loss: float) -> None:
            throw_exception_if_processing_interrupted()
            progress.update_absolute(step)
            show_text(cls, f"step {step:,} of {settings['steps']:,}: loss {loss:.4f}")

        noise_from, noise_to = EXPERTS[expert]
        stand_in, folder = train_adapter(
            model, training_data, new_adapter_file(name), AdapterSettings(name, rank, expert),
            TrainSettings(noise_from=noise_from, noise_to=noise_to, **settings), on_step,
            samples=SampleSettings(sample_every), vae=vae, start_from=start_from)
        loss, samples = run_pictures(folder)
        return io.NodeOutput(stand_in, loss, samples, ui={"images": _shown(cls, loss, samples)})


def _detector_input():
    return io.Combo.Input("detector", options=list(DETECTORS), default="auto", tooltip=(
        "auto takes RetinaFace where its file is, insightface where you installed it, and otherwise the built-in "
        "cascade (frontal faces, no key points). A connected box, mask or landmarks take its place."))


def _min_score_input():
    return io.Float.Input("min_score", default=0.5, min=0.0, max=1.0, step=0.05, **ADVANCED, tooltip=(
        "How sure the detector must be. Lower finds more faces and more that are none; the cascade has no score."))


def _download_input():
    return io.Boolean.Input("download_missing", default=False, tooltip=(
        "On, a missing face model (detector 110 MB, parser 53 MB) comes from facexlib's releases on GitHub into "
        "models/facexlib, checked by its hash. Off, nothing is ever downloaded."))


def _given_face_inputs(where: str):
    return (
        # forced to be an input, or it is a widget with a box of its own
        io.Custom("BOUNDING_BOX").Input("face_box", optional=True, extra_dict={"forceInput": True}, tooltip=(
            f"The face in {where} as a box, from any node that gives one.")),
        io.Mask.Input("face_mask", optional=True, tooltip=f"The face in {where} as a mask; its bounds are the box."),
        io.Custom("FACE_LANDMARKS").Input("face_landmarks", optional=True, tooltip=(
            f"The face in {where} from ComfyUI's Detect Face Landmarks (MediaPipe), with key points.")),
    )


def _shown(cls, *batches) -> list[dict]:
    """The pictures of several batches, for the node to show."""
    return [picture for batch in batches for picture in ui.PreviewImage(batch, cls=cls).as_dict()["images"]]


def show_text(cls, text: str) -> None:
    """Show a text on the node; the text among its outputs is kept with the prompt but not shown by the frontend."""
    PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)


class StandInExtension(ComfyExtension):
    async def get_node_list(self):
        return [LoadStandIn, FacePreprocess, ApplyIdentityBranch, StandInSampler, FaceSwapPrepare, FaceSwapEncode,
                FaceSwapComposite, IdentityReport, IdentityAttentionMap, PrepareTrainingData, TrainStandIn]


async def comfy_entrypoint():
    register_adapters()
    return StandInExtension()
