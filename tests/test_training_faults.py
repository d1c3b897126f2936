"""Preparation and training, killed and out of room at random moments: the next call goes on and makes the same adapter.

The disk is full as far as a limit on the size of files goes; scripts of the system that mount a small disk need root.
"""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from random_cases import count, run_cases

pytestmark = [pytest.mark.nightly,
              pytest.mark.skipif(sys.platform == "win32", reason="has no fork, and no limit on the size of files")]


MOMENTS = 5  # at which one training is disturbed


class Trainings:
    def __init__(self, base):
        self.base, self.count = base, 0
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "training_process.py"), str(base)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def train(self, name, **disturbance):
        """How it ended."""
        self.process.stdin.write(json.dumps({"name": name, **disturbance}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def adapter(self, name):
        return safetensors.torch.load_file(self.base / "models" / "stand_in" / f"{name}.safetensors")

    def new_name(self):
        self.count += 1
        return f"case_{self.count}"


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    trainings = Trainings(tmp_path_factory.mktemp("trainings") / "base")
    yield trainings
    trainings.process.stdin.close()
    assert trainings.process.wait(60) == 0


@pytest.fixture(scope="module")
def expected(trainings):
    """What an undisturbed training makes."""
    assert trainings.train("undisturbed") == {"ended": "done", "said": ""}
    return trainings.adapter("undisturbed")


def assert_ends_well(trainings, name, expected):
    assert trainings.train(name) == {"ended": "done", "said": ""}
    found = trainings.adapter(name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    unfinished = [*trainings.base.rglob("*.part"), *trainings.base.rglob(".tmp*")]
    assert not unfinished, "what the kill left is still there"


def try_moments(trainings, expected, what, disturbance, ends):
    """Disturb whole trainings at MOMENTS random moments each, one after the other, and compare what they end with.

    disturbance: takes a random.Random.
    ends: how a call ends that the disturbance meets; the others are done before it.
    """
    def case(r):
        name, met = trainings.new_name(), 0
        for _ in range(MOMENTS):
            ended = trainings.train(name, **disturbance(r))
            assert ended["ended"] in (ends, "done"), ended["said"]
            assert ended["ended"] != "UserError" or "make room" in ended["said"]
            met += ended["ended"] == ends
        assert_ends_well(trainings, name, expected)
        count(what, moments=met)

    run_cases(what, few=1, many=50, case=case)


def test_killed_at_random_moments(trainings, expected):
    try_moments(trainings, expected, "trainings killed", lambda r: {"kill": r.randrange(1, 40)} if r.random() < 0.5
                else {"kill_beyond": int(2**r.uniform(5, 19))}, ends="killed")


def test_out_of_room_at_random_moments(trainings, expected):
    try_moments(trainings, expected, "trainings out of room", lambda r: {"room": int(2**r.uniform(5, 19))},
                ends="UserError")
