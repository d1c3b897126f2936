"""The Concat-ID method: load a model of it, and give it the reference of a person."""
import torch
from comfy_api.latest import io

from ..standin_core.concat_id.apply import apply_concat_id
from ..standin_core.concat_id.model import load_concat_id
from ..standin_core.folders import fingerprint, listed_file
from ..standin_core.guidance import GUIDANCES
from .shared import ADVANCED, CATEGORY, ConcatIDType, FileInput, checked, found_by, person_input

FOLDER = "diffusion_models"
# as core's Load Diffusion Model has them
WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


class LoadConcatID(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadConcatID",
            display_name="Load Concat-ID",
            category=CATEGORY,
            **found_by("concat id", "load identity"),
            description="Loads a Concat-ID model: a Wan 2.1 of 1.3B that was fine-tuned as a whole to keep the person "
                        "of a reference image.",
            inputs=[
                FileInput("file", FOLDER, tooltip=(
                    "first_stage.pt or second_stage_adaln.pt of the Concat-ID authors, or a conversion to safetensors, "
                    "from models/diffusion_models. A plain Wan 2.1 1.3B also loads but keeps no identity, because "
                    "nothing in its file tells it from first_stage.pt.")),
                io.Combo.Input("weight_dtype", options=list(WEIGHT_DTYPES), **ADVANCED, tooltip=(
                    'Data type in which the weights are held, as in Load Diffusion Model. "default" keeps that of the '
                    'file where the device allows it; fp8 halves the memory and loses some quality.')),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model. Connect it to Apply Concat-ID."),
                ConcatIDType.Output("concat_id", tooltip=(
                    "The settings of the reference that the file was trained with. Connect it to Apply Concat-ID.")),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file, weight_dtype):
        return fingerprint(FOLDER, file), weight_dtype

    @classmethod
    @checked
    def execute(cls, file, weight_dtype):
        return io.NodeOutput(*load_concat_id(listed_file(FOLDER, file), WEIGHT_DTYPES[weight_dtype]))


class ApplyConcatID(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ApplyConcatID",
            display_name="Apply Concat-ID",
            category=CATEGORY,
            **found_by("concat id", "identity", "face", "likeness", "person", "reference"),
            description="Gives a Concat-ID model the person in a reference image: the image runs through the model as "
                        "one more frame of the video, in every step. The patched model works with any sampler.",
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The model from Load Concat-ID, or a GGUF or fp8 conversion of the same file. LoRAs may stand "
                    "before or after this node.")),
                ConcatIDType.Input("concat_id", tooltip="The other output of Load Concat-ID, for the same file."),
                io.Latent.Input("latent", tooltip=(
                    "The empty video latent that goes to the sampler. Only its width and height are read, because the "
                    "reference takes the size of the video.")),
                io.Vae.Input("vae", optional=True, tooltip=(
                    "The Wan 2.1 VAE, which encodes the reference image. A reference latent does not need it.")),
                io.Image.Input("reference_image", optional=True, tooltip=(
                    'The face crop from Face Preprocess with the preset "Concat-ID". It is scaled until it fits the '
                    'video, on black. A model that was trained with several people needs a batch with one face of '
                    'each, in the order in which they are to stand, from left to right.')),
                io.Latent.Input("reference_latent", optional=True, tooltip=(
                    "An already encoded reference of the size of the video, or a batch as in reference_image. Connect "
                    "it instead of reference_image and vae.")),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Point in the sampling, from 0 to 1, at which the identity starts. Higher leaves more of the "
                    "composition to the prompt. Before it the reference is a latent of zeros, which takes as long.")),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Point in the sampling, from 0 to 1, at which the identity ends. Lower leaves more of the fine "
                    "detail to the prompt. After it the reference is a latent of zeros, which takes as long.")),
                io.Combo.Input("guidance", options=list(GUIDANCES), **ADVANCED, tooltip=(
                    'Which pass of cfg (prompt, negative prompt) reads the reference; in the others it is a latent '
                    'of zeros. "both passes" is the Concat-ID paper; with "positive pass" a higher cfg also raises '
                    'the likeness. "own scale" adds guidance_scale for the identity alone and costs one more model '
                    'pass per step.')),
                io.Float.Input("guidance_scale", default=1.0, min=0.0, max=30.0, step=0.1, **ADVANCED, tooltip=(
                    'Guidance scale of the identity, used by "own scale" only. Higher keeps the likeness more strictly '
                    'and may oversaturate the video, as a high cfg does.')),
                person_input("It takes the place of reference_image and reference_latent, and needs no VAE if it was "
                             "saved with one and with a latent of this size. The first photo is read. A model that was "
                             "trained with several people takes no person."),
            ],
            outputs=[io.Model.Output(tooltip="The model with the reference, for any sampler.")],
        )

    @classmethod
    @checked
    def execute(cls, model, concat_id, latent, vae=None, reference_image=None, reference_latent=None, person=None,
                **settings):
        return io.NodeOutput(apply_concat_id(model, concat_id, latent, vae, reference_image, reference_latent, person,
                                             **settings))
