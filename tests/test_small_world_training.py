"""One training of the small world shared by several processes is the training of one."""
import multiprocessing
import os
import sys

import pytest
import torch
from torch import distributed

from small_world import processes
from small_world.training import Muon

STEPS, RATE = 5, 0.1
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
    """What each process does; it leaves which files it found first, and what is trained."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=number, world_size=2)
    with processes.one_first():
        before = sorted(file.name for file in folder.glob("came_*"))
        (folder / f"came_{number}").touch()
    torch.save((before, trained()), folder / f"{number}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="a fork with PyTorch in it is safe on Linux alone")
def test_two_processes_train_as_one(tmp_path):
    both = [multiprocessing.get_context("fork").Process(target=trained_together, args=(number, tmp_path))
            for number in range(2)]
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
