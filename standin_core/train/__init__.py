"""Training a Stand-In adapter: the engine of inference, with gradients.

``prepare`` cuts videos into clips with captions and reference photos, ``pairs`` may take the photos from other videos,
``cache`` encodes all that once, ``dataset`` does the three in turn. ``weights`` makes the adapter's parameters and
saves them under the official names, ``objective`` is the loss, ``loop`` takes the steps, ``run`` keeps what a run
leaves on the disk, ``session`` puts a run on a model. ``config`` reads all settings from one file, ``plan`` tells what
they mean. The base model is frozen; what is learnt reaches the loss through the identity's keys and values, which here
stay attached.
"""
from .config import EXPERTS, AdapterSettings, SampleSettings
from .data.dataset import make_dataset
from .data.encoders import Encoders
from .data.manifest import summary
from .data.pairs import REFERENCES_FROM, PairSettings
from .data.settings import DataSettings
from .data.shards import Example
from .data.sources import Source, sources_in, sources_of
from .loop import Trainer, TrainSettings
from .objective import Batch, flow_matching_loss
from .run import TrainingRun, run_pictures
from .session import train_adapter, training_run
from .weights import new_adapter, save_adapter

__all__ = ["EXPERTS", "REFERENCES_FROM", "AdapterSettings", "Batch", "DataSettings", "Encoders", "Example",
           "PairSettings", "SampleSettings", "Source", "TrainSettings", "Trainer", "TrainingRun", "flow_matching_loss",
           "make_dataset", "new_adapter", "run_pictures", "save_adapter", "sources_in", "sources_of", "summary",
           "train_adapter", "training_run"]
