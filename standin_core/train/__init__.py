"""Training a Stand-In adapter: the engine of inference, with gradients.

``weights`` makes the adapter's parameters and saves them under the official names; ``objective`` is the loss; ``loop``
takes the steps. The base model is frozen; what is learnt reaches the loss through the identity's keys and values, which
here stay attached.
"""
from .loop import Example, Trainer, TrainSettings
from .objective import Batch, flow_matching_loss
from .weights import new_adapter, save_adapter

__all__ = ["Batch", "Example", "TrainSettings", "Trainer", "flow_matching_loss", "new_adapter", "save_adapter"]
