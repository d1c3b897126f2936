"""The method Stand-In: its adapter, its branch on a model, the sampler, and where the identity was read."""
import folder_paths
from comfy_api.latest import io, ui

from ..standin_core.attention import ATTENTION_PATHS
from ..standin_core.controls import parse_schedule
from ..standin_core.folders import ADAPTERS, fingerprint
from ..standin_core.guidance import GUIDANCES
from ..standin_core.report import as_json, as_text
from ..standin_core.sampler import SamplerSettings, sample, sampler_names, scheduler_names
from ..standin_core.stand_in.adapter import load_adapter
from ..standin_core.stand_in.apply import apply_reference
from ..standin_core.stand_in.attention_map import show_map
from ..standin_core.stand_in.kv_cache import CACHE_MODES
from .shared import ADVANCED, CATEGORY, AttentionMapType, StandIn, show_text


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
    def fingerprint_inputs(cls, adapter):
        return fingerprint(ADAPTERS, adapter)

    @classmethod
    def execute(cls, adapter):
        return io.NodeOutput(load_adapter(folder_paths.get_full_path_or_raise(ADAPTERS, adapter)))


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
