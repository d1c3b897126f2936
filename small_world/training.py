"""One training by the clock for every model of the small world: it can be stopped, and goes on from its file."""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from small_world import processes
from standin_core.files import replacing

WARM_UP = 100  # steps
DECAY_SHARE, LEAST_RATE = 0.35, 0.02  # of the time, at its end; of the rate, at the very end
LONGEST_AVERAGE = 0.999
MOMENTUM, NEWTON_SCHULZ = 0.95, (3.4445, -4.7750, 2.0315)
SAVED_EVERY = 120  # seconds
REPORTED_EVERY = 200  # steps


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for matrices and kernels (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    In fp32, since torch.optim.Muon works in bf16, which takes ten times as long where the processor has none, and
    takes no kernels. Its update has the size of AdamW's (arXiv 2502.16982).
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            updates = [torch.zeros_like(each) for each in parameters]
            for index, (parameter, update) in enumerate(zip(parameters, updates)):
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                if index % processes.count() == processes.number():
                    wanted = parameter.grad.lerp(momentum, MOMENTUM)
                    update.copy_(orthogonal(wanted.flatten(1)).view_as(update))
            processes.add_up(updates)
            for parameter, update in zip(parameters, updates):
                size = 0.2 * max(len(parameter), parameter[0].numel()) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """[m, n] -> nearly the orthogonal matrix next to it, by five Newton-Schulz steps."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def train(module: torch.nn.Module, optimizers: list[torch.optim.Optimizer], minutes: float, state: Path,
          losses_of: Callable[[np.random.Generator], dict[str, torch.Tensor]], save: Callable[[dict, dict], None],
          seed: int = 0) -> dict[str, torch.Tensor]:
    """Train for so many minutes in all and return the average of the weights over the last steps.

    What is drawn in a step follows from the seed, the step and the process; how many steps there are, from the machine.

    optimizers: of disjoint parts of the module; their rates rise over WARM_UP steps and fall in the last DECAY_SHARE.
    state: the file of a training that was stopped, which goes on; written every SAVED_EVERY seconds.
    losses_of: the losses of one step by name, which are added up, from a generator of its own; torch's generator
        follows from it too.
    save: called with the averaged weights and a record of the last steps, for each REPORTED_EVERY.
    """
    average = {key: value.detach().clone() for key, value in module.state_dict().items()}
    step, spent, losses = 0, 0.0, []
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    if state.exists():
        kept = torch.load(state, weights_only=True)
        module.load_state_dict(kept["weights"])
        average, step, spent = kept["average"], kept["step"], kept["spent"]
        for optimizer, values in zip(optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(values)
    begun = saved = time.monotonic()
    before = spent
    while spent < 60 * minutes:
        rng = np.random.default_rng([seed, step, processes.number()])
        torch.manual_seed(int(rng.integers(2**62)))
        left = 1 - spent / (60 * minutes)
        factor = min(1.0, (step + 1) / WARM_UP) * max(LEAST_RATE, min(1.0, left / DECAY_SHARE))
        for group, rate in zip((group for optimizer in optimizers for group in optimizer.param_groups), rates):
            group["lr"] = factor * rate
        for optimizer in optimizers:
            optimizer.zero_grad()
        found = losses_of(rng)
        (sum(found.values()) / processes.count()).backward()
        processes.add_up([each.grad for each in module.parameters() if each.grad is not None])
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        decay = min(LONGEST_AVERAGE, step / (step + 10))
        with torch.no_grad():
            for key, value in module.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        losses.append([float(loss.detach()) for loss in found.values()])
        clock = torch.tensor([time.monotonic() - begun], dtype=torch.float64)
        processes.add_up([clock])
        spent = before + float(clock) / processes.count()
        if processes.number() > 0:
            continue
        if step % REPORTED_EVERY == 0:
            means = dict(zip(found, np.mean(losses, axis=0).round(4).tolist()))
            record = {"minutes": round(spent / 60, 1), "step": step, **means}
            losses.clear()
            save(average, record)
            sys.stdout.write(f"{json.dumps(record)}\n")
            sys.stdout.flush()
        if time.monotonic() - saved > SAVED_EVERY:
            _keep(state, module, average, optimizers, step, spent)
            saved = time.monotonic()
    if processes.number() == 0:
        _keep(state, module, average, optimizers, step, spent)
    return average


def _keep(state: Path, module, average, optimizers, step: int, spent: float) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    with replacing(state) as file:
        torch.save({"weights": module.state_dict(), "average": average, "step": step, "spent": spent,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers]}, file)
