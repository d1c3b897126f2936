"""An adapter of one's own: its data and its training."""
import functools

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..standin_core.face import PRESETS, FaceSettings
from ..standin_core.folders import new_adapter_file, training_folder
from ..standin_core.train import (
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
    train_adapter,
)
from .shared import ADVANCED, CATEGORY, StandIn, TrainingDataType, detector_input, download_input, show_text, shown

# the page draws another seed after every run unless told not to, and what another run left could not be gone on with
KEPT_SEED = {"control_after_generate": False}


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
                detector_input(),
                download_input(),
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
        return io.NodeOutput(stand_in, loss, samples, ui={"images": shown(cls, loss, samples)})
