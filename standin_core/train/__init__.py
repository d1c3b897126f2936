"""Training: the engine of inference, with gradients, for whatever method is given.

``data`` makes encoded examples of videos. ``method`` says what a method must give: its settings, the tensors that are
trained, the context in which the model computes with them, and their file. ``loop`` takes the steps, with the loss of
``flow_matching``; ``checkpoints`` keep what a run leaves on the disk, with ``pictures`` of its losses and ``samples``
of what the method makes by now; ``session`` puts a run on a model that ComfyUI has loaded. ``config`` reads all
``settings`` from one file, ``plan`` tells what they mean and how much ``memory`` they need, ``command`` does everything
in one call.
"""
from .data.dataset import TrainingData, make_dataset
from .data.encoders import Encoders
from .data.manifest import summary
from .data.pairs import REFERENCES_FROM, PairSettings
from .data.recipe import DataSettings, PhotoSettings
from .data.sources import sources_of
from .pictures import run_pictures
from .settings import EXPERTS, MethodSettings, SampleSettings, TrainSettings

__all__ = ["EXPERTS", "REFERENCES_FROM", "DataSettings", "Encoders", "MethodSettings", "PairSettings",
           "PhotoSettings", "SampleSettings", "TrainSettings", "TrainingData", "make_dataset", "run_pictures",
           "sources_of", "summary"]
