"""The bundled workflows as data: nodes in groups, what links them, the files they name and the words beside them.

scripts/build_workflows.py lays them out in ComfyUI's own page and writes the files in workflows/ and subgraphs/.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field

WAN_21, WAN_22 = "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"

T2V = "wan2.1_t2v_14B_fp8_scaled.safetensors"
T2V_SMALL = "wan2.1_t2v_1.3B_bf16.safetensors"
T2V_HIGH = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"
T2V_LOW = "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
VACE = "wan2.1_vace_14B_fp16.safetensors"
CONCAT_ID = "second_stage_adaln.pt"
UMT5 = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
CLIP_VISION = "clip_vision_h.safetensors"
POSE = "sdpose_wholebody_fp16.safetensors"
ADAPTER = "Stand-In_wan2.1_T2V_14B_ver1.0_fp16.safetensors"
ADAPTER_HIGH, ADAPTER_LOW = "Stand-In_wan2.2_T2V_A14B_high.ckpt", "Stand-In_wan2.2_T2V_A14B_low.ckpt"
DISTILLED = "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors"
DISTILLED_HIGH = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors"
DISTILLED_LOW = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors"
STYLE = "wan_flat_color_v2.safetensors"
SD15 = "v1-5-pruned-emaonly-fp16.safetensors"
CLIP_H = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
ANIMATOR = "animator.ckpt"
MOTION = "mm_sd_v15_v2.ckpt"

# by the beginning of a node's name: the pack that it is of, as the Comfy Registry calls it
PACKS = {"ADE_": "comfyui-animatediff-evolved"}

@dataclass(frozen=True)
class Source:
    """Where a file comes from: its page, its folder in ``models``, its size if that is known, and its link."""

    page: str
    folder: str
    gigabytes: float | None
    url: str


def _hugging_face(repository: str, path: str, folder: str, gigabytes: float | None) -> Source:
    return Source(repository, folder, gigabytes, f"https://huggingface.co/{repository}/resolve/main/{path}")


SOURCES = {
    T2V: _hugging_face(WAN_21, f"split_files/diffusion_models/{T2V}", "diffusion_models", 14.3),
    T2V_SMALL: _hugging_face(WAN_21, f"split_files/diffusion_models/{T2V_SMALL}", "diffusion_models", 2.8),
    VACE: _hugging_face(WAN_21, f"split_files/diffusion_models/{VACE}", "diffusion_models", 34.7),
    T2V_HIGH: _hugging_face(WAN_22, f"split_files/diffusion_models/{T2V_HIGH}", "diffusion_models", 14.3),
    T2V_LOW: _hugging_face(WAN_22, f"split_files/diffusion_models/{T2V_LOW}", "diffusion_models", 14.3),
    CONCAT_ID: _hugging_face("yongzhong/Concat-ID-Wan", CONCAT_ID, "diffusion_models", None),
    UMT5: _hugging_face(WAN_21, f"split_files/text_encoders/{UMT5}", "text_encoders", 6.7),
    VAE: _hugging_face(WAN_21, f"split_files/vae/{VAE}", "vae", 0.25),
    CLIP_VISION: _hugging_face(WAN_21, f"split_files/clip_vision/{CLIP_VISION}", "clip_vision", 1.3),
    POSE: _hugging_face("Comfy-Org/SDPose", f"checkpoints/{POSE}", "checkpoints", 1.9),
    ADAPTER: _hugging_face("Kijai/WanVideo_comfy", f"LoRAs/Stand-In/{ADAPTER}", "stand_in", 0.3),
    ADAPTER_HIGH: _hugging_face("BowenXue/Stand-In", ADAPTER_HIGH, "stand_in", 0.6),
    ADAPTER_LOW: _hugging_face("BowenXue/Stand-In", ADAPTER_LOW, "stand_in", 0.6),
    DISTILLED: _hugging_face("Kijai/WanVideo_comfy", DISTILLED, "loras", 0.3),
    DISTILLED_HIGH: _hugging_face(WAN_22, f"split_files/loras/{DISTILLED_HIGH}", "loras", 1.2),
    DISTILLED_LOW: _hugging_face(WAN_22, f"split_files/loras/{DISTILLED_LOW}", "loras", 1.2),
    SD15: _hugging_face("Comfy-Org/stable-diffusion-v1-5-archive", SD15, "checkpoints", 2.1),
    CLIP_H: _hugging_face("h94/IP-Adapter", "models/image_encoder/model.safetensors", "clip_vision", 2.5),
    ANIMATOR: _hugging_face("ID-Animator/ID-Animator", ANIMATOR, "id_animator", 0.25),
    MOTION: _hugging_face("guoyww/animatediff", MOTION, "animatediff_models", 1.8),
    STYLE: _hugging_face("motimalu/wan-flat-color-v2", STYLE, "loras", 0.3),
}

NEGATIVE = ("overexposed, static, blurred details, subtitles, painting, still picture, worst quality, low quality, "
            "JPEG artifacts, ugly, extra fingers, deformed hands, deformed face, fused fingers, cluttered background, "
            "three legs, walking backwards")
PROMPT_TIP = "Say *a man* or *a woman* and what happens. Do not describe the face: the photo does."
FACE_FILES = ("The first run downloads two face networks (163 MB, facexlib on GitHub). With *download face models* "
              "off and no such network installed, a built-in detector finds frontal faces, and the photo keeps its "
              "background.")
CUT_OUT = ("The first run downloads two face networks (163 MB, facexlib on GitHub). With *download face models* off, "
           "take a photo with a transparent background, or put `parsing_bisenet.pth` into `models/facexlib`.")
QUICK_LOOK = "A quick look first: *one picture* in **Empty video** makes a picture instead of a video."


@dataclass(frozen=True)
class Node:
    """A node of a prompt.

    inputs: widget values, and links as (key of a node, number of its output).
    height: of a body that shows more than slots and widgets.
    """

    key: str
    kind: str
    inputs: dict = field(default_factory=dict)
    title: str = ""
    height: int = 0


@dataclass(frozen=True)
class Subgraph:
    """Nodes that the page shows as one.

    title, description: as the page shows them.
    keys: of its nodes; it stands where the first of them is listed.
    widgets: (key of a node, name of a widget, label) for each that it shows itself.
    inputs, outputs: names of the first, where the page's own do not tell them apart.
    shows: key of the node whose pictures it shows.
    """

    title: str
    description: str
    keys: tuple[str, ...]
    widgets: tuple[tuple[str, str, str], ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    shows: str = ""


@dataclass(frozen=True)
class App:
    """What the page's App mode shows: (key of a node, name of a widget, label) for each input, and keys of output
    nodes.
    """

    inputs: tuple[tuple[str, str, str], ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Workflow:
    """A workflow before it is laid out.

    headline, when: of the thumbnail, which has room for a line and for two.
    groups: each with its title and the nodes, from top to bottom, those that grow last.
    note: Markdown, above the list of the files.
    since: the oldest ComfyUI that has its nodes, where that is not the oldest that the pack promises.
    """

    name: str
    headline: str
    groups: tuple[tuple[str, tuple[Node, ...]], ...]
    note: str
    subgraphs: tuple[Subgraph, ...] = ()
    app: App | None = None
    when: str = ""
    since: str = ""

    @property
    def nodes(self) -> list[Node]:
        return [node for _, column in self.groups for node in column]

    @property
    def numbers(self) -> dict[str, str]:
        """Key of a node -> its id in prompt and graph, in the order of the groups."""
        return {node.key: str(number) for number, node in enumerate(self.nodes, start=1)}

    @property
    def links(self) -> set[tuple[str, str]]:
        """(id, id): the second takes an output of the first."""
        numbers = self.numbers
        return {(numbers[value[0]], numbers[node.key]) for node in self.nodes
                for value in node.inputs.values() if isinstance(value, tuple)}

    @property
    def prompt(self) -> dict:
        """As the server takes it."""
        numbers = self.numbers
        return {numbers[node.key]: {
            "class_type": node.kind,
            "inputs": {name: [numbers[value[0]], value[1]] if isinstance(value, tuple) else value
                       for name, value in node.inputs.items()},
            **({"_meta": {"title": node.title}} if node.title else {})} for node in self.nodes}

    def models(self, node: Node) -> list[dict]:
        """What ComfyUI shows for a file that is missing."""
        return [{"name": value, "url": SOURCES[value].url, "directory": SOURCES[value].folder}
                for value in node.inputs.values() if isinstance(value, str) and value in SOURCES]

    @property
    def words(self) -> str:
        named = dict.fromkeys(model["name"] for node in self.nodes for model in self.models(node))
        # the page breaks a line where the text does
        note = re.sub(r"(?<!\n)\n *(?![\n ]|\d\.|-|#)", " ", self.note)
        return f"{note}\n\n**Files**\n\n" + "\n".join(map(_file_line, named)) + "\n"


def _file_line(name: str) -> str:
    """A link with words that a narrow note can break, the size if it is known, and the folder."""
    source = SOURCES[name]
    size = "" if source.gigabytes is None else f", {source.gigabytes:g} GB"
    return f"- [{name.rpartition('.')[0].replace('_', ' ')}]({source.url}){size}, in *{source.folder}*"


def model(key: str = "model", name: str = T2V, title: str = "") -> Node:
    return Node(key, "UNETLoader", {"unet_name": name, "weight_dtype": "default"}, title)


def adapter(key: str = "adapter", name: str = ADAPTER, title: str = "") -> Node:
    return Node(key, "LoadStandIn", {"adapter": name}, title)


def encoder() -> Node:
    return Node("encoder", "CLIPLoader", {"clip_name": UMT5, "type": "wan", "device": "default"})


def vae() -> Node:
    return Node("vae", "VAELoader", {"vae_name": VAE})


def clip_vision(name: str = CLIP_VISION) -> Node:
    return Node("clip_vision", "CLIPVisionLoader", {"clip_name": name})


MODELS = (model(), encoder(), vae())
MODELS_AND_CLIP = (*MODELS, clip_vision())


def photo(key: str = "photo", title: str = "Photo") -> Node:
    return Node(key, "LoadImage", {"image": "photo.png"}, title, height=330)


def load_video(key: str = "source", file: str = "video.mp4", title: str = "The video") -> Node:
    """It stands last in its column: on the canvas it grows with an upright video."""
    return Node(key, "LoadVideo", {"file": file}, title, 300)


def face(key: str = "face", image: str = "photo", **settings) -> Node:
    return Node(key, "FacePreprocess", {"image": (image, 0), "download_missing": True, **settings})


def identity(key: str = "identity", source: tuple = ("model", 0), stand_in: str = "adapter",
             reference: tuple = ("face", 0), title: str = "", **settings) -> Node:
    return Node(key, "ApplyIdentityBranch", {"model": source, "stand_in": (stand_in, 0), "vae": ("vae", 0),
                                             "reference_image": reference, "preset": "paper", **settings}, title)


def turned(key: str = "identity") -> tuple[tuple[str, str, str], ...]:
    """What a subgraph shows of its identity branch, as in Subgraph.widgets."""
    return (key, "strength", "strength"), (key, "preset", "preset")


def identity_from_photo(key: str = "identity", source: tuple = ("model", 0), image: str = "photo",
                        file: str = ADAPTER, title: str = "Identity from a photo",
                        widgets: tuple[tuple[str, str], ...] = (), **settings) -> tuple[tuple[Node, ...], Subgraph]:
    """Adapter, face crop and identity branch, and the subgraph that shows them as one node.

    widgets: (name, label) of further widgets of the identity branch that the subgraph shows.
    settings: inputs of the identity branch.
    """
    nodes = (adapter(f"{key}_adapter", file), face(f"{key}_face", image),
             identity(key, source, f"{key}_adapter", (f"{key}_face", 0), **settings))
    return nodes, Subgraph(
        title, "Gives a Wan model the identity of the person in a photo: a photo, a model and a VAE in, a model out.",
        tuple(node.key for node in nodes),
        ((f"{key}_adapter", "adapter", "adapter"), *turned(key),
         *((key, name, label) for name, label in widgets),
         (f"{key}_face", "download_missing", "download face models")), shows=f"{key}_face")


def prompts(positive: str, negative: str = NEGATIVE, source: tuple = ("encoder", 0),
            height: int = 150) -> tuple[Node, Node]:
    """height: of the positive one."""
    return (Node("positive", "CLIPTextEncode", {"clip": source, "text": positive}, "Prompt", height),
            Node("negative", "CLIPTextEncode", {"clip": source, "text": negative}, "Negative prompt", 190))


def one_picture(key: str, video, picture) -> tuple[Node, Node]:
    """A switch, and the choice that it makes: what is for a picture where it is on, else what is for a video.

    key: of the choice.
    """
    return (Node("one", "PrimitiveBoolean", {"value": False}, "One picture"),
            Node(key, "ComfySwitchNode", {"switch": ("one", 0), "on_false": video, "on_true": picture}))


def empty_video(length: int = 81) -> tuple[Node, ...]:
    return (Node("whole", "EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": length, "batch_size": 1}),
            Node("first", "LatentCut", {"samples": ("whole", 0), "dim": "t", "index": 0, "amount": 1}),
            *one_picture("latent", ("whole", 0), ("first", 0)))


EMPTY = empty_video()
EMPTY_NODE = Subgraph(
    "Empty video", "The size and the length of the video; with *one picture* on, its first frame alone.",
    tuple(node.key for node in EMPTY), (("whole", "width", "width"), ("whole", "height", "height"),
                                        ("whole", "length", "length"), ("one", "value", "one picture")),
    outputs=("latent",))


def sampler(source: str = "identity", latent: tuple = ("latent", 0),
            conditioning: tuple = (("positive", 0), ("negative", 0)), key: str = "sampler", title: str = "",
            **settings) -> Node:
    return Node(key, "StandInSampler", {
        "model": (source, 0), "positive": conditioning[0], "negative": conditioning[1], "latent_image": latent,
        "seed": 0, "steps": 20, "cfg": 5.0, "sampler_name": "euler", "scheduler": "flow_matching", "shift": 5.0,
        "denoise": 1.0, "boundary": 0.875, **settings}, title)


def video(samples: tuple = ("sampler", 0), frames: tuple = ("decoded", 0), decode: Node | None = None,
          between: tuple[Node, ...] = (), **of_video) -> tuple[Node, ...]:
    return (decode or Node("decoded", "VAEDecode", {"samples": samples, "vae": ("vae", 0)}), *between,
            Node("video", "CreateVideo", {"images": frames, "fps": 16, **of_video}),
            Node("save", "SaveVideo", {"video": ("video", 0), "filename_prefix": "video/stand-in", "format": "mp4",
                                       "codec": "h264"}))


def likeness(key: str = "report", images: tuple = ("decoded", 0), title: str = "",
             reference: tuple = ("photo", 0)) -> Node:
    return Node(key, "IdentityReport", {"images": images, "reference_image": reference,
                                        "clip_vision": ("clip_vision", 0)}, title)


CAFE = ("A woman sits at a cafe table by the window. She looks up, smiles at the camera and raises her cup. Soft "
        "morning light, medium shot.")

PERSON, PERSON_NODE = identity_from_photo()
IDENTITY = Workflow(
    "identity_text_to_video", "One photo, a video",
    (("Models", MODELS), ("Who", (photo(),)), ("What happens", prompts(CAFE)), ("Identity", PERSON),
     ("Sample", (*EMPTY, sampler())), ("Video", video())),
    f"""## One photo in, a video of that person out

1. **Photo**: one clear, frontal photo.
2. **Prompt**: {PROMPT_TIP}
3. Run. **Identity from a photo** shows the crop of the face; **Stand-In Sampler** reports how the identity was used.

Steps, cfg and shift are the authors'. {QUICK_LOOK} The button beside *Graph*, at the top left, shows this as an app.
*Enter subgraph* opens the face crop and all controls.

{FACE_FILES}""",
    subgraphs=(EMPTY_NODE, PERSON_NODE),
    app=App((("photo", "image", "photo"), ("positive", "text", "prompt")), ("save",)),
    when="Begin here. Wan 2.1, the authors' 20 steps.")

QUICK, QUICK_NODE = identity_from_photo(source=("distilled", 0))
DISTILLED_STEPS = Workflow(
    "identity_in_4_steps", "The same in 4 steps",
    (("Models", (model(), Node("distilled", "LoraLoaderModelOnly", {
        "model": ("model", 0), "lora_name": DISTILLED, "strength_model": 1.0}, "Distilled LoRA"), *MODELS[1:])),
     ("Who", (photo(),)), ("What happens", prompts(CAFE)), ("Identity", QUICK),
     ("Sample", (*EMPTY, sampler(steps=4, cfg=1.0))), ("Video", video())),
    f"""## The same in 4 steps

A distilled LoRA: 4 steps and **cfg 1**, which skips the negative prompt. A tenth of the time, with a little less
motion. It stands before the identity, which is therefore computed with it.

{PROMPT_TIP} Where the face looks pasted, lower *strength*.

{FACE_FILES}""",
    subgraphs=(EMPTY_NODE, QUICK_NODE),
    when="A distilled LoRA: a tenth of the time, a little less motion.")


def four_steps_or_twenty() -> tuple[tuple[Node, ...], Subgraph]:
    """The two experts with and without their distilled LoRAs, and what each needs of the sampler."""
    def choice(key: str, without, with_) -> Node:
        return Node(key, "ComfySwitchNode", {"switch": ("four", 0), "on_false": without, "on_true": with_})

    def lora(key: str, source: str, name: str) -> Node:
        return Node(key, "LoraLoaderModelOnly", {"model": (source, 0), "lora_name": name, "strength_model": 1.0})

    def number(key: str, kind: str, value: float) -> Node:
        return Node(key, kind, {"value": value})

    nodes = (Node("four", "PrimitiveBoolean", {"value": True}, "4 steps"),
             lora("distilled_high", "model", DISTILLED_HIGH), lora("distilled_low", "low_model", DISTILLED_LOW),
             number("steps_20", "PrimitiveInt", 20), number("steps_4", "PrimitiveInt", 4),
             number("cfg_5", "PrimitiveFloat", 5.0), number("cfg_1", "PrimitiveFloat", 1.0),
             choice("high", ("model", 0), ("distilled_high", 0)), choice("low", ("low_model", 0), ("distilled_low", 0)),
             choice("steps", ("steps_20", 0), ("steps_4", 0)), choice("cfg", ("cfg_5", 0), ("cfg_1", 0)))
    return nodes, Subgraph("Speed", "4 steps at cfg 1 with distilled LoRAs, or 20 steps at cfg 5 without.",
                           tuple(node.key for node in nodes),
                           (("four", "value", "4 steps"),),
                           ("high noise", "low noise"), ("high noise", "low noise", "steps", "cfg"))


SPEED, SPEED_NODE = four_steps_or_twenty()
HIGH, HIGH_NODE = identity_from_photo("identity", ("high", 0), file=ADAPTER_HIGH, title="Identity, high noise")
LOW, LOW_NODE = identity_from_photo("low_identity", ("low", 0), file=ADAPTER_LOW, title="Identity, low noise")
WAN22 = Workflow(
    "identity_wan_2_2", "Wan 2.2, 4 or 20 steps",
    (("Models", (model("model", T2V_HIGH, "High-noise expert"), model("low_model", T2V_LOW, "Low-noise expert"),
                 encoder(), vae())),
     ("Who", (photo(),)), ("What happens", prompts(CAFE)), ("4 steps or 20", SPEED),
     ("Identity in both experts", (*HIGH, *LOW)),
     ("Sample", (*EMPTY, sampler(low_noise_model=("low_identity", 0), steps=("steps", 0), cfg=("cfg", 0)))),
     ("Video", video())),
    f"""## Wan 2.2 A14B, both experts

**Speed**: *4 steps* on takes distilled LoRAs at cfg 1, off takes 20 steps at cfg 5, as the authors do. The LoRAs are
inside it (*Enter subgraph*).

Each expert has its own adapter; both read the same photo. **Stand-In Sampler** changes from one to the other where the
noise falls below *boundary*, so there are no start and end steps to set.

{PROMPT_TIP} {QUICK_LOOK}

{FACE_FILES}""",
    subgraphs=(EMPTY_NODE, SPEED_NODE, HIGH_NODE, LOW_NODE),
    when="Both experts in one sampler, a switch for the speed.")

SMALLER_VACE = ("VACE comes in fp16. About half as large: [Wan2.1 14B VACE Q8](https://huggingface.co/QuantStack/"
                "Wan2.1_14B_VACE-GGUF/resolve/main/Wan2.1_14B_VACE-Q8_0.gguf), 18.7 GB, in *diffusion_models*, with "
                "*Unet Loader (GGUF)* of ComfyUI-GGUF in place of Load Diffusion Model.")
POSES = (Node("pose_model", "CheckpointLoaderSimple", {"ckpt_name": POSE}),
         Node("keypoints", "SDPoseKeypointExtractor", {"model": ("pose_model", 0), "vae": ("pose_model", 2),
                                                       "image": ("frames", 0), "batch_size": 16}),
         Node("poses", "SDPoseDrawKeypoints", {"keypoints": ("keypoints", 0), "draw_face": False}))
LENGTH = (Node("all_frames", "PrimitiveInt", {"value": 81}), Node("one_frame", "PrimitiveInt", {"value": 1}),
          *one_picture("length", ("all_frames", 0), ("one_frame", 0)))
CONTROLLED = Workflow(
    "identity_vace_control", "Moves as in a video",
    (("Models", (model("model", VACE), *MODELS[1:])), ("Who", (photo(),)),
     ("How it moves", (load_video("control", "control.mp4", "Video with the movement"),)),
     ("Poses", (Node("frames", "GetVideoComponents", {"video": ("control", 0)}), *POSES)),
     ("What happens", prompts(
         "A man in a grey coat dances on an empty square in the evening. Street lamps, wet cobbles, full shot.")),
     ("Identity", PERSON),
     ("Sample", (
         *LENGTH,
         Node("vace", "WanVaceToVideo", {
             "positive": ("positive", 0), "negative": ("negative", 0), "vae": ("vae", 0),
             "control_video": ("poses", 0), "width": 832, "height": 480, "length": ("length", 0), "batch_size": 1,
             "strength": 0.5}),
         sampler(latent=("vace", 2), conditioning=(("vace", 0), ("vace", 1))))),
     ("Video", (Node("trimmed", "TrimVideoLatent", {"samples": ("sampler", 0), "trim_amount": ("vace", 3)}),
                *video(("trimmed", 0))))),
    f"""## A video says how, the photo says who

1. **Video with the movement**: anybody who moves. **Poses** draws the skeleton, without a face.
2. **WanVaceToVideo, strength** 0.5 is the authors': VACE leans towards faces of its own. With a *reference_image* too,
   0.8.

{PROMPT_TIP} A quick look first: *one picture* in **Length** makes the first frame alone.

{SMALLER_VACE}

{FACE_FILES}""",
    subgraphs=(Subgraph("Poses", "The skeletons of the people in a video.", tuple(node.key for node in POSES),
                        (("pose_model", "ckpt_name", "pose model"), ("poses", "draw_face", "draw face"))),
               Subgraph("Length", "How many frames the video has; with *one picture* on, one.",
                        tuple(node.key for node in LENGTH),
                        (("all_frames", "value", "length"), ("one", "value", "one picture")), outputs=("length",)),
               PERSON_NODE),
    when="VACE takes the movement from a video, the face from a photo.")

DRAWN, DRAWN_NODE = identity_from_photo(source=("style", 0), widgets=(("start_percent", "start"),))
STYLED = Workflow(
    "identity_in_a_style", "In the style of a LoRA",
    (("Models", (model(), Node("style", "LoraLoaderModelOnly", {
        "model": ("model", 0), "lora_name": STYLE, "strength_model": 1.0}, "Style LoRA"), *MODELS[1:])),
     ("Who", (photo(),)),
     ("What happens", prompts(
         "Flat color 2D animation, no lineart. A woman runs up a green hill against the wind, stops at the top and "
         "looks out over the sea. Summer clouds.")),
     ("Identity", DRAWN),
     ("Sample", (*EMPTY, sampler())), ("Video", video())),
    f"""## A person in a style

**Style LoRA**: any for Wan 2.1 14B, with its trigger words first in the prompt. The one named here is *Flat Color* by
motimalu.

A photo that stays a photo: *strength* 0.7, or *start* 0.1. A style that loses the person: *strength* 1.5.

{PROMPT_TIP}

{FACE_FILES}""",
    subgraphs=(EMPTY_NODE, DRAWN_NODE), when="Any style LoRA for Wan 2.1; the person stays the person.")

HALF_WIDTH = 416
HALVES = (Node("nothing", "SolidMask", {"value": 0.0, "width": 832, "height": 480}, "Nowhere"),
          Node("half", "SolidMask", {"value": 1.0, "width": HALF_WIDTH, "height": 480}, "Half of the width"),
          Node("left", "MaskComposite", {"destination": ("nothing", 0), "source": ("half", 0), "x": 0, "y": 0,
                                         "operation": "add"}, "Left half"),
          Node("right", "InvertMask", {"mask": ("left", 0)}, "Right half"))
LEFT, LEFT_NODE = identity_from_photo("left_identity", ("model", 0), "photo", title="Identity on the left",
                                      region=("left", 0))
RIGHT, RIGHT_NODE = identity_from_photo("identity", ("left_identity", 0), "other_photo", title="Identity on the right",
                                        region=("right", 0))
TWO_PEOPLE = Workflow(
    "two_people", "Two people, two photos",
    (("Models", MODELS),
     ("Who", (photo("photo", "The person on the left"), photo("other_photo", "The person on the right"))),
     ("Where", HALVES), ("One after the other", (*LEFT, *RIGHT)),
     ("What happens", prompts(
         "A woman on the left and a man on the right sit on a park bench and talk; he laughs, she turns to him. Autumn "
         "leaves, medium shot.")),
     ("Sample", (*EMPTY, sampler())), ("Video", video())),
    f"""## Two people, each in a region

Each **Identity** adds a person, with a photo, a *region* and a *strength* of its own. A region is a mask in the size of
the video; where it is black, nobody reads that photo. Say in the prompt who is where.

Paint masks of your own in place of **Left and right half**, or connect one for each frame for people who move. Regions
are untrained: the adapters were made with one person, everywhere.

{PROMPT_TIP}

{FACE_FILES}""",
    subgraphs=(EMPTY_NODE,
               Subgraph("Left and right half", "Masks of the left and of the right half of the video.",
                        tuple(node.key for node in HALVES), outputs=("left half", "right half")),
               LEFT_NODE, RIGHT_NODE),
    when="Each in a region, by a photo of its own. Untrained.")

THING = (adapter(), Node("rgba", "JoinImageWithAlpha", {"image": ("photo", 0), "alpha": ("photo", 1)}),
         face("face", "rgba", detector="none", parser="none", download_missing=False), identity())
SUBJECT = Workflow(
    "any_subject", "A cat, a cup, a cartoon",
    (("Models", MODELS),
     ("Who or what", (photo("photo", "Picture of the subject"),)),
     ("What happens", prompts(
         "A toy robot walks across a wooden desk, stops in front of a lamp and waves. Warm light, shallow depth of "
         "field.")),
     ("Identity", THING),
     ("Sample", (*EMPTY, sampler())), ("Video", video())),
    f"""## An object, an animal, a cartoon

The whole picture is the reference here, padded to a square on white; no face is looked for. The subject should fill it
and stand on a plain background. What is transparent becomes white.

Name the subject in the prompt ("a toy robot") and say what it does; do not describe how it looks. The adapters were
trained on people: subjects are what they happen to be good at.

{QUICK_LOOK}""",
    subgraphs=(EMPTY_NODE,
               Subgraph("Identity from a picture", "Gives a Wan model the identity of the subject of a picture.",
                        tuple(node.key for node in THING),
                        (("adapter", "adapter", "adapter"), *turned()), shows="face")),
    when="No face needed: the whole picture is the reference.")

LEAN, LEAN_NODE = identity_from_photo(widgets=(("cache", "cache"),), cache="offloaded")
LOW_MEMORY = Workflow(
    "low_memory", "On a small card",
    (("Models", MODELS), ("Who", (photo(),)), ("What happens", prompts(CAFE)), ("Identity", LEAN),
     ("Sample", (*EMPTY, sampler())),
     ("Video", video(decode=Node("decoded", "VAEDecodeTiled", {
         "samples": ("sampler", 0), "vae": ("vae", 0), "tile_size": 256, "overlap": 64, "temporal_size": 64,
         "temporal_overlap": 8})))),
    f"""## On a small card

- **fp8 weights**: ComfyUI streams from host memory what does not fit.
- **Identity, cache** offloaded keeps the identity's keys and values in host memory (839 MB): 42 MB on the card.
  *streaming* takes no host memory, but then ComfyUI fetches most weights twice; *fp8* takes 420 MB on the card.
- **VAE Decode (Tiled)** decodes in pieces.
- **GGUF**: *Unet Loader (GGUF)* of ComfyUI-GGUF in place of Load Diffusion Model.

{PROMPT_TIP} {FACE_FILES}""",
    subgraphs=(EMPTY_NODE, LEAN_NODE), when="fp8 or GGUF weights, the identity in host memory.")

TWO_GPUS = Workflow(
    "two_gpus", "On two GPUs at once",
    (("Models", MODELS), ("Who", (photo(),)), ("What happens", prompts(CAFE)),
     ("Identity", (*PERSON, Node("split", "MultiGPU_WorkUnits", {"model": ("identity", 0), "max_gpus": 2}))),
     ("Sample", (*EMPTY, sampler("split"))), ("Video", video())),
    f"""## A step of sampling on two GPUs at once

**MultiGPU CFG Split** computes the pass with the prompt on one GPU and the pass with the negative prompt on the other.
Each GPU has a copy of the model, and its copy reads the identity by itself.

- It stands last before the sampler, after **Identity from a photo**.
- At cfg 1 there is one pass and nothing to split: distilled LoRAs gain nothing here.
- With one GPU it changes nothing.

{PROMPT_TIP} {QUICK_LOOK}

{FACE_FILES}""",
    subgraphs=(EMPTY_NODE, PERSON_NODE), when="The two passes of guidance, each on a GPU of its own.", since="0.24.1")

PHOTOS = ("photo", "photo_2", "photo_3")
CROPS = (face("face", PHOTOS[0]), face("face_2", PHOTOS[1]), face("face_3", PHOTOS[2]),
         Node("batch", "BatchImagesNode", {"images.image0": ("face", 0), "images.image1": ("face_2", 0),
                                           "images.image2": ("face_3", 0)}),
         adapter(), identity(reference=("batch", 0), normalize_references=True))
SEVERAL_PHOTOS = Workflow(
    "several_photos", "Three photos of one person",
    (("Models", MODELS_AND_CLIP),
     ("Who", tuple(photo(key, title) for key, title in zip(PHOTOS, ("Photo", "Second photo", "Third photo")))),
     ("Identity", CROPS), ("What happens", prompts(CAFE)), ("Sample", (*EMPTY, sampler())), ("Video", video()),
     ("Is it the person?", (likeness(reference=("batch", 0)),))),
    f"""## Several photos of one person

Three crops in one batch: the video reads all of them. With *normalize_references* they weigh as much as one photo;
without it, three times as much. Experimental: the published adapters were trained with one photo.

**Identity Report** measures how like the photos each frame is. It compares by CLIP vision; a face recognition network
in *models/facexlib* tells faces apart better.

{PROMPT_TIP} The first run downloads two face networks (163 MB, facexlib on GitHub).""",
    subgraphs=(EMPTY_NODE,
               Subgraph("Identity from three photos", "Gives a Wan model the identity of the person in three photos.",
                        tuple(node.key for node in CROPS),
                        (("adapter", "adapter", "adapter"), *turned(),
                         ("identity", "normalize_references", "normalize references")), shows="face")),
    when="More views of one face, and a report on the likeness.")

SEEDS = (*(Node(f"seed_{number}", "PrimitiveInt", {"value": number}) for number in (1, 2, 3, 4)),
         Node("seeds", "CreateList", {f"inputs.input{number - 1}": (f"seed_{number}", 0) for number in (1, 2, 3, 4)}))
CHOOSE = Workflow(
    "choose_a_seed", "Four seeds, the best one",
    (("Models", MODELS_AND_CLIP), ("Who", (photo(),)),
     ("What happens", prompts(CAFE)), ("Identity", PERSON), ("Four seeds", SEEDS),
     ("Tries", (*EMPTY, sampler(key="tries", title="Few steps", seed=("seeds", 0), steps=6),
                Node("tried", "VAEDecode", {"samples": ("tries", 0), "vae": ("vae", 0)}),
                Node("best", "BestOfN", {"images": ("tried", 0), "reference_image": ("photo", 0),
                                         "clip_vision": ("clip_vision", 0), "seeds": ("seeds", 0)}))),
     ("Sample", (sampler(title="All steps", seed=("best", 1)),)), ("Video", video())),
    f"""## Four tries, and the best of them

1. **Seeds**: four of them. **Few steps** makes a rough video of each, 6 steps instead of 20.
2. **Best of N** orders them by likeness to the photo, copies last, and shows them on one sheet.
3. **All steps** makes the best one again, in full.

One picture first: *one picture* in **Empty video** makes tries and result single pictures. Tries have the size and the
length of the result, because a seed is other noise at another size or length.

{PROMPT_TIP} Likeness is by CLIP vision; a face recognition network in *models/facexlib* tells faces apart better.

{FACE_FILES}""",
    subgraphs=(EMPTY_NODE, PERSON_NODE, Subgraph(
        "Seeds", "A list of four seeds.", tuple(node.key for node in SEEDS),
        tuple((f"seed_{number}", "value", f"seed {number}") for number in (1, 2, 3, 4)), outputs=("seeds",))),
    when="Rough tries, ordered by likeness; the best one in full.")

WINDOWS = Node("windows", "WanContextWindowsManual", {
    "model": ("identity", 0), "context_length": 81, "context_overlap": 30, "context_schedule": "standard_uniform",
    "context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "freenoise": True})
LONG = Workflow(
    "long_video", "Ten seconds of one person",
    (("Models", MODELS_AND_CLIP), ("Who", (photo(),)), ("What happens", prompts(CAFE)),
     ("Identity", (*PERSON, WINDOWS)),
     ("Sample", (*empty_video(161), sampler("windows"))),
     ("Video, and is it the person?", (*video(), likeness()))),
    f"""## A longer video, one identity

**Wan Context Windows** samples 161 frames in windows of 81 that overlap by 30. Every window reads the same keys and
values of the photo, which are computed once for all of the video.

The model sees one window at a time: a story longer than that does not hold together by itself. A higher *context
overlap* makes smoother joints and takes longer. **Identity Report** shows whether the likeness holds to the end.

*continue_a_video* goes on from the end of a video instead, with a prompt of its own for what comes next.

{PROMPT_TIP} {QUICK_LOOK}

{FACE_FILES}""",
    subgraphs=(EMPTY_NODE, PERSON_NODE), when="161 frames in context windows, one identity.")

ENDING = (Node("ending", "Video Slice", {"video": ("source", 0), "start_time": -1.0, "duration": 0.0,
                                         "strict_duration": False}),
          Node("last", "GetVideoComponents", {"video": ("ending", 0)}),
          Node("kept", "SplitImageWithAlpha", {"image": ("last", 0)}),  # the mask: 0 in every frame, which VACE keeps
          Node("count", "GetImageSize", {"image": ("last", 0)}))
CONTINUED = Workflow(
    "continue_a_video", "And then? It goes on",
    (("Models", (model("model", VACE), *MODELS[1:])), ("Who", (photo(),)),
     ("So far", (load_video(title="The video so far"),)),
     ("The last second", (Node("frames", "GetVideoComponents", {"video": ("source", 0)}), *ENDING)),
     ("What happens next", prompts(
         "A woman at a cafe table by the window puts her cup down, stands up and waves to somebody outside. Soft "
         "morning light, medium shot.")),
     ("Identity", PERSON),
     ("Sample", (
         Node("vace", "WanVaceToVideo", {
             "positive": ("positive", 0), "negative": ("negative", 0), "vae": ("vae", 0),
             "control_video": ("kept", 0), "control_masks": ("kept", 1), "width": 832, "height": 480, "length": 81,
             "batch_size": 1, "strength": 1.0}),
         sampler(latent=("vace", 2), conditioning=(("vace", 0), ("vace", 1))))),
     ("The whole video", video(
         frames=("whole", 0), fps=("frames", 2), audio=("frames", 1), between=(
             Node("new", "ImageFromBatch", {"image": ("decoded", 0), "batch_index": ("count", 2), "length": 4096},
                  "What is new"),
             Node("whole", "BatchImagesNode", {"images.image0": ("frames", 0), "images.image1": ("new", 0)}))))),
    f"""## A video goes on, with the same person

1. **The video so far**: of 16 frames a second and of the size in **WanVaceToVideo**, as the other templates make them.
2. **Last frames**: VACE keeps the last second and makes what comes after it, 81 frames together. The result is the
   whole video.
3. **Photo**: the person. Every piece that is added reads the photo anew.

A picture as the first frame: Load Image and Create Video (16 frames a second) in place of **The video so far**.

A quick look first: *length* 21 in **WanVaceToVideo** makes five new frames. There is no *one picture* here: it would be
a frame of the video so far.

Experimental: Stand-In's adapters were trained without VACE. Image-to-video models with this pack are experimental too.

{SMALLER_VACE}

{PROMPT_TIP}

{FACE_FILES}""",
    subgraphs=(Subgraph("Last frames", "The last second of a video, as VACE takes frames that it keeps.",
                        tuple(node.key for node in ENDING), (("ending", "start_time", "from (seconds)"),),
                        outputs=("frames to keep", "mask", "how many")), PERSON_NODE),
    when="VACE takes up the last second; the person stays the person.")

REFINED = (adapter(), face(), identity(),
           Node("prepared", "RefineFacesPrepare", {"images": ("frames", 0), "download_missing": True}),
           Node("latent", "FaceSwapEncode", {"images": ("prepared", 0), "mask": ("prepared", 1), "vae": ("vae", 0),
                                             "background": "locked", "mask_edge": "soft"}))


REFINE = Workflow(
    "refine_faces", "Small faces made anew",
    (("Models", MODELS_AND_CLIP), ("Who", (photo(),)),
     ("Video", (load_video(),)),
     ("Enlarge the face", (Node("frames", "GetVideoComponents", {"video": ("source", 0)}), *REFINED)),
     ("What is seen", prompts("The face of a woman.", height=90)),
     ("Sample", (sampler(denoise=0.4),)),
     ("Back into the video", video(
         frames=("composite", 0), fps=("frames", 2), audio=("frames", 1), between=(
             Node("composite", "RefineFacesComposite", {
                 "source": ("frames", 0), "images": ("decoded", 0), "mask": ("prepared", 1),
                 "face_track": ("prepared", 2)}),))),
     ("Is it the person?", (likeness("before", ("prepared", 0), "Before"),
                            likeness("after", ("composite", 1), "After")))),
    f"""## Small faces of a finished video, drawn anew

1. **The video**: one shot, 81 frames at most, with a small face in it.
2. **Photo**: the person. **Prompt**: *the face of a man* or *of a woman*.
3. **Before** and **After** measure how similar the enlarged face is to the photo.

A higher *denoise* changes more of the face. For a second person, do it again with the result: *which face* from left,
another *face index*, and that person's photo.

{FACE_FILES}""",
    subgraphs=(Subgraph(
        "Small face of a person", "Enlarges a small face of a video, and gives the model the identity of a photo.",
        tuple(node.key for node in REFINED),
        (("adapter", "adapter", "adapter"), ("identity", "strength", "strength"),
         ("prepared", "which_face", "which face"), ("prepared", "face_index", "face index"),
         ("prepared", "largest_face", "largest face"), ("face", "download_missing", "download face models"),
         ("prepared", "download_missing", "download detector")), shows="face"),),
    when="The face of a distant person, made anew by a photo.")

PASTED = (adapter(), Node("rgba", "JoinImageWithAlpha", {"image": ("photo", 0), "alpha": ("photo", 1)}),
          face("face", "rgba"), Node("prepared", "FaceSwapPrepare", {"images": ("frames", 0), "face": ("face", 5)}),
          Node("latent", "FaceSwapEncode", {"images": ("prepared", 0), "mask": ("prepared", 1), "vae": ("vae", 0),
                                            "background": "locked"}), identity())
FACE_SWAP = Workflow(
    "face_swap", "Another face in a video",
    (("Models", MODELS),
     ("New face", (photo(),)), ("What is seen", prompts("A woman talks to the camera.")),
     ("Video", (load_video(),)),
     ("Paste it", (Node("frames", "GetVideoComponents", {"video": ("source", 0)}), *PASTED)),
     ("Sample", (sampler(denoise=0.85),)),
     ("Back over the video", video(
         frames=("composite", 0), fps=("frames", 2), audio=("frames", 1), between=(
             Node("composite", "FaceSwapComposite", {"source": ("frames", 0), "images": ("decoded", 0),
                                                     "mask": ("prepared", 1)}),)))),
    f"""## Another face in a video

1. **The video**: one shot, the face in view, 81 frames at most.
2. **Photo**: the new person. The face is cut out by a network, or by the photo's transparency.
3. **Prompt**: *a man* or *a woman* and what is seen.

A higher *denoise* gives a more natural face that follows the old expression less. Experimental: profiles, hands before
the face and fast turns show.

{CUT_OUT}""",
    subgraphs=(Subgraph(
        "New face on a video", "Pastes the face of a photo on the face in a video, and gives the model its identity.",
        tuple(node.key for node in PASTED),
        (("adapter", "adapter", "adapter"), *turned(),
         ("prepared", "which_face", "which face"), ("prepared", "face_index", "face index"),
         ("latent", "background", "background"), ("face", "download_missing", "download face models")),
        shows="face"),),
    app=App((("source", "file", "video"), ("photo", "image", "photo"), ("positive", "text", "prompt")), ("save",)),
    when="Keep the video, change the face. Experimental.")

TRIED = (face(), identity(stand_in="training"))
TRAIN = Workflow(
    "train_an_adapter", "Train your own adapter",
    (("Models", (model(name=T2V_SMALL), *MODELS_AND_CLIP[1:])),
     ("Videos of people", (
         Node("people", "LoadVideoTextDataSetFromFolder", {"folder": "people"}, "Videos and captions"),
         Node("data", "PrepareTrainingData", {"videos": ("people", 0), "captions": ("people", 1), "vae": ("vae", 0),
                                              "clip": ("encoder", 0), "download_missing": True}))),
     ("Train", (Node("training", "TrainStandIn", {"model": ("model", 0), "training_data": ("data", 0),
                                                  "vae": ("vae", 0)}),)),
     ("What happens", prompts(CAFE)), ("Try it on somebody else", (photo(), *TRIED)),
     ("Sample", (*EMPTY, sampler())), ("Video, and is it the person?", (*video(), likeness()))),
    """## An adapter of your own

1. A folder of videos of people in ComfyUI's *input* folder, here *people*: each longer than a clip, with a text file of
   the same name that says what happens and never who it is.
2. **Prepare Training Data** cuts clips, takes photos from frames outside of each, and encodes everything once.
3. **Train Stand-In** writes the adapter into *models/stand_in*. Stop it whenever you like: the next run goes on.
4. What comes out is tried on a photo of somebody who is in none of the videos, and **Identity Report** measures how
   similar the person in the video is to it.

By estimate, the 1.3B model takes 9.3 GiB of the card's memory, a 14B model in bf16 51 GiB. The authors trained on
thousands of people; with a handful, the adapter learns those. The guide is *docs/training.md*.""",
    subgraphs=(EMPTY_NODE,
               Subgraph("Identity by the new adapter", "The face of a photo, read by the adapter that was trained.",
                        tuple(node.key for node in TRIED),
                        (*turned(), ("face", "download_missing", "download face models")),
                        shows="face")),
    when="From a folder of videos, tried on somebody else.", since="0.30.0")

CONCATENATED_FACE = (face(preset="Concat-ID"),
                     Node("identity", "ApplyConcatID", {
                         "model": ("model", 0), "concat_id": ("model", 1), "latent": ("latent", 0), "vae": ("vae", 0),
                         "reference_image": ("face", 0)}))
CONCATENATED = Workflow(
    "concat_id_text_to_video", "Concat-ID on Wan 1.3B",
    (("Models", (Node("model", "LoadConcatID", {"file": CONCAT_ID, "weight_dtype": "default"}), encoder(), vae(),
                 clip_vision())),
     ("Who", (photo(),)), ("What happens", (*EMPTY, *prompts(CAFE, "..."))), ("Identity", CONCATENATED_FACE),
     ("Sample", (sampler(steps=50),)), ("Video", video()),
     ("Is it the person?", (likeness(),))),
    f"""## One photo in, a video of that person out, with a model of 1.3B

Concat-ID is a Wan 2.1 of 1.3B that was fine-tuned to keep a person: the photo runs through it as one more frame. It is
a tenth of the size of the 14B models that Stand-In's adapters are for.

1. **Photo**: one clear photo of the face, which is turned upright and cut out.
2. **Prompt**: what happens, and who: *a man*, *a woman*.
3. Run. **Identity Report** measures how similar the person is to the photo.

The settings are the authors': 50 steps, cfg 5, shift 5, and *...* as the negative prompt. Their other file,
*first_stage.pt*, works as well.

{FACE_FILES}""",
    subgraphs=(EMPTY_NODE,
               Subgraph("Identity by Concat-ID", "Gives a Concat-ID model the person in a photo.",
                        tuple(node.key for node in CONCATENATED_FACE),
                        (("face", "download_missing", "download face models"),), shows="face")),
    when="A small model, fine-tuned to keep a person.")

SD15_MODELS = (Node("checkpoint", "CheckpointLoaderSimple", {"ckpt_name": SD15}),
               clip_vision(CLIP_H))
ANIMATOR_FACE = (Node("adapter", "LoadIDAnimator", {"adapter": ANIMATOR}), face(preset="ID-Animator"),
                 Node("identity", "ApplyIDAnimator", {
                     "model": ("checkpoint", 0), "id_animator": ("adapter", 0), "clip_vision": ("clip_vision", 0),
                     "reference_image": ("face", 0), "strength": 0.8}))
ANIMATOR_NODE = Subgraph("Identity by ID-Animator", "Gives an SD1.5 model the face in a photo.",
                         tuple(node.key for node in ANIMATOR_FACE),
                         (("adapter", "adapter", "adapter"), ("identity", "strength", "strength"),
                          ("face", "download_missing", "download face models")), shows="face")
SD15_NEGATIVE = "worst quality, low quality, blurry, deformed, watermark, text, long shots, full body"
SD15_NOTE = """The face is aligned at 112 pixels, as the adapter's training had it, so a face of that size in the photo
is enough. *strength* 0.7 to 1 is the authors'; lower gives the prompt more freedom. Several photos go in as one batch.

A realistic SD1.5 checkpoint in place of the one named here gives better faces. *model.safetensors* of h94/IP-Adapter is
the CLIP vision ViT-H: save it as *CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors*.

ID-Animator keeps less of a likeness than Stand-In and Concat-ID, and needs the smallest card of the three. The first
run downloads a face network (110 MB, facexlib on GitHub)."""


def ksampler(source: str, pictures: int, title: str) -> tuple[Node, Node]:
    """The authors' sampling.

    title: of the empty latent.
    """
    return (Node("latent", "EmptyLatentImage", {"width": 512, "height": 512, "batch_size": pictures}, title),
            Node("sampler", "KSampler", {
                "model": (source, 0), "positive": ("positive", 0), "negative": ("negative", 0),
                "latent_image": ("latent", 0), "seed": 0, "steps": 25, "cfg": 8.0, "sampler_name": "ddim",
                "scheduler": "ddim_uniform", "denoise": 1.0}))


DECODED = Node("decoded", "VAEDecode", {"samples": ("sampler", 0), "vae": ("checkpoint", 2)})
PICTURES = Workflow(
    "face_in_pictures", "This person in pictures",
    (("Models", SD15_MODELS), ("Who", (photo(),)),
     ("What is seen", prompts("a woman in a red coat before a bookshelf, 8k uhd, high quality, medium shot",
                              SD15_NEGATIVE, ("checkpoint", 1))),
     ("Identity", ANIMATOR_FACE), ("Sample", ksampler("identity", 4, "Four pictures")),
     ("Pictures", (DECODED, Node("save", "SaveImage", {"images": ("decoded", 0), "filename_prefix": "id-animator"}))),
     ("Is it the person?", (likeness(),))),
    f"""## One photo in, pictures of that person out, on a small card

1. **Photo**: one clear, frontal photo of the person.
2. **Prompt**: what is seen, close enough for a face: *medium shot*.
3. Run: four pictures of the same person. **Identity Report** measures how similar each is to the photo.

{SD15_NOTE}""",
    subgraphs=(ANIMATOR_NODE,), when="Still pictures on SD1.5, for the smallest card.")

MOVING = (Node("motion_file", "ADE_LoadAnimateDiffModel", {"model_name": MOTION}),
          Node("motion", "ADE_ApplyAnimateDiffModelSimple", {"motion_model": ("motion_file", 0)}),
          Node("moving", "ADE_UseEvolvedSampling", {"model": ("identity", 0), "beta_schedule": "autoselect",
                                                    "m_models": ("motion", 0)}))
ANIMATED = Workflow(
    "face_in_a_short_video", "A short video on a small card",
    (("Models", SD15_MODELS), ("Who", (photo(),)),
     ("What happens", prompts("a woman turns her head and smiles, an evening garden behind her, 8k uhd, high quality, "
                              "medium shot", SD15_NEGATIVE, ("checkpoint", 1))),
     ("Identity", ANIMATOR_FACE), ("Motion", MOVING), ("Sample", ksampler("moving", 16, "16 frames")),
     ("Video, and is it the person?", (
         DECODED, Node("video", "CreateVideo", {"images": ("decoded", 0), "fps": 8}),
         Node("save", "SaveVideo", {"video": ("video", 0), "filename_prefix": "video/id-animator", "format": "mp4",
                                    "codec": "h264"}), likeness()))),
    f"""## Two seconds of this person, on a small card

The motion is **ComfyUI-AnimateDiff-Evolved**'s: the page offers to install that pack where it is missing.

1. **Photo**: one clear, frontal photo of the person.
2. **Prompt**: a small movement, close enough for a face.
3. Run: 16 frames of 512x512, which is what ID-Animator was trained with. For more, connect *context_options*.
   **Identity Report** measures how similar the person is to the photo.

{SD15_NOTE}""",
    subgraphs=(ANIMATOR_NODE,), when="Two seconds on SD1.5, moved by AnimateDiff-Evolved.")

WORKFLOWS = (IDENTITY, DISTILLED_STEPS, WAN22, CONTROLLED, STYLED, FACE_SWAP, TWO_PEOPLE, SUBJECT, LOW_MEMORY,
             TWO_GPUS, SEVERAL_PHOTOS, CHOOSE, REFINE, LONG, CONTINUED, TRAIN, CONCATENATED, PICTURES, ANIMATED)

# What the page offers under *Subgraph Blueprints*: the first workflow's identity, and that of a kept person.
KEPT = (adapter(), Node("kept", "LoadPerson", {"person": "my_person.safetensors"}),
        Node("identity", "ApplyIdentityBranch", {"model": ("model", 0), "stand_in": ("adapter", 0), "vae": ("vae", 0),
                                                 "person": ("kept", 0), "preset": "paper"}))
SHIFT = Node("shift", "ModelSamplingSD3", {"model": ("identity", 0)})
BLUEPRINTS = (
    Workflow("Identity from a photo", "", (("", (model(), vae(), photo(), *PERSON, SHIFT)),), "",
             subgraphs=(PERSON_NODE,)),
    Workflow("Identity of a kept person", "", (("", (model(), vae(), *KEPT, SHIFT)),), "", subgraphs=(Subgraph(
        "Identity of a kept person", "Gives a Wan model the identity of a person that Save Person kept: a model in, a "
                                     "model out. The VAE is for persons that were saved without one.",
        tuple(node.key for node in KEPT),
        (("kept", "person", "person"), ("adapter", "adapter", "adapter"), *turned()),
        shows="kept"),)))
