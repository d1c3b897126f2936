"""A training by the clock: what several processes share is the training of one, and what was stopped goes on."""
import multiprocessing
import os
import sys

import pytest
import torch
from torch import distributed

from small_world import processes, training
from small_world.training import Muon

STEPS, RATE = 5, 0.1
SECONDS_A_STEP, MINUTES = 10, 2
PATIENCE_SECONDS = 300


@torch.inference_mode(False)
@torch.enable_grad()
def trained():
    """A matrix and a kernel after some steps on examples that the processes share."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Unflatten(1, (2, 4)), torch.nn.Conv1d(2, 3, 3))
    examples = torch.randn(STEPS, 4, 6)
    optimizer = Muon([each for each in module.parameters() if each.dim() > 1], RATE)
    for batch in examples:
        optimizer.zero_grad()
        share = batch[processes.number()::processes.count()]
        (module(share).square().mean() / processes.count()).backward()
        processes.add_up([each.grad for each in module.parameters()])
        optimizer.step()
    return {name: value.detach() for name, value in module.named_parameters()}


def trained_together(number, folder):
    """What each new process does; it leaves which files it found first, and what is trained."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=number, world_size=2)
    with processes.one_first():
        before = sorted(file.name for file in folder.glob("came_*"))
        (folder / f"came_{number}").touch()
    torch.save((before, trained()), folder / f"{number}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="GLOO_SOCKET_IFNAME names the interface as Linux does")
def test_two_processes_train_as_one(tmp_path):
    both = [multiprocessing.get_context("spawn").Process(target=trained_together, args=(number, tmp_path))
            for number in range(2)]  # autograd refuses a fork of a process that has used it
    for each in both:
        each.start()
    for each in both:
        each.join(PATIENCE_SECONDS)
        each.kill()
    assert [each.exitcode for each in both] == [0, 0]
    expected = trained()
    for number, earlier in enumerate(([], ["came_0"])):
        before, parameters = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert before == earlier
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-5)  # sums in another order, five steps long


def trained_by_the_clock(state, clock, stopped_after=None):
    """The average of the weights; a step takes SECONDS_A_STEP of the clock, a list of one number."""
    torch.manual_seed(0)
    module, steps = torch.nn.Linear(4, 4), 0
    optimizers = [Muon([module.weight], RATE), torch.optim.AdamW([module.bias], lr=RATE)]

    def losses_of(rng):
        nonlocal steps
        if steps == stopped_after:
            raise KeyboardInterrupt
        steps += 1
        clock[0] += SECONDS_A_STEP
        return {"loss": module(torch.from_numpy(rng.standard_normal((8, 4))).float()).square().mean()}

    return training.train(module, optimizers, MINUTES, state, losses_of, lambda average, record: None)


@torch.inference_mode(False)
@torch.enable_grad()
def test_a_training_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """To the same weights, bit for bit: what is drawn follows from the step, and the rate from the time spent."""
    clock = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(training, "SAVED_EVERY", 0)
    expected = trained_by_the_clock(tmp_path / "whole.state", clock)
    with pytest.raises(KeyboardInterrupt):
        trained_by_the_clock(tmp_path / "stopped.state", clock, stopped_after=7)
    found = trained_by_the_clock(tmp_path / "stopped.state", clock)
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
