"""Flow matching: the velocity that a video should have, compared with the model's prediction, which knows the person.

``x = (1 - s) x_0 + s noise``, target ``noise - x_0``, loss the mean square of the difference over the video's latents
(WeChatCV/Stand-In's ``pipeline.training_loss``, without its weights over s).
"""
from __future__ import annotations

from collections.abc import Callable

import torch

from .method import Batch, Learner


def flow_matching_loss(learner: Learner, batch: Batch, checkpointing: bool = False,
                       backward: Callable[[torch.Tensor], None] | None = None) -> float:
    """The loss of a batch.

    checkpointing: keep no activations inside the blocks but compute them again in the backward pass, for a third more
        time.
    backward: is called with the loss as a tensor, before what its gradients need is gone.
    """
    sigma = batch.sigma.reshape(-1, 1, 1, 1, 1)
    noisy = (1 - sigma) * batch.video + sigma * batch.noise
    with learner.velocity(noisy, batch, checkpointing) as predicted:
        loss = torch.nn.functional.mse_loss(predicted.float(), batch.noise - batch.video)
        if backward is not None:
            backward(loss)
    return float(loss.detach())
