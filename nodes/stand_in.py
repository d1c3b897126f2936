"""The Stand-In method: load an adapter, apply it to a model, sample, and show where the identity was read."""
from comfy_api.latest import io, ui

from ..standin_core.attention import ATTENTION_PATHS
from ..standin_core.controls import parse_schedule
from ..standin_core.folders import fingerprint
from ..standin_core.guidance import GUIDANCES
from ..standin_core.report import as_json, as_text
from ..standin_core.sampler import SamplerSettings, sample, sampler_names, scheduler_names
from ..standin_core.stand_in.adapter import ADAPTERS, load_adapter
from ..standin_core.stand_in.apply import apply_reference
from ..standin_core.stand_in.attention_map import show_map
from ..standin_core.stand_in.experts import refuse_swapped_adapters
from ..standin_core.stand_in.kv_cache import CACHE_MODES
from ..standin_core.stand_in.presets import CUSTOM, PRESETS, with_preset
from .shared import (
    ADVANCED,
    CATEGORY,
    AttentionMapType,
    FileInput,
    StandIn,
    checked,
    found_by,
    keeps_what_it_shows,
    loads,
    person_input,
)


class LoadStandIn(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadStandIn",
            display_name="Load Stand-In",
            category=CATEGORY,
            **found_by("adapter", "identity lora", "load identity"),
            description="Loads a Stand-In adapter: low-rank weights that add the identity branch to a Wan model.",
            inputs=[
                FileInput("adapter", ADAPTERS, tooltip=(
                    "A Stand-In adapter file from models/stand_in or models/loras. Wan 2.2 needs one adapter for the "
                    "high-noise expert and another for the low-noise expert. Ordinary LoRAs do not work here.")),
            ],
            outputs=[StandIn.Output("stand_in", tooltip="The adapter. Connect it to Apply Identity Branch.")],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter):
        return fingerprint(ADAPTERS, adapter)

    @classmethod
    @checked
    def execute(cls, adapter):
        return loads(load_adapter, ADAPTERS, adapter)


class ApplyIdentityBranch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ApplyIdentityBranch",
            display_name="Apply Identity Branch",
            category=CATEGORY,
            **found_by("identity", "face", "likeness", "person", "ipadapter", "id", "reference", "same character"),
            description="Gives a Wan model the identity of the person in a reference image: in every transformer "
                        "block, the video also reads (attends to) the keys and values of that image. The patched "
                        "model works with any sampler. Chain several of these nodes to add several people.",
            inputs=[
                io.Model.Input("model", tooltip="A Wan 2.1 or 2.2 model. Load LoRAs before this node."),
                StandIn.Input("stand_in", tooltip="The adapter that was trained for this model."),
                io.Vae.Input("vae", optional=True, tooltip=(
                    "The Wan 2.1 VAE, which encodes the reference image. A reference latent does not need it.")),
                io.Image.Input("reference_image", optional=True, tooltip=(
                    "The face crop from Face Preprocess; the Stand-In authors use 512x512 on white. A batch holds "
                    "several photos of one person, each processed on its own. Batches are experimental: the released "
                    "adapters were trained with one photo.")),
                io.Latent.Input("reference_latent", optional=True, tooltip=(
                    "An already encoded reference. Connect it instead of reference_image and vae.")),
                io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.05, tooltip=(
                    "Weight of the identity in the attention. Higher keeps the likeness more strictly and may freeze "
                    "the expression; lower gives the prompt more freedom. 1 is the value of the Stand-In paper, 0 is "
                    "exactly the base model.")),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, **ADVANCED, tooltip=(
                    "Point in the sampling, from 0 to 1, at which the identity starts. Higher leaves more of the "
                    "composition to the prompt.")),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, **ADVANCED, tooltip=(
                    "Point in the sampling, from 0 to 1, at which the identity ends. Lower leaves more of the fine "
                    "detail to the base model.")),
                io.Int.Input("time_offset", default=-1, min=-100, max=0, **ADVANCED, tooltip=(
                    "Frame position of the reference image; the video starts at frame 0. The Stand-In paper uses -1. "
                    "Some users report that lower values (-5, -25) leak less of the photo into the video and also "
                    "lower the likeness.")),
                io.Combo.Input("attention", options=list(ATTENTION_PATHS), default="auto", **ADVANCED, tooltip=(
                    'How the video reads the identity; the result is the same, so "auto" suits nearly everybody. '
                    '"merge" computes both attentions separately (PyTorch, SageAttention 2 or FlashAttention) and '
                    'copies nothing; "concatenate" appends keys and values of the identity to those of the video and '
                    'works only at strength 1. "auto" merges if the active attention allows it or a setting needs '
                    'it, and concatenates otherwise.')),
                # what came later is optional, so that saved prompts without it still run
                io.Mask.Input("reference_mask", optional=True, tooltip=(
                    "The mask from Face Preprocess. Identity tokens that show none of the subject are then left out, "
                    "which is faster. Without a mask all tokens are read, as in the training of the adapter.")),
                io.Mask.Input("region", optional=True, tooltip=(
                    "A mask of where this person appears in the video: 1 reads the identity, 0 does not. Connect one "
                    "mask, or one mask for each frame. Without a mask the whole video reads the identity.")),
                io.String.Input("strength_schedule", default="", optional=True, **ADVANCED, tooltip=(
                    "Multiplies strength during the sampling, as percent:factor points with straight lines between "
                    "them, for example 0:0.5, 0.3:1. Low factors at the start leave the composition to the prompt; "
                    "low factors at the end leave the fine detail to the base model. Leave it empty for a constant "
                    "strength.")),
                io.Int.Input("first_block", default=0, min=0, max=999, optional=True, **ADVANCED, tooltip=(
                    "First transformer block that reads the identity. Higher leaves out early blocks, which shape the "
                    "layout.")),
                io.Int.Input("last_block", default=-1, min=-1, max=999, optional=True, **ADVANCED, tooltip=(
                    "Last transformer block that reads the identity; -1 is the last block of the model. Lower leaves "
                    "out late blocks, which shape detail.")),
                io.Combo.Input("guidance", options=list(GUIDANCES), optional=True, **ADVANCED, tooltip=(
                    'Which pass of cfg reads the identity. "both passes" (prompt and negative prompt) is the '
                    'Stand-In paper; a higher cfg then does not raise the likeness. "positive pass" (the prompt '
                    'alone) lets a higher cfg raise it. "own scale" adds guidance_scale for the identity alone and '
                    'costs one more model pass per step.')),
                io.Float.Input("guidance_scale", default=1.0, min=0.0, max=30.0, step=0.1, optional=True, **ADVANCED,
                               tooltip=(
                    'Guidance scale of the identity, used by "own scale" only. Higher keeps the likeness more '
                    'strictly and may oversaturate the video, as a high cfg does. 0 is the base model.')),
                io.Boolean.Input("normalize_references", default=False, optional=True, **ADVANCED, tooltip=(
                    "On: several photos together weigh as much as one. Off: each photo has the full weight.")),
                io.Combo.Input("cache", options=list(CACHE_MODES), optional=True, **ADVANCED, tooltip=(
                    'Where the key/value cache of the identity is kept. "resident": GPU memory (839 MB for a 14B '
                    'model); "fp8": half of that, with rounding that changes the result; "offloaded": system memory; '
                    '"streaming": no cache, recomputed in every model call (1.3 % of the FLOPs of one pass over a '
                    'video of 832x480 and 81 frames), for which weights in system memory are fetched twice. "auto": '
                    'resident if it fits, else offloaded.')),
                person_input("It takes the place of reference_image and reference_latent, and needs no VAE if it was "
                             "saved with one."),
                # the page's script reads the settings of each preset from the definition of this input
                io.Combo.Input("preset", options=list(PRESETS), default=CUSTOM, optional=True,
                               extra_dict={"presets": PRESETS}, tooltip=(
                    'A named setting that replaces guidance. "paper": both guidance passes read the identity, '
                    'as in the Stand-In paper. "closer likeness": the positive pass alone reads it, so cfg raises '
                    'the likeness too. "custom": guidance as it is set. In the pack\'s small world of 48 drawn '
                    'people, "paper" keeps 0.67 of an identity and "closer likeness" 0.78; not measured on a 14B '
                    'model.')),
            ],
            outputs=[io.Model.Output(tooltip="The model with the identity, for any sampler.")],
        )

    @classmethod
    @checked
    def execute(cls, model, stand_in, vae=None, reference_image=None, reference_latent=None, reference_mask=None,
                strength_schedule="", person=None, preset=CUSTOM, **controls):
        return io.NodeOutput(apply_reference(model, stand_in, vae, reference_image, reference_latent, reference_mask,
                                             person, schedule=parse_schedule(strength_schedule),
                                             **with_preset(preset, controls)))


class StandInSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandInSampler",
            display_name="Stand-In Sampler",
            category=CATEGORY,
            **found_by("identity", "ksampler", "flow matching"), **keeps_what_it_shows(),
            description="Samples a video as the Stand-In authors do, with one model or with the two experts of Wan "
                        "2.2, and reports how the identity was read.",
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The model from Apply Identity Branch. For Wan 2.2, connect the high-noise expert.")),
                io.Model.Input("low_noise_model", optional=True, tooltip=(
                    "The low-noise expert of Wan 2.2. It needs its own Apply Identity Branch and its own adapter.")),
                io.Conditioning.Input("positive", tooltip=(
                    'The prompt. Write "a man" or "a woman" and what happens. Do not describe the face: the photo '
                    'does that.')),
                io.Conditioning.Input("negative", tooltip="What the video should not show. It is not used at cfg 1."),
                io.Latent.Input("latent_image", tooltip=(
                    "An empty video latent, or an encoded video for a denoise below 1. With a noise mask, only the "
                    "masked area changes.")),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True, tooltip=(
                    "The same seed and the same settings give the same video; another seed gives another one.")),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip=(
                    "Number of sampling steps. Higher gives finer detail and takes longer. The Stand-In authors use "
                    "20; a distilled LoRA needs 4 to 8.")),
                io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=(
                    "Guidance scale of the prompt. Higher follows the prompt more strictly and may oversaturate the "
                    "video; 1 skips the negative prompt and takes half the time. The Stand-In authors use 5; a "
                    "distilled LoRA needs 1.")),
                io.Combo.Input("sampler_name", options=sampler_names(), default="euler",
                               tooltip='The sampling algorithm. The Stand-In authors use "euler".'),
                io.Combo.Input("scheduler", options=scheduler_names(), default="flow_matching", tooltip=(
                    'How the noise levels are spread over the steps. "flow_matching" is the schedule of the Stand-In '
                    'authors; the others are from ComfyUI.')),
                io.Float.Input("shift", default=5.0, min=0.01, max=100.0, step=0.01, tooltip=(
                    "Shift of the noise levels; it replaces the shift of the model. Higher spends more steps on "
                    "composition and motion, lower more on detail. The Stand-In authors use 5.")),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01, tooltip=(
                    "Share of the noise schedule that is sampled. 1 starts from pure noise; lower keeps more of the "
                    "video in latent_image. The Stand-In authors use 0.85 for face swap.")),
                io.Float.Input("boundary", default=0.875, min=0.0, max=1.0, step=0.001, **ADVANCED, tooltip=(
                    "Noise level at which the low-noise expert takes over. Higher switches earlier, lower later. Wan "
                    "2.2 text-to-video uses 0.875; a single model ignores it.")),
                io.Boolean.Input("attention_map", default=False, optional=True, **ADVANCED, tooltip=(
                    "On: records for every block how much of the video's attention falls on the identity, for "
                    "Identity Attention Map. This takes a little time. Off: records nothing.")),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The denoised latent. Connect it to VAE Decode."),
                io.String.Output("report", tooltip=(
                    "How the identity was read, in words, for each run (with Wan 2.2, one run for each expert).")),
                AttentionMapType.Output("attention_map", tooltip=(
                    "Where the video read the identity. Connect it to Identity Attention Map; it is empty while the "
                    "input attention_map is off.")),
                io.String.Output("json", tooltip="The report as JSON, with one record for each run."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model, positive, negative, latent_image, seed, steps, cfg, sampler_name, scheduler, shift, denoise,
                boundary, low_noise_model=None, attention_map=False):
        refuse_swapped_adapters(model, low_noise_model)
        settings = SamplerSettings(seed, steps, cfg, sampler_name, scheduler, shift, denoise, boundary, attention_map)
        latent, sink = sample(model, low_noise_model, positive, negative, latent_image, settings)
        text = "\n\n".join(map(as_text, sink.reports)) or "no identity: put Apply Identity Branch before this node"
        return io.NodeOutput(latent, text, sink.maps, as_json(sink.reports), ui=ui.PreviewText(text))


class IdentityAttentionMap(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IdentityAttentionMap",
            display_name="Identity Attention Map",
            category=CATEGORY,
            **found_by("heat map", "where the identity is read"), **keeps_what_it_shows(),
            description="Shows where the video read the identity: the share of the attention that falls on the photo, "
                        "as a heat map over the frames.",
            inputs=[
                io.Image.Input("images", tooltip="All frames of the sampled video, from VAE Decode."),
                AttentionMapType.Input("attention_map", tooltip=(
                    "The output of Stand-In Sampler. Switch on the input attention_map there.")),
                io.Int.Input("person", default=0, min=0, max=99, tooltip=(
                    "Which person to show. 0 is the first Apply Identity Branch in the chain; higher numbers are the "
                    "later ones.")),
                io.Int.Input("first_block", default=0, min=0, max=999, tooltip=(
                    "First transformer block that is averaged. Higher leaves out early blocks. A block that did not "
                    "read the identity counts as 0.")),
                io.Int.Input("last_block", default=-1, min=-1, max=999, tooltip=(
                    "Last transformer block that is averaged; -1 is the last block of the model. Lower leaves out "
                    "late blocks.")),
                io.Float.Input("opacity", default=0.6, min=0.0, max=1.0, step=0.05, tooltip=(
                    "Opacity of the heat map. Higher shows more of the map and less of the frames: 1 shows only the "
                    "map, 0 only the frames.")),
                io.Int.Input("trim_latent", default=0, min=0, max=99, **ADVANCED, tooltip=(
                    "Number of latent frames that were cut off the start of the video, as trim_latent of "
                    "WanVaceToVideo says. It is 1 with a reference image for VACE and 0 otherwise.")),
            ],
            outputs=[
                io.Image.Output("images", tooltip=(
                    "The frames under the heat map, from black (least) to yellow (most).")),
                io.Mask.Output("mask", tooltip="The heat map as a mask, 1 where the most attention falls."),
                io.String.Output("report", tooltip=(
                    "The share of the attention that falls on the photo, overall and for each block.")),
            ],
        )

    @classmethod
    @checked
    def execute(cls, images, attention_map, opacity, **choice):
        frames, mask, text = show_map(images, attention_map, opacity, **choice)
        return io.NodeOutput(frames, mask, text, ui={"text": (text,)})
