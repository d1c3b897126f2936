"""The method ID-Animator: load an adapter, apply it to an SD1.5 model."""
from comfy_api.latest import io

from ..standin_core.folders import fingerprint
from ..standin_core.id_animator.adapter import ADAPTERS, load_adapter
from ..standin_core.id_animator.apply import apply_photos
from .shared import ADVANCED, CATEGORY, FileInput, IDAnimatorType, checked, found_by, loads, person_input


class LoadIDAnimator(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadIDAnimator",
            display_name="Load ID-Animator",
            category=CATEGORY,
            **found_by("id animator", "adapter", "load identity"),
            description="Loads an ID-Animator adapter: face tokens and low-rank weights for the cross-attentions of "
                        "an SD1.5 model.",
            inputs=[
                FileInput("adapter", ADAPTERS, tooltip=(
                    "The file animator.ckpt of ID-Animator, or the same as safetensors, from models/id_animator or "
                    "models/loras. IP-Adapters and ordinary LoRAs do not work here.")),
            ],
            outputs=[IDAnimatorType.Output("id_animator", tooltip="The adapter. Connect it to Apply ID-Animator.")],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter):
        return fingerprint(ADAPTERS, adapter)

    @classmethod
    @checked
    def execute(cls, adapter):
        return loads(load_adapter, ADAPTERS, adapter)


class ApplyIDAnimator(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ApplyIDAnimator",
            display_name="Apply ID-Animator",
            category=CATEGORY,
            **found_by("id animator", "identity", "face", "likeness", "person", "ipadapter"),
            description="Gives an SD1.5 model the identity of the person in a face crop: every cross-attention also "
                        "reads the keys and values of that face. The patched model makes still pictures with any "
                        "sampler, and videos with the nodes of ComfyUI-AnimateDiff-Evolved before or after this one.",
            inputs=[
                io.Model.Input("model", tooltip=(
                    "An SD1.5 model, with or without AnimateDiff, LoRAs or IP-Adapters. SD2, SDXL and Wan do not work "
                    "here.")),
                IDAnimatorType.Input("id_animator", tooltip="The adapter from Load ID-Animator."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=(
                    "The CLIP vision model that sees the face: ViT-H (CLIP-ViT-H-14-laion2B-s32B-b79K), from Load CLIP "
                    "Vision. A person that was saved with it does not need it.")),
                io.Image.Input("reference_image", optional=True, tooltip=(
                    'The face crop from Face Preprocess with the preset "ID-Animator". A batch holds several photos, '
                    "whose face tokens are averaged: photos of one person steady the likeness, photos of several "
                    "people mix them.")),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip=(
                    "Weight of the face in every cross-attention. Higher keeps the likeness more strictly; lower gives "
                    "the prompt more freedom. The ID-Animator authors use 0.7 to 1. 0 leaves the face out, but not the "
                    "low-rank weights.")),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Point in the sampling, from 0 to 1, at which the face starts to be read. Higher leaves more of "
                    "the composition to the prompt. The low-rank weights act in every step.")),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Point in the sampling, from 0 to 1, at which the face is no longer read. Lower leaves more of the "
                    "fine detail to the base model. The low-rank weights act in every step.")),
                io.Float.Input("lora_strength", default=1.0, min=0.0, max=2.0, step=0.05, **ADVANCED, tooltip=(
                    "Weight of the low-rank weights that were trained with the face tokens. They act in every step "
                    "and for every prompt. Lower stays closer to the checkpoint, and the face tokens then fit it "
                    "less well. The ID-Animator authors always use 1. 0 together with strength 0 is exactly the base "
                    "model.")),
                person_input("It takes the place of reference_image, and needs no CLIP vision model if it was saved "
                             "with one."),
            ],
            outputs=[io.Model.Output(tooltip="The model with the identity, for any sampler.")],
        )

    @classmethod
    @checked
    def execute(cls, model, id_animator, clip_vision=None, reference_image=None, person=None, **settings):
        return io.NodeOutput(apply_photos(model, id_animator, clip_vision, reference_image, person, **settings))
