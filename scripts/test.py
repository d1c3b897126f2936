"""Set everything up and run the whole test suite; further arguments go to pytest.

    python scripts/test.py                         # with the newest ComfyUI that the pack is tested with
    python scripts/test.py --comfyui 0.16.3        # with an older one, what its promise rests on
"""
import argparse
import os
import sys

from support import environment

MOST_PROCESSES = 4  # each takes up to 4 GB of memory
# What runs with an older ComfyUI: the nodes load and keep their interface, the numbers are the authors', nothing is
# left behind, sampler, controls and cache do what they do on the newest, what is asked of ComfyUI's own code is told
# rightly, and the templates that name no newer version find all their nodes.
PROMISED = [*(f"tests/test_{name}.py" for name in ("nodes", "golden", "lifecycle", "sampler", "controls", "kv_cache",
                                                   "fetches", "attention_in_use", "fusion")),
            "tests/test_workflows.py::test_comfyui_has_the_nodes"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", choices=environment.CARRIERS, default=environment.COMFYUI_VERSION,
                        help="a version of ComfyUI, which gets a virtual environment of its own")
    options, arguments = parser.parse_known_args()
    newest = options.comfyui == environment.COMFYUI_VERSION
    chosen = any(argument.startswith("tests") for argument in arguments)
    files = [] if chosen else ["tests"] if newest else PROMISED
    processes = min(os.cpu_count() or 1, MOST_PROCESSES)
    if not chosen and processes > 1 and "STAND_IN_NIGHTLY" not in os.environ:  # whose record one process writes
        # each process has a thread of its own: PyTorch's threads of several processes stand in each other's way
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        files += ["--numprocesses", str(processes), "--dist", "loadfile"]
    return environment.run_inside("-m", "pytest", *files, *arguments, version=options.comfyui)


if __name__ == "__main__":
    sys.exit(main())
