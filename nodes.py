"""The nodes: a schema and one call into standin_core each."""
import inspect
import os

import folder_paths
from comfy_api.latest import ComfyExtension, io, ui
from server import PromptServer

from .standin_core.contracts import ATTENTION_PATHS
from .standin_core.face import BACKGROUNDS, DETECTORS, crop_face
from .standin_core.report import as_json, as_text
from .standin_core.run import apply_reference
from .standin_core.sampler import SamplerSettings, sample, sampler_names, scheduler_names
from .standin_core.weights import load_adapter

CATEGORY = "Stand-In"
MODEL_FOLDER = "stand_in"

StandIn = io.Custom("STAND_IN")

# ComfyUI 0.3.64 knows no advanced inputs, 0.16.3 does
ADVANCED = {"advanced": True} if "advanced" in inspect.signature(io.Int.Input.__init__).parameters else {}


class LoadStandIn(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadStandIn",
            display_name="Load Stand-In",
            category=CATEGORY,
            description="Loads a Stand-In adapter, the low-rank weights that give a Wan model its identity branch.",
            inputs=[
                io.Combo.Input("adapter", options=folder_paths.get_filename_list(MODEL_FOLDER), tooltip=(
                    "A Stand-In file from models/stand_in (models/loras is searched too). Wan 2.2 has one for each "
                    "expert: high noise and low noise. An ordinary LoRA does not belong here.")),
            ],
            outputs=[StandIn.Output("stand_in", tooltip="The adapter, for Apply Identity Branch.")],
        )

    @classmethod
    def execute(cls, adapter):
        return io.NodeOutput(load_adapter(folder_paths.get_full_path_or_raise(MODEL_FOLDER, adapter)))


class FacePreprocess(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FacePreprocess",
            display_name="Face Preprocess",
            category=CATEGORY,
            description="Crops the largest face of a photo to a square on a plain background, as the adapter was "
                        "trained on. Without a face the whole image is padded to a square.",
            inputs=[
                io.Image.Input("image", tooltip="The photo. One clear, frontal face gives the best likeness."),
                io.Combo.Input("detector", options=list(DETECTORS), default="auto", tooltip=(
                    "auto takes RetinaFace where its file is in models/facexlib, and the built-in cascade (frontal "
                    "faces only) otherwise; none keeps the whole image.")),
                io.Float.Input("crop_scale", default=1.5, min=1.0, max=4.0, step=0.05, tooltip=(
                    "Side of the crop relative to the face box. Higher keeps more hair and shoulders, lower fills the "
                    "crop with the face. The adapter was trained at 1.5.")),
                io.Int.Input("size", default=512, min=64, max=2048, step=16, tooltip=(
                    "Side of the result in pixels. 512 gives the 1,024 identity tokens the adapter was trained with; "
                    "lower is faster and loses detail, higher costs memory and is untrained.")),
                io.Combo.Input("background", options=list(BACKGROUNDS), default="white", tooltip=(
                    "Colour of the padding, and of the background where BiSeNet's file (parsing_bisenet.pth in "
                    "models/facexlib) lets it be removed. The adapter was trained on white.")),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The square crop, for Apply Identity Branch."),
                io.Mask.Output("mask", tooltip="1 where the subject is; without a parser, where the photo is."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, image, detector, crop_scale, size, background):
        crop = crop_face(image, detector, crop_scale, size, background)
        preview = ui.PreviewImage(crop.image, cls=cls).as_dict()
        show_text(cls, crop.verdict)
        return io.NodeOutput(crop.image, crop.mask, ui={**preview, "text": (crop.verdict,)})


class ApplyIdentityBranch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ApplyIdentityBranch",
            display_name="Apply Identity Branch",
            category=CATEGORY,
            description="Gives a Wan model the identity of a reference: every video token reads the reference's keys "
                        "and values in every block. The model works in any sampler. Applied again, it replaces.",
            inputs=[
                io.Model.Input("model", tooltip="A Wan 2.1 or 2.2 model, with its LoRAs if there are any."),
                StandIn.Input("stand_in", tooltip="The adapter made for this model."),
                io.Vae.Input("vae", optional=True, tooltip="Wan 2.1's VAE; not needed with a reference latent."),
                io.Image.Input("reference_image", optional=True, tooltip=(
                    "The face crop from Face Preprocess. 512x512 on white is what the adapter was trained with.")),
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
                    "How the video reads the identity; the result is the same. merge computes the two attentions apart "
                    "with PyTorch and copies nothing. concatenate appends keys for whatever attention is in use, at "
                    "strength 1 only. auto merges where PyTorch's attention is in use, and otherwise concatenates.")),
            ],
            outputs=[io.Model.Output(tooltip="The model with the identity, for any sampler.")],
        )

    @classmethod
    def execute(cls, model, stand_in, strength, start_percent, end_percent, time_offset, attention, vae=None,
                reference_image=None, reference_latent=None):
        return io.NodeOutput(apply_reference(
            model, stand_in, vae, reference_image, reference_latent, strength=strength, start_percent=start_percent,
            end_percent=end_percent, time_offset=time_offset, attention=attention))


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
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The denoised latent, for VAE Decode."),
                io.String.Output("report", tooltip="What the identity did in each run, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent_image, seed, steps, cfg, sampler_name, scheduler, shift, denoise,
                boundary, low_noise_model=None):
        settings = SamplerSettings(seed, steps, cfg, sampler_name, scheduler, shift, denoise, boundary)
        latent, reports = sample(model, low_noise_model, positive, negative, latent_image, settings)
        text = "\n\n".join(map(as_text, reports)) or "no identity: put Apply Identity Branch before this node"
        show_text(cls, text)
        return io.NodeOutput(latent, as_json(reports), ui=ui.PreviewText(text))


def show_text(cls, text: str) -> None:
    """Show a text on the node; the text among its outputs is kept with the prompt but not shown by the frontend."""
    PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)


class StandInExtension(ComfyExtension):
    async def get_node_list(self):
        return [LoadStandIn, FacePreprocess, ApplyIdentityBranch, StandInSampler]


async def comfy_entrypoint():
    register_model_folder()
    return StandInExtension()


def register_model_folder():
    """models/stand_in, then wherever LoRAs lie, because that is where users put these files."""
    extensions = folder_paths.supported_pt_extensions
    own = os.path.join(folder_paths.models_dir, MODEL_FOLDER)
    configured = folder_paths.folder_names_and_paths.get(MODEL_FOLDER, ([], set()))[0]
    places = dict.fromkeys([*configured, own, *folder_paths.get_folder_paths("loras")])
    folder_paths.folder_names_and_paths[MODEL_FOLDER] = (list(places), extensions)
