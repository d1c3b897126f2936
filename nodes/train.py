"""Train a method: prepare the data, then train."""
import functools
from collections.abc import Callable
from pathlib import Path

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import io
from server import PromptServer

from ..standin_core.concat_id.training import (
    ADALN,
    ALL,
    VARIANTS,
    WEIGHTS,
    ConcatIDMethod,
    ConcatIDSettings,
    train_concat_id,
)
from ..standin_core.evaluation import face_embedder_refusals
from ..standin_core.face import PRESETS, FaceSettings, installed_models
from ..standin_core.folders import output_folder
from ..standin_core.methods import TRAINED
from ..standin_core.stand_in.training import TRAINING, AdapterSettings, train_adapter
from ..standin_core.train import (
    EXPERTS,
    REFERENCES_FROM,
    DataSettings,
    Encoders,
    PairSettings,
    PhotoSettings,
    SampleSettings,
    TrainingData,
    TrainSettings,
    make_dataset,
    run_pictures,
    sources_of,
    summary,
)
from .shared import (
    ADVANCED,
    CATEGORY,
    ConcatIDType,
    StandIn,
    TrainingDataType,
    checked,
    detector_input,
    download_input,
    found_by,
    keeps_what_it_shows,
    only,
    previews,
)

METHODS = {method.title: method for method in TRAINED.values()}
OF_CONCAT_ID = ConcatIDMethod.defaults["train"]
# what inputs that came later have where a saved prompt lacks them
LATER = {"method": next(iter(METHODS)), "people": 1, "noise_draws": 4}
# the page draws another seed after every run unless told not to, and what another run left could not be gone on with
KEPT_SEED = {"control_after_generate": False}


def set_aside(method: str, given: dict, data: DataSettings, photos: PhotoSettings) -> list[str]:
    """Lines of the report: which of the inputs the method does not read, and where it differs from its authors."""
    used = {"preset": data.face.preset, "photo_size": data.face.resolved().size, "noise_draws": photos.noise_draws}
    others = [f"{name} {given[name]} (it has {value})" for name, value in used.items()
              if given[name] not in (value, LATER.get(name))]
    fps = METHODS[method].defaults.get("data", {}).get("fps", data.fps)
    return [*[f"{method} sets aside {', '.join(others)}"] * bool(others),
            *[f"fps is {data.fps:g} as set; the {method} authors use {fps:g}"] * (fps != data.fps)]


def show_progress(cls, words: str) -> None:
    """Show words on the node while it runs; they are gone after a reload of the page."""
    PromptServer.instance.send_progress_text(words, cls.hidden.unique_id)


def training_inputs() -> tuple:
    """What every training is asked for after its own inputs."""
    return (
        io.Float.Input("ema", default=0.0, min=0.0, max=0.9999, step=0.001, **ADVANCED, tooltip=(
            "Decay of a moving average of the weights; the average is then what is saved. Higher averages "
            "over more steps, and 0 turns it off. Use 0.999 for long runs.")),
        io.Boolean.Input("checkpointing", default=True, **ADVANCED, tooltip=(
            "On: recomputes the activations inside the blocks instead of keeping them, which takes a third "
            "more time and several times less memory. Off: keeps them.")),
        io.Int.Input("sample_every", default=500, min=0, max=100_000, tooltip=(
            "Number of steps between two checkpoints. Lower saves more often, which takes time; 0 saves one at the "
            "end. If a VAE is connected, each checkpoint also makes sample pictures with the training so far.")),
        io.Int.Input("seed", default=0, min=0, max=2**31, **KEPT_SEED, tooltip=(
            "Seed of all random choices of the training. Keep it to continue an interrupted run.")),
    )


def sampling_vae_input():
    return io.Vae.Input("vae", optional=True, tooltip="The Wan 2.1 VAE, which decodes the sampled pictures.")


def picture_outputs() -> tuple:
    return (
        io.Image.Output("loss", tooltip="A plot of the loss of every step."),
        io.Image.Output("samples", tooltip=(
            "Pictures sampled at the last checkpoint for the first examples of the data: the photo, then "
            "frames of the video. Without a VAE, the plot of the loss again.")),
    )


def each_step(cls, steps: int) -> Callable[[int, float], None]:
    """What shows a step on the node, and ends the training where the user interrupts it."""
    progress = ProgressBar(steps)

    def on_step(step: int, loss: float) -> None:
        throw_exception_if_processing_interrupted()
        progress.update_absolute(step)
        show_progress(cls, f"step {step:,} of {steps:,}: loss {loss:.4f}")

    return on_step


def trained(cls, *made, folder: Path):
    """A node's output: what was trained, and the pictures of the run's folder."""
    loss, samples = run_pictures(folder)
    return io.NodeOutput(*made, loss, samples, ui={"images": previews(cls, loss, samples)})


class PrepareTrainingData(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PrepareTrainingData",
            display_name="Prepare Training Data",
            category=f"{CATEGORY}/training",
            **found_by("dataset", "training data"), **keeps_what_it_shows(),
            description="Cuts videos of people into clips, takes reference photos from frames outside each clip, and "
                        "encodes everything once for Train Stand-In or Train Concat-ID. After an interruption, run it "
                        "again: it continues where it stopped.",
            is_input_list=True,  # the videos and captions of core's dataset node are lists
            inputs=[
                io.Video.Input("videos", tooltip="Many videos of people, from Load Video-Text (from Folder)."),
                io.String.Input("captions", force_input=True, tooltip=(
                    "One caption for each video, from the same node. A caption says what happens, never who the "
                    "person is.")),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
                io.Clip.Input("clip", tooltip="The text encoder of Wan, umT5-XXL."),
                io.String.Input("name", default="my_people", tooltip=(
                    "Name of the folder in output/stand_in_training that keeps the data and a list of what was "
                    "dropped and why.")),
                io.Int.Input("width", default=832, min=16, max=2048, step=16, tooltip=(
                    "Width of the clips in pixels; each video is scaled to fill the frame and cropped. Higher trains "
                    "on finer detail and needs more memory; lower is faster. The Stand-In authors use 832x480.")),
                io.Int.Input("height", default=480, min=16, max=2048, step=16, tooltip=(
                    "Height of the clips in pixels. Higher trains on finer detail and needs more memory; lower is "
                    "faster. The Stand-In authors use 832x480.")),
                io.Int.Input("frames", default=81, min=5, max=401, step=4, tooltip=(
                    "Number of frames in a clip. Higher trains on longer motions, and needs more memory and longer "
                    "videos, because the photos come from frames outside the clip. The Stand-In authors use 81.")),
                io.Float.Input("fps", default=25.0, min=1.0, max=120.0, step=1.0, tooltip=(
                    "Frame rate to which the videos are resampled. Higher makes a clip cover less time, lower more. "
                    "The Stand-In authors use 25, those of Concat-ID 16; Wan generates 16.")),
                io.Int.Input("references", default=5, min=1, max=16, tooltip=(
                    "Number of reference photos for each clip. Every training step picks one of them at random, so "
                    "higher gives more variety; it takes longer to prepare. The Stand-In authors use 5.")),
                io.Combo.Input("references_from", options=list(REFERENCES_FROM), tooltip=(
                    'Where the reference photos come from. "same video" is the method of the Stand-In paper. "other '
                    'videos" pairs clips of the same person, which teaches the model not to copy (Concat-ID), and '
                    'drops clips without a partner.')),
                io.Float.Input("lowest_similarity", default=0.7, min=-1.0, max=1.0, step=0.01, **ADVANCED, tooltip=(
                    'Used by "other videos" only: photos below this similarity count as somebody else. Higher is '
                    'stricter and finds fewer photos. The default is from Concat-ID, which used ArcFace; SFace and '
                    'CLIP vision need other values.')),
                io.Float.Input("highest_similarity", default=0.9, min=-1.0, max=1.0, step=0.01, **ADVANCED, tooltip=(
                    'Used by "other videos" only: photos above this similarity are nearly the same picture and are '
                    'left out. Higher finds more photos and teaches the model more copying.')),
                io.Combo.Input("preset", options=list(PRESETS), **ADVANCED, tooltip=(
                    'How the faces are cropped, with the presets of Face Preprocess. The method "Concat-ID" takes its '
                    'own preset instead.')),
                io.Int.Input("photo_size", default=512, min=64, max=1024, step=16, **ADVANCED, tooltip=(
                    "Side of the reference photos in pixels. Higher shows more detail and needs more memory; lower "
                    "is faster. Use the size that you will later give the model; the Stand-In authors use 512. The "
                    "preset of Concat-ID has 448 and does not read this.")),
                detector_input(),
                download_input('; BiSeNet 53 MB; ArcFace 175 MB for "other videos"'),
                io.Int.Input("seed", default=0, min=0, max=2**31, **KEPT_SEED, **ADVANCED, tooltip=(
                    "Seed of the random choice of reference photos. Keep it to continue an interrupted run.")),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=(
                    'Used by "other videos" only, if no face recognition network can run. It tells people apart less '
                    'finely.')),
                io.Combo.Input("method", options=list(METHODS), optional=True, tooltip=(
                    'What the data are for. "Stand-In" encodes the photos as they are cropped. "Concat-ID" crops them '
                    'with its own preset, fits them to the clip and encodes them with noise.')),
                io.Int.Input("people", default=LATER["people"], min=1, max=8, optional=True, **ADVANCED, tooltip=(
                    'Number of people in each clip; more than 1 is for "Concat-ID" only. A photo is then a frame that '
                    'shows all of them, from left to right. Leave out videos in which they change sides.')),
                io.Int.Input("noise_draws", default=LATER["noise_draws"], min=0, max=64, optional=True, **ADVANCED,
                             tooltip=(
                    'Used by "Concat-ID" only: how many times each photo is encoded, each time with other noise on its '
                    'pixels, which keeps the model from copying. Higher takes more space; 0 encodes it once, without '
                    'noise.')),
            ],
            outputs=[
                TrainingDataType.Output("training_data", tooltip=(
                    "The encoded clips, photos and captions. Connect them to Train Stand-In or Train Concat-ID, "
                    "whichever the method is.")),
                io.String.Output("report", tooltip=(
                    "How many clips and photos there are, what was dropped and why, and which inputs the method does "
                    "not read.")),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return installed_models(), face_embedder_refusals()

    @classmethod
    @checked
    def execute(cls, videos, captions, clip_vision=None, **single):
        clip_vision = only(clip_vision, "clip_vision") if clip_vision else None
        given = {**LATER, **{name: only(values, name) for name, values in single.items()}}
        own = METHODS[given["method"]].defaults
        face = FaceSettings(**{"preset": given["preset"], **own.get("data", {}).get("face", {})},
                            detector=given["detector"], size=given["photo_size"],
                            download_missing=given["download_missing"])
        settings = DataSettings(face=face, **{name: given[name] for name in (
            "fps", "width", "height", "frames", "references", "people", "seed")})
        photos = PhotoSettings(**{name: given.get(name, value) for name, value in own.get("photos", {}).items()})
        pairs = None
        if given["references_from"] == "other videos":
            pairs = PairSettings(given["lowest_similarity"], given["highest_similarity"])
        folder = output_folder(TRAINING, given["name"])
        shards = make_dataset(sources_of(videos, captions), folder, settings, Encoders(given["vae"], given["clip"]),
                              functools.partial(show_progress, cls), pairs, clip_vision, photos=photos)
        report = "\n".join([summary(folder), *set_aside(given["method"], given, settings, photos)])
        return io.NodeOutput(TrainingData(shards), report, ui={"text": (report,)})


class TrainStandIn(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TrainStandIn",
            display_name="Train Stand-In",
            category=f"{CATEGORY}/training",
            **found_by("train", "fine-tune", "lora training"),
            description="Trains a Stand-In adapter on the data from Prepare Training Data and saves it in "
                        "models/stand_in. The model itself does not change. After an interruption, run it again: it "
                        "continues where it stopped.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The Wan text-to-video model to train for, from Load Diffusion Model, without an adapter.")),
                TrainingDataType.Input("training_data", tooltip="The data from Prepare Training Data."),
                io.String.Input("name", default="my_stand_in", tooltip="File name of the adapter."),
                io.Int.Input("steps", default=3000, min=1, max=1_000_000, tooltip=(
                    "Number of training steps. Higher learns more and takes longer, and continues a finished run. "
                    "The Stand-In authors train 3,000 steps of 48 clips.")),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip=(
                    "Number of clips in a step, computed one after the other. Higher makes each step steadier and "
                    "slower, and takes no more memory. The Stand-In authors use 48.")),
                io.Float.Input("learning_rate", default=1e-4, min=0.0, max=1.0, step=1e-6, tooltip=(
                    "How far each step changes the weights. Higher learns faster and may become unstable; lower "
                    "needs more steps. The Stand-In authors do not say theirs; 1e-4 is usual for low-rank weights.")),
                io.Int.Input("rank", default=128, min=1, max=1024, tooltip=(
                    "Rank of the low-rank weights. Higher learns more and gives a larger file; lower learns less "
                    "and gives a smaller one. The Stand-In authors use 128.")),
                io.Combo.Input("expert", options=list(EXPERTS), tooltip=(
                    'Which expert of Wan 2.2 to train for; "single" is for models without experts. Each expert has '
                    'its own noise levels and needs its own adapter.')),
                io.Float.Input("shift", default=1.0, min=0.1, max=20.0, step=0.1, **ADVANCED, tooltip=(
                    "Shift of the noise levels that the training draws. Higher trains more at high noise levels, "
                    "which decide the layout. 1 draws all noise levels equally often, as the Stand-In authors do.")),
                *training_inputs(),
                StandIn.Input("start_from", optional=True, tooltip=(
                    "An adapter to continue training from. Its rank replaces the input rank.")),
                sampling_vae_input(),
            ],
            outputs=[
                StandIn.Output("stand_in", tooltip="The adapter. Connect it to Apply Identity Branch."),
                *picture_outputs(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, model, training_data, name, rank, expert, sample_every, start_from=None, vae=None, **settings):
        noise_from, noise_to = EXPERTS[expert]
        stand_in, folder = train_adapter(
            model, training_data.shards, AdapterSettings(name, expert, rank),
            TrainSettings(noise_from=noise_from, noise_to=noise_to, **settings), each_step(cls, settings["steps"]),
            samples=SampleSettings(sample_every), vae=vae, start_from=start_from)
        return trained(cls, stand_in, folder=folder)


class TrainConcatID(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TrainConcatID",
            display_name="Train Concat-ID",
            category=f"{CATEGORY}/training",
            **found_by("concat id", "train", "fine-tune", "lora training"),
            description="Trains a Concat-ID model on the data from Prepare Training Data and saves it in "
                        "models/diffusion_models. The model that comes in does not change. After an interruption, run "
                        "it again: it continues where it stopped.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The model to begin with, in fp16, bf16 or fp32: Wan 2.1 text-to-video of 1.3B from Load Diffusion "
                    "Model, or a Concat-ID from Load Concat-ID. It comes without an identity "
                    "and without LoRAs.")),
                TrainingDataType.Input("training_data", tooltip=(
                    'The data from Prepare Training Data with the method "Concat-ID". They say how many people the '
                    'model learns to show.')),
                io.String.Input("name", default="my_concat_id", tooltip="File name of the model."),
                io.Combo.Input("variant", options=list(VARIANTS), default=ADALN, tooltip=(
                    '"AdaLN" gives the photo a modulation of its own, which begins as a copy of the video\'s. "first '
                    'stage" has none.')),
                io.Combo.Input("weights", options=list(WEIGHTS), default=ALL, tooltip=(
                    '"all" trains the whole model, as the Concat-ID authors do. "low rank" trains LoRA weights and '
                    'adds them to the model in the file; it takes about half the memory.')),
                io.Int.Input("steps", default=3000, min=1, max=1_000_000, tooltip=(
                    "Number of training steps. Higher learns more and takes longer. Choose it before you start: the "
                    "learning rate falls to zero after the last one.")),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip=(
                    "Number of clips in a step, computed one after the other. Higher makes each step steadier and "
                    "slower, and takes no more memory.")),
                io.Float.Input("learning_rate", default=OF_CONCAT_ID["learning_rate"], min=0.0, max=1.0, step=1e-6,
                               tooltip=(
                    'How far each step changes the weights. Higher learns faster and may become unstable; lower '
                    'needs more steps. The Concat-ID authors use 1e-5 for all weights; take 1e-4 for "low rank".')),
                io.Int.Input("rank", default=128, min=1, max=1024, **ADVANCED, tooltip=(
                    'Used by "low rank" only: rank of the LoRA weights. Higher learns more and takes more memory; '
                    'lower takes less and learns less.')),
                io.Float.Input("reference_dropout", default=OF_CONCAT_ID["reference_dropout"], min=0.0, max=0.99,
                               step=0.01, **ADVANCED, tooltip=(
                    "Share of the examples whose photo is a latent of zeros, from which the model learns to do "
                    "without one. Higher shows it the photos less often. Apply Concat-ID gives it such a latent "
                    "wherever the photo is not to be read. The Concat-ID authors use 0.1.")),
                io.Float.Input("shift", default=OF_CONCAT_ID["shift"], min=0.1, max=20.0, step=0.1, **ADVANCED,
                               tooltip=(
                    "Shift of the noise levels that the training draws. Higher trains more at high noise levels, "
                    "which decide the layout; 1 draws all noise levels equally often. The Concat-ID authors use 5.")),
                *training_inputs(),
                ConcatIDType.Input("concat_id", optional=True, tooltip=(
                    "The other output of Load Concat-ID, if the model is from there. The training then begins with "
                    "the modulation of that file.")),
                sampling_vae_input(),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The trained model. Connect it to Apply Concat-ID."),
                ConcatIDType.Output("concat_id", tooltip=(
                    "The settings of the reference that the file was trained with. Connect it to Apply Concat-ID.")),
                *picture_outputs(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, model, training_data, name, variant, weights, rank, sample_every, concat_id=None, vae=None,
                **settings):
        made, made_concat_id, folder = train_concat_id(
            model, training_data.shards, ConcatIDSettings(name, variant=variant, weights=weights, rank=rank),
            TrainSettings(**{**OF_CONCAT_ID, **settings}), each_step(cls, settings["steps"]),
            samples=SampleSettings(sample_every), vae=vae, start_from=concat_id)
        return trained(cls, made, made_concat_id, folder=folder)
