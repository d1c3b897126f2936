"""One video over several processes: the same as in one."""
import os
import subprocess
import sys

import pytest
import torch

import ranks
from pack import COMFYUI
from support.environment import PACK
from tolerances import WHOLE_RUN, assert_close


@pytest.fixture(scope="module")
def expected():
    """Case -> latent and attention maps, of one process."""
    return {name: ranks.sample(model, shape) for name, (shape, model) in ranks.cases().items()}


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    """Case -> latent, attention maps, and whether all ranks have that latent."""
    file = tmp_path_factory.mktemp("ranks") / "found.pt"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(request.param),
         str(PACK / "tests" / "ranks.py"), str(file)],
        env={**os.environ, "COMFYUI_PATH": str(COMFYUI), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(file)


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


def test_a_split_that_nobody_told_of_is_refused(found):
    assert "another node replaced the self-attention of this model" in found["without being told"]
