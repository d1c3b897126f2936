"""The kernels compiled for cards that are not here: what they need of a multiprocessor.

Triton brings its own compiler for PTX, so this needs no GPU. It says nothing about how fast a kernel is; it fails when
a change spills registers or leaves no room for a second block, which costs most on every card.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

PROGRAM = Path(__file__).resolve().parent / "compiled_kernels.py"
DTYPES = ("bfloat16", "float16", "float32")


def compiled(card, dtypes, cache):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = subprocess.run([sys.executable, PROGRAM, card, *dtypes], capture_output=True, text=True,
                             env={**environment, "TRITON_CACHE_DIR": str(cache)})
    assert program.returncode == 0, program.stderr
    return [json.loads(line) for line in program.stdout.splitlines()]


@pytest.mark.compiles
@pytest.mark.parametrize("card", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_nothing_spills_and_two_blocks_fit(card, tmp_path):
    found = compiled(card, DTYPES, tmp_path)
    assert len(found) == 4 * len(DTYPES)
    for each in found:
        assert each["spilled"] == 0, each
        assert each["blocks"] >= 2, each  # no block fits where one needs more shared memory than there is
        assert each["compilations"] == 1, each
        if each["what"].startswith("compiled_fusion"):  # what it reads and writes costs more than what it computes
            assert set(each["stores"]) == {16}, each
            assert each["loads"].count(16) == 2 * len(each["stores"]), each  # queries and weights; matrices by 4 bytes
