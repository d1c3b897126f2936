"""Keep a person: photos, and what the methods make of them, in one file."""
from comfy_api.latest import io

from ..standin_core.face import PRESETS, installed_models
from ..standin_core.folders import fingerprint, listed_file, new_file
from ..standin_core.person import PEOPLE, PersonSettings, load_person, make_person, save_person
from .shared import (
    CATEGORY,
    FaceCropType,
    FileInput,
    PersonType,
    checked,
    detector_input,
    download_input,
    found_by,
    keeps_what_it_shows,
    min_score_input,
    one_face_inputs,
    previews,
)


class SavePerson(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SavePerson",
            display_name="Save Person",
            category=CATEGORY,
            is_output_node=True,
            **found_by("person", "character", "save identity", "same character", "cast"),
            description="Crops the face in one or several photos of a person for all three methods, and keeps photos, "
                        "crops and what is computed from them in one file in models/stand_in/people. Load Person then "
                        "needs no face detector and no VAE.",
            inputs=[
                io.Image.Input("photos", tooltip=(
                    "One clear, frontal photo of the person, or a batch of several.")),
                io.String.Input("name", default="my_person", tooltip="Name of the person, and of the file."),
                io.Vae.Input("vae", optional=True, tooltip=(
                    "The Wan 2.1 VAE. With it, the latents for Stand-In are kept too, and Apply Identity Branch needs "
                    "no VAE.")),
                io.Latent.Input("latent", optional=True, tooltip=(
                    "An empty video latent. With it, the latents for Concat-ID are kept too, in this size of video. "
                    "Other sizes still need the VAE.")),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=(
                    "The CLIP vision model ViT-H. With it, what it sees is kept too, and Apply ID-Animator needs no "
                    "CLIP vision model.")),
                io.Combo.Input("preset", options=[name for name, preset in PRESETS.items() if not preset.aligned],
                               tooltip=(
                    "How the face is cropped for Stand-In, with the presets of Face Preprocess. The crops for "
                    "Concat-ID and ID-Animator have presets of their own.")),
                *one_face_inputs("Which face of each photo is the person: the largest, or the one that face_index "
                                 "counts from the left."),
                io.Boolean.Input("replace", default=False, tooltip=(
                    "On: replaces a person of this name. Off: stops if the file holds other photos.")),
                download_input("; BiSeNet 53 MB"),
                detector_input(),
                min_score_input(),
            ],
            outputs=[PersonType.Output("person", tooltip="The person. Connect it to an Apply node.")],
        )

    @classmethod
    def fingerprint_inputs(cls, detector, **inputs):
        return installed_models()

    @classmethod
    @checked
    def execute(cls, photos, name, replace, vae=None, latent=None, clip_vision=None, **settings):
        file = new_file(PEOPLE, name)
        person, verdict = make_person(name, photos, PersonSettings(**settings), vae, latent, clip_vision)
        save_person(person, file, replace)
        text = f"{person.as_text()}\n{verdict}"
        return io.NodeOutput(person, ui={"images": previews(cls, person.stand_in.image), "text": (text,)})


class LoadPerson(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadPerson",
            display_name="Load Person",
            category=CATEGORY,
            **found_by("person", "character", "load identity", "same character", "cast"), **keeps_what_it_shows(),
            description="Loads a person that Save Person kept, for Stand-In, Concat-ID and ID-Animator.",
            inputs=[
                FileInput("person", PEOPLE, tooltip=(
                    "A file from models/stand_in/people that Save Person wrote.")),
            ],
            outputs=[
                PersonType.Output("person", tooltip=(
                    "The person. Connect it to Apply Identity Branch, Apply Concat-ID or Apply ID-Animator.")),
                io.Image.Output("photos", tooltip="The photos. Connect them to Identity Report or Best of N."),
                io.Image.Output("image", tooltip="The face crops for Stand-In."),
                io.Mask.Output("mask", tooltip=(
                    "The mask of the face crops. Connect it to reference_mask of Apply Identity Branch, if you use "
                    "that.")),
                FaceCropType.Output("face", tooltip=(
                    "The face crops with their key points. Connect them to Face Swap Prepare.")),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, person):
        return fingerprint(PEOPLE, person)

    @classmethod
    @checked
    def execute(cls, person):
        loaded = load_person(listed_file(PEOPLE, person))
        face = loaded.stand_in
        return io.NodeOutput(loaded, loaded.photos, face.image, face.rgba[..., 3], face,
                             ui={"images": previews(cls, face.image), "text": (loaded.as_text(),)})
