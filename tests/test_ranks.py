"""One video over several processes: the same as in one."""
import multiprocessing
import sys

import pytest
import torch

import ranks
from tolerances import WHOLE_RUN, assert_close

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a fork with PyTorch in it is safe on Linux alone")
PATIENCE_SECONDS = 600


@pytest.fixture(scope="module")
def expected():
    """Case -> latent and attention maps, of one process."""
    return {name: ranks.sample(model, shape) for name, (shape, model) in ranks.cases().items()}


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    """As ``ranks.sample_split`` says it."""
    folder, context = tmp_path_factory.mktemp("ranks"), multiprocessing.get_context("fork")
    processes = [context.Process(target=ranks.sample_split, args=(rank, request.param, folder))
                 for rank in range(request.param)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_SECONDS)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * request.param
    return torch.load(folder / "found.pt")


def test_several_processes_make_the_video_of_one(expected, found):
    for name, (latent, maps) in expected.items():
        samples, masses, alike = found[name]
        assert alike, name
        assert_close(samples, latent, WHOLE_RUN)
        assert len(masses) == len(maps)
        for mass, of_one in zip(masses, maps):
            assert_close(mass, of_one, WHOLE_RUN)


def test_the_cases_differ(expected):
    """Each reads an identity, and by its own weights."""
    of_one_shape = [latent for latent, _ in expected.values() if latent.shape == ranks.EVEN]
    assert len(of_one_shape) == 5
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(of_one_shape) for b in of_one_shape[:i])
    assert sum(len(maps) for _, maps in expected.values()) == 5


def test_what_would_lose_the_identity_is_refused(found):
    """A split that nobody told of, an adapter that cannot follow it, heads that cannot be shared, other tokens."""
    for refusal, words in zip(found["refusals"], (
            "another node replaced the self-attention of this model", "trained with ordinary attention cannot follow",
            "GPUs cannot share evenly", "GPUs has 10 tokens of a video of"), strict=True):
        assert words in refusal
