"""The bundled workflows as data: nodes in columns, what links them, the files they name and the words beside them.

scripts/build_workflows.py lays them out in ComfyUI's own page and writes the files in workflows/.
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
CLIP_VISION = "clip_vision_h.safetensors"
UMT5 = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
ADAPTER = "Stand-In_wan2.1_T2V_14B_ver1.0_fp16.safetensors"
ADAPTER_HIGH, ADAPTER_LOW = "Stand-In_wan2.2_T2V_A14B_high.ckpt", "Stand-In_wan2.2_T2V_A14B_low.ckpt"
DISTILLED = "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors"
STYLE = "studio_ghibli_wan2.1_t2v_14b.safetensors"
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
    CLIP_VISION: _hugging_face(WAN_21, f"split_files/clip_vision/{CLIP_VISION}", "clip_vision", 1.3),
    UMT5: _hugging_face(WAN_21, f"split_files/text_encoders/{UMT5}", "text_encoders", 6.7),
    VAE: _hugging_face(WAN_21, f"split_files/vae/{VAE}", "vae", 0.25),
    ADAPTER: _hugging_face("Kijai/WanVideo_comfy", f"LoRAs/Stand-In/{ADAPTER}", "stand_in", 0.3),
    ADAPTER_HIGH: _hugging_face("BowenXue/Stand-In", ADAPTER_HIGH, "stand_in", 0.6),
    ADAPTER_LOW: _hugging_face("BowenXue/Stand-In", ADAPTER_LOW, "stand_in", 0.6),
    DISTILLED: _hugging_face("Kijai/WanVideo_comfy", DISTILLED, "loras", None),
    SD15: _hugging_face("Comfy-Org/stable-diffusion-v1-5-archive", SD15, "checkpoints", 2.1),
    CLIP_H: _hugging_face("h94/IP-Adapter", "models/image_encoder/model.safetensors", "clip_vision", 2.5),
    ANIMATOR: _hugging_face("ID-Animator/ID-Animator", ANIMATOR, "id_animator", 0.25),
    MOTION: _hugging_face("guoyww/animatediff", MOTION, "animatediff_models", 1.8),
    STYLE: Source("civitai.com/models/1404755", "loras", None, "https://civitai.com/models/1404755"),
}

NEGATIVE = ("overexposed, static, blurred details, subtitles, painting, still picture, worst quality, low quality, "
            "JPEG artifacts, ugly, extra fingers, deformed hands, deformed face, fused fingers, cluttered background, "
            "three legs, walking backwards")
PROMPT_TIP = "Say *a man* or *a woman* and what happens. Do not describe the face: the photo does."
FACE_FILES = ("Face Preprocess works without the two face files (`detection_Resnet50_Final.pth`, "
              "`parsing_bisenet.pth`, facexlib's releases v0.1.0 and v0.2.0, folder `facexlib`), with a plainer "
              "detector and the background kept; its *download_missing* fetches them.")


@dataclass(frozen=True)
class Node:
    """inputs: widget values, and links as (key of a node, number of its output)."""

    key: str
    kind: str
    inputs: dict = field(default_factory=dict)
    title: str = ""
    height: int = 0


@dataclass(frozen=True)
class Workflow:
    """A workflow before it is laid out.

    headline: of the thumbnail.
    photos: how many of them the thumbnail shows.
    columns: each with the title of its group and the nodes, from top to bottom.
    note: Markdown, above the table of the files.
    """

    name: str
    headline: str
    photos: int
    columns: tuple[tuple[str, tuple[Node, ...]], ...]
    note: str

    @property
    def nodes(self) -> list[Node]:
        return [node for _, column in self.columns for node in column]

    @property
    def numbers(self) -> dict[str, str]:
        """Key of a node -> its id in prompt and graph, in the order of the columns."""
        return {node.key: str(number) for number, node in enumerate(self.nodes, start=1)}

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
        rows = "\n".join(f"| `{name}` | `{SOURCES[name].folder}` | {SOURCES[name].gigabytes or ''} | "
                         f"{SOURCES[name].page} |" for name in named)
        # the page breaks a line where the text does
        note = re.sub(r"(?<!\n)\n *(?![\n ]|\d\.|-|#)", " ", self.note)
        return f"{note}\n\n| file | folder in models | GB | source |\n|---|---|---|---|\n{rows}\n"


def model(key: str = "model", name: str = T2V, title: str = "") -> Node:
    return Node(key, "UNETLoader", {"unet_name": name, "weight_dtype": "default"}, title)


def adapter(key: str = "adapter", name: str = ADAPTER, title: str = "") -> Node:
    return Node(key, "LoadStandIn", {"adapter": name}, title)


def encoder() -> Node:
    return Node("encoder", "CLIPLoader", {"clip_name": UMT5, "type": "wan", "device": "default"})


def vae() -> Node:
    return Node("vae", "VAELoader", {"vae_name": VAE})


MODELS = (model(), adapter(), encoder(), vae())


def photo(key: str = "photo", title: str = "") -> Node:
    return Node(key, "LoadImage", {"image": "photo.png"}, title, height=330)


def face(key: str = "face", image: str = "photo", **settings) -> Node:
    return Node(key, "FacePreprocess", {"image": (image, 0), **settings}, height=930)


def identity(key: str = "identity", source: tuple = ("model", 0), stand_in: str = "adapter",
             reference: tuple = ("face", 0), title: str = "", **settings) -> Node:
    return Node(key, "ApplyIdentityBranch", {"model": source, "stand_in": (stand_in, 0), "vae": ("vae", 0),
                                             "reference_image": reference, **settings}, title)


def prompts(positive: str, negative: str = NEGATIVE) -> tuple[Node, Node]:
    return (Node("positive", "CLIPTextEncode", {"clip": ("encoder", 0), "text": positive}, "Prompt", 180),
            Node("negative", "CLIPTextEncode", {"clip": ("encoder", 0), "text": negative}, "Negative prompt", 180))


EMPTY = Node("latent", "EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 81, "batch_size": 1},
             "Empty video")


def sampler(source: str = "identity", latent: tuple = ("latent", 0),
            conditioning: tuple = (("positive", 0), ("negative", 0)), **settings) -> Node:
    return Node("sampler", "StandInSampler", {
        "model": (source, 0), "positive": conditioning[0], "negative": conditioning[1], "latent_image": latent,
        "seed": 0, "steps": 20, "cfg": 5.0, "sampler_name": "euler", "scheduler": "flow_matching", "shift": 5.0,
        "denoise": 1.0, "boundary": 0.875, **settings}, height=760)


def video(samples: tuple = ("sampler", 0), frames: tuple = ("decoded", 0), decode: Node | None = None,
          between: tuple[Node, ...] = (), before: tuple[Node, ...] = (), **of_video) -> tuple[Node, ...]:
    return (*before, decode or Node("decoded", "VAEDecode", {"samples": samples, "vae": ("vae", 0)}), *between,
            Node("video", "CreateVideo", {"images": frames, "fps": 16, **of_video}),
            Node("save", "SaveVideo", {"video": ("video", 0), "filename_prefix": "video/stand-in", "format": "mp4",
                                       "codec": "h264"}, height=420),
            Node("report", "PreviewAny", {"source": ("sampler", 1)}, "Run report", 260))


CAFE = ("A woman sits at a cafe table by the window. She looks up, smiles at the camera and raises her cup. Soft "
        "morning light, medium shot.")

IDENTITY = Workflow(
    "identity_text_to_video", "this person\nin a video", 1,
    (("Models", MODELS), ("Face", (photo(), face())), ("Identity and prompt", (identity(), *prompts(CAFE))),
     ("Sample", (EMPTY, sampler())), ("Video and report", video())),
    f"""## One photo in, a video of that person out

1. **Load Image**: one clear, frontal photo of the person.
2. **Prompt**: {PROMPT_TIP}
3. Run. The report says what the identity did.

The settings are the authors': 20 steps, cfg 5, shift 5. {FACE_FILES} The authors' own `.ckpt` (BowenXue/Stand-In) works
as well.""")

DISTILLED_STEPS = Workflow(
    "identity_in_4_steps", "in 4 steps", 1,
    (("Models", (model(), Node("distilled", "LoraLoaderModelOnly", {
        "model": ("model", 0), "lora_name": DISTILLED, "strength_model": 1.0}, "Distilled LoRA"), *MODELS[1:])),
     ("Face", (photo(), face())),
     ("Identity and prompt", (identity(source=("distilled", 0)), *prompts(CAFE))),
     ("Sample", (EMPTY, sampler(steps=4, cfg=1.0))), ("Video and report", video())),
    f"""## The same in 4 steps

The LoRA is distilled: 4 steps and **cfg 1**, which skips the negative prompt. A tenth of the time of 20 steps at cfg 5,
with a little less motion. It stands before Apply Identity Branch, so that the identity is computed with it.

{PROMPT_TIP} Where the face looks pasted, lower *strength*; some users move the photo further away, *time_offset* -5 to
-25.

{FACE_FILES}""")

WAN22 = Workflow(
    "identity_wan_2_2", "Wan 2.2,\nboth experts", 1,
    (("High-noise expert", (model("model", T2V_HIGH), adapter("adapter", ADAPTER_HIGH))),
     ("Low-noise expert", (model("low_model", T2V_LOW), adapter("low_adapter", ADAPTER_LOW), encoder(), vae())),
     ("Face", (photo(), face())),
     ("Identity", (identity(title="Identity, high noise"),
                   identity("low_identity", ("low_model", 0), "low_adapter", title="Identity, low noise"))),
     ("Prompt and sample", (*prompts(CAFE), EMPTY, sampler(low_noise_model=("low_identity", 0)))),
     ("Video and report", video())),
    f"""## Wan 2.2 A14B, both experts

Each expert has an adapter of its own and an Apply Identity Branch of its own; both read the same face. **Stand-In
Sampler** hands over where the noise falls below *boundary* (0.875 is Wan 2.2's for text to video), so there are no
start and end steps to set.

{PROMPT_TIP}

{FACE_FILES}""")

CONTROLLED = Workflow(
    "identity_vace_control", "VACE: pose\nor depth", 1,
    (("Models", (model("model", VACE), *MODELS[1:])), ("Face", (photo(), face())),
     ("Control video", (
         Node("control", "LoadVideo", {"file": "control.mp4"}, "Pose or depth video", 420),
         Node("frames", "GetVideoComponents", {"video": ("control", 0)}),
         Node("vace", "WanVaceToVideo", {
             "positive": ("positive", 0), "negative": ("negative", 0), "vae": ("vae", 0),
             "control_video": ("frames", 0), "width": 832, "height": 480, "length": 81, "batch_size": 1,
             "strength": 0.5}))),
     ("Identity and prompt", (identity(), *prompts(
         "A man in a grey coat dances on an empty square in the evening. Street lamps, wet cobbles, full shot."))),
     ("Sample", (sampler(latent=("vace", 2), conditioning=(("vace", 0), ("vace", 1))),)),
     ("Video and report", video(("trimmed", 0), before=(
         Node("trimmed", "TrimVideoLatent", {"samples": ("sampler", 0), "trim_amount": ("vace", 3)}),)))),
    f"""## A pose or depth video says how, the photo says who

1. **Pose or depth video**: what VACE follows, already drawn: a skeleton, a depth or a line video, from any node that
   makes them (ComfyUI has Depth Anything 3 and Canny).
2. **WanVaceToVideo, strength**: 0.5 is the authors' with a control video alone, because VACE leans towards faces of its
   own; 0.8 once a first frame is connected too. Lower follows the control less and keeps the person better.
3. A first frame or another reference for VACE goes into its *reference_image*; Trim Video Latent takes that frame away
   again.

{PROMPT_TIP}

{FACE_FILES}""")

STYLED = Workflow(
    "identity_in_a_style", "in a style", 1,
    (("Models", (model(), Node("style", "LoraLoaderModelOnly", {
        "model": ("model", 0), "lora_name": STYLE, "strength_model": 1.0}, "Style LoRA"), *MODELS[1:])),
     ("Face", (photo(), face())),
     ("Identity and prompt", (identity(source=("style", 0)), *prompts(
         "Studio Ghibli style. A woman runs up a green hill against the wind, stops at the top and looks out over the "
         "sea. Summer clouds."))),
     ("Sample", (EMPTY, sampler())), ("Video and report", video())),
    f"""## A person in a style

Any style LoRA for Wan 2.1 14B in **Style LoRA**, with its own trigger words first in the prompt. The one named here is
*Studio Ghibli* by seruva19; save it under this name or choose yours.

The LoRA stands before Apply Identity Branch, so the identity is drawn in the style too. A photo that stays a photo:
lower *strength* to 0.7, or begin later with *start_percent* 0.1. A style that loses the person: raise *strength* to
1.5.

{PROMPT_TIP}

{FACE_FILES}""")

HALF_WIDTH = 416
TWO_PEOPLE = Workflow(
    "two_people", "two people,\ntwo regions", 2,
    (("Models", MODELS),
     ("Left person", (photo("photo", "Photo of the left person"), face("face", "photo"))),
     ("Right person", (photo("other_photo", "Photo of the right person"), face("other_face", "other_photo"))),
     ("Who is where", (
         Node("nothing", "SolidMask", {"value": 0.0, "width": 832, "height": 480}, "Nowhere"),
         Node("half", "SolidMask", {"value": 1.0, "width": HALF_WIDTH, "height": 480}, "Half of the width"),
         Node("left", "MaskComposite", {"destination": ("nothing", 0), "source": ("half", 0), "x": 0, "y": 0,
                                        "operation": "add"}, "Left half"),
         Node("right", "InvertMask", {"mask": ("left", 0)}, "Right half"))),
     ("Identities", (
         identity("left_identity", region=("left", 0), title="Identity on the left"),
         identity("identity", ("left_identity", 0), reference=("other_face", 0), region=("right", 0),
                  title="Identity on the right"))),
     ("Prompt and sample", (*prompts(
         "A woman on the left and a man on the right sit on a park bench and talk; he laughs, she turns to him. Autumn "
         "leaves, medium shot."), EMPTY, sampler())),
     ("Video and report", video())),
    f"""## Two people, each in a region

One Apply Identity Branch after the other: each adds a person, with a photo, a *region* and a *strength* of its own. The
regions are masks in the size of the video; where a mask is black, nobody there reads that photo. Say in the prompt
who is where.

Paint masks of your own in place of the halves, or connect one for each frame for people who move. Regions are
untrained: the adapters were made with one person, everywhere.

{PROMPT_TIP}

{FACE_FILES}""")

SUBJECT = Workflow(
    "any_subject", "any subject", 1,
    (("Models", MODELS),
     ("Subject", (photo("photo", "Picture of the subject"),
                  Node("rgba", "JoinImageWithAlpha", {"image": ("photo", 0), "alpha": ("photo", 1)}),
                  face("face", "rgba", detector="none", parser="none"))),
     ("Identity and prompt", (identity(), *prompts(
         "A toy robot walks across a wooden desk, stops in front of a lamp and waves. Warm light, shallow depth of "
         "field."))),
     ("Sample", (EMPTY, sampler())), ("Video and report", video())),
    """## An object, an animal, a cartoon

Face Preprocess takes the whole picture here: *detector* none, padded to a square on white. The subject should fill it
and stand on a plain background; of a picture with transparency, what is transparent becomes white.

Name the subject in the prompt ("a toy robot") and say what it does; do not describe how it looks. The adapters were
trained on people: subjects are what they happen to be good at.""")

LOW_MEMORY = Workflow(
    "low_memory", "on a\nsmall card", 1,
    (("Models", MODELS), ("Face", (photo(), face())),
     ("Identity and prompt", (identity(cache="streaming"), *prompts(CAFE))),
     ("Sample", (EMPTY, sampler())),
     ("Video and report", video(decode=Node("decoded", "VAEDecodeTiled", {
         "samples": ("sampler", 0), "vae": ("vae", 0), "tile_size": 256, "overlap": 64, "temporal_size": 64,
         "temporal_overlap": 8})))),
    f"""## On a small card

- **fp8 weights**: ComfyUI streams what does not fit from host memory by itself.
- **Apply Identity Branch, cache: streaming** computes the identity's keys and values of each block when the video needs
  them and keeps none: 42 MB instead of 839 MB. It is 3 % more work, and more where the model's own weights are
  streamed, since each block's then come twice. *offloaded* takes the same 42 MB and 0.8 to 1.3 GB of host memory
  instead; *fp8* keeps half of the 839 MB on the card.
- **Tiled VAE Decode** decodes in pieces.
- **GGUF**: replace Load Diffusion Model by *Unet Loader (GGUF)* of ComfyUI-GGUF (city96); the rest stays as it is.

{PROMPT_TIP} {FACE_FILES}""")

SEVERAL_PHOTOS = Workflow(
    "several_photos", "several photos\nof one person", 3,
    (("Models", MODELS),
     ("First photo", (photo("photo"), face("face", "photo"))),
     ("Second photo", (photo("photo_2"), face("face_2", "photo_2"))),
     ("Third photo", (photo("photo_3"), face("face_3", "photo_3"))),
     ("Identity and prompt", (
         Node("batch", "BatchImagesNode", {"images.image0": ("face", 0), "images.image1": ("face_2", 0),
                                           "images.image2": ("face_3", 0)}),
         identity(reference=("batch", 0), normalize_references=True), *prompts(CAFE))),
     ("Sample", (EMPTY, sampler())), ("Video and report", video())),
    f"""## Several photos of one person

Three crops in one batch: the video reads all of them, each for itself. *normalize_references* keeps their weight
together that of one photo; off, three photos weigh three times as much.

Experimental: the released adapters were trained with one photo. (An adapter that was trained with several gained most
from photos with different expressions: arXiv 2610.11023.)

{PROMPT_TIP} {FACE_FILES}""")

FACE_SWAP = Workflow(
    "face_swap", "another face\nin a video", 1,
    (("Models", MODELS),
     ("New face", (photo(), Node("rgba", "JoinImageWithAlpha", {"image": ("photo", 0), "alpha": ("photo", 1)}),
                   face("face", "rgba"))),
     ("Video", (Node("source", "LoadVideo", {"file": "video.mp4"}, "The video", 420),
                Node("frames", "GetVideoComponents", {"video": ("source", 0)}))),
     ("Paste", (
         Node("prepared", "FaceSwapPrepare", {"images": ("frames", 0), "face": ("face", 5)}),
         Node("latent", "FaceSwapEncode", {"images": ("prepared", 0), "mask": ("prepared", 1), "vae": ("vae", 0),
                                           "background": "locked"}),
         identity())),
     ("Prompt and sample", (*prompts("A woman talks to the camera."), sampler(denoise=0.85))),
     ("Back over the source", video(
         frames=("composite", 0), fps=("frames", 2), audio=("frames", 1), between=(
             Node("composite", "FaceSwapComposite", {"source": ("frames", 0), "images": ("decoded", 0),
                                                     "mask": ("prepared", 1)}),)))),
    f"""## Another face in a video

1. **Load Video**: one shot, the face in view; 832x480 or near. It is cut to 4k+1 frames, 81 at most is what the model
   knows.
2. **Load Image**: the new person. The face must be cut out: by BiSeNet (its file, see below), by a mask on
   *subject_mask*, or by the photo's own transparency (Join Image with Alpha).
3. **Prompt**: *a man* or *a woman* and what is seen. Do not describe the face.

**Stand-In Sampler, denoise** 0.85 is the authors'. Higher: a more natural face that follows the old expression less.
Lower: more of the pasted photo.

**Face Swap Encode, background** locked keeps all outside the mask; free looks more natural at the edge and lets the
background drift. Face Swap Composite then puts the source back.

The authors call this experimental, and it is: profiles, hands before the face and fast turns show.

{FACE_FILES}""")

TRAIN = Workflow(
    "train_an_adapter", "train your own", 3,
    (("Models", (model(name=T2V_SMALL), encoder(), vae())),
     ("Videos of people", (
         Node("people", "LoadVideoTextDataSetFromFolder", {"folder": "people"}, "Videos and captions"),
         Node("data", "PrepareTrainingData", {"videos": ("people", 0), "captions": ("people", 1), "vae": ("vae", 0),
                                              "clip": ("encoder", 0)}),
         Node("dropped", "PreviewAny", {"source": ("data", 1)}, "What was dropped, and why", 260))),
     ("Train", (Node("training", "TrainStandIn", {"model": ("model", 0), "training_data": ("data", 0),
                                                  "vae": ("vae", 0)}, height=760),)),
     ("Somebody else", (photo(), face())),
     ("Identity and prompt", (identity(stand_in="training"), *prompts(CAFE))),
     ("Sample", (EMPTY, sampler())), ("Video and report", video())),
    """## An adapter of your own, and a video made with it

1. A folder of videos of people in ComfyUI's `input` folder, here `people`: each longer than a clip, with a text file of
   the same name beside it that says what happens and never who it is.
2. **Prepare Training Data** cuts clips, takes photos of the face from frames outside of each, and encodes all of it
   once.
3. **Train Stand-In** writes the adapter into `models/stand_in`. Stop it whenever you like: run again, and it goes on.
4. What comes out is tried on a photo of somebody who is in none of the videos.

Nobody has published an adapter for the 1.3B model. Training one takes about 9.3 GiB of the card's memory by estimate,
and for a 14B model in bf16 51 GiB. The authors trained on thousands of people; with a handful, the adapter learns
those. The guide is `docs/training.md`, with a command line for several cards.

Face Preprocess works without the two face files of facexlib, with a plainer detector; its *download_missing* fetches
them.""")

CONCATENATED = Workflow(
    "concat_id_text_to_video", "Concat-ID\non Wan 1.3B", 1,
    (("Models", (Node("model", "LoadConcatID", {"file": CONCAT_ID, "weight_dtype": "default"}), encoder(), vae(),
                 Node("vision", "CLIPVisionLoader", {"clip_name": CLIP_VISION}))),
     ("Face", (photo(), face(preset="Concat-ID"))),
     ("Reference and prompt", (
         Node("identity", "ApplyConcatID", {"model": ("model", 0), "concat_id": ("model", 1), "latent": ("latent", 0),
                                            "vae": ("vae", 0), "reference_image": ("face", 0)}),
         *prompts(CAFE, "..."))),
     ("Sample", (EMPTY, sampler(steps=50))),
     ("Video and report", video()),
     ("Likeness", (Node("likeness", "IdentityReport", {"images": ("decoded", 0), "reference_image": ("photo", 0),
                                                       "clip_vision": ("vision", 0)}),
                   Node("measured", "PreviewAny", {"source": ("likeness", 2)}, "Likeness in words", 260)))),
    f"""## One photo in, a video of that person out, with a model of 1.3B

Concat-ID is a Wan 2.1 of 1.3B that was fine-tuned to keep a person: the photo runs through it as one more frame. It is
a tenth of the size of the 14B models that Stand-In's adapters are for.

1. **Load Image**: one clear photo of the face. Face Preprocess turns it upright and removes background and clothes.
2. **Prompt**: what happens, and who: *a man*, *a woman*.
3. Run. **Identity Report** measures how similar the person is to the photo.

The settings are the authors': 50 steps, cfg 5, shift 5, 832x480, 81 frames, 16 fps, and `...` as the negative prompt.
The authors' other file, `first_stage.pt`, works as well. {FACE_FILES}""")

SD15_MODELS = (
    Node("checkpoint", "CheckpointLoaderSimple", {"ckpt_name": SD15}),
    Node("adapter", "LoadIDAnimator", {"adapter": ANIMATOR}),
    Node("clip_vision", "CLIPVisionLoader", {"clip_name": CLIP_H}))
SD15_NEGATIVE = "worst quality, low quality, blurry, deformed, watermark, text, long shots, full body"
SD15_NOTE = """The face is aligned at 112 pixels, as the adapter's training had it, so a face of that size in the photo
is enough. *strength* 0.7 to 1 is the authors'; lower gives the prompt more freedom. Several photos go in as one batch.

A realistic SD1.5 checkpoint in place of the one named here gives better faces. `model.safetensors` of h94/IP-Adapter is
the CLIP vision ViT-H: save it under the name in the table.

ID-Animator keeps less of a likeness than Stand-In and Concat-ID, and needs the smallest card of the three."""


def of_sd15(positive: str) -> tuple[Node, ...]:
    return (Node("identity", "ApplyIDAnimator", {
                "model": ("checkpoint", 0), "id_animator": ("adapter", 0), "clip_vision": ("clip_vision", 0),
                "reference_image": ("face", 0), "strength": 0.8}),
            *(Node(key, "CLIPTextEncode", {"clip": ("checkpoint", 1), "text": text}, title, 180)
              for key, text, title in (("positive", positive, "Prompt"),
                                       ("negative", SD15_NEGATIVE, "Negative prompt"))))


def ksampler(source: str, pictures: int, title: str) -> tuple[Node, ...]:
    """The authors' sampling.

    title: of the empty latent.
    """
    return (Node("latent", "EmptyLatentImage", {"width": 512, "height": 512, "batch_size": pictures}, title),
            Node("sampler", "KSampler", {
                "model": (source, 0), "positive": ("positive", 0), "negative": ("negative", 0),
                "latent_image": ("latent", 0), "seed": 0, "steps": 25, "cfg": 8.0, "sampler_name": "ddim",
                "scheduler": "ddim_uniform", "denoise": 1.0}, height=560),
            Node("decoded", "VAEDecode", {"samples": ("sampler", 0), "vae": ("checkpoint", 2)}))


PICTURES = Workflow(
    "face_in_pictures", "this person\nin pictures", 1,
    (("Models", SD15_MODELS), ("Face", (photo(), face(preset="ID-Animator"))),
     ("Identity and prompt", of_sd15("a woman in a red coat before a bookshelf, 8k uhd, high quality, medium shot")),
     ("Sample", ksampler("identity", 4, "Four pictures")),
     ("Pictures", (Node("save", "SaveImage", {"images": ("decoded", 0), "filename_prefix": "id-animator"},
                        height=420),))),
    f"""## One photo in, pictures of that person out, on a small card

1. **Load Image**: one clear, frontal photo of the person.
2. **Prompt**: what is seen, close enough for a face: *medium shot*.
3. Run: four pictures of the same person.

{SD15_NOTE}""")

ANIMATED = Workflow(
    "face_in_a_short_video", "a short video\non a small card", 1,
    (("Models", SD15_MODELS),
     ("Motion", (
         Node("motion_file", "ADE_LoadAnimateDiffModel", {"model_name": MOTION}),
         Node("motion", "ADE_ApplyAnimateDiffModelSimple", {"motion_model": ("motion_file", 0)}),
         Node("moving", "ADE_UseEvolvedSampling", {"model": ("identity", 0), "beta_schedule": "autoselect",
                                                   "m_models": ("motion", 0)}))),
     ("Face", (photo(), face(preset="ID-Animator"))),
     ("Identity and prompt", of_sd15("a woman turns her head and smiles, an evening garden behind her, 8k uhd, "
                                     "high quality, medium shot")),
     ("Sample", ksampler("moving", 16, "16 frames")),
     ("Video", (
         Node("video", "CreateVideo", {"images": ("decoded", 0), "fps": 8}),
         Node("save", "SaveVideo", {"video": ("video", 0), "filename_prefix": "video/id-animator", "format": "mp4",
                                    "codec": "h264"}, height=420)))),
    f"""## Two seconds of this person, on a small card

The motion is **ComfyUI-AnimateDiff-Evolved**'s: the page offers to install that pack where it is missing.

1. **Load Image**: one clear, frontal photo of the person.
2. **Prompt**: a small movement, close enough for a face.
3. Run: 16 frames of 512x512, which is what ID-Animator was trained with. For more, connect *context_options*.

{SD15_NOTE}""")

WORKFLOWS = (IDENTITY, DISTILLED_STEPS, WAN22, CONTROLLED, STYLED, FACE_SWAP, TWO_PEOPLE, SUBJECT, LOW_MEMORY,
             SEVERAL_PHOTOS, TRAIN, CONCATENATED, PICTURES, ANIMATED)
