"""What the identity costs on one card: all that is to be known of it, in one command of under 25 minutes.

    python benchmarks/card.py --name h100        # inside the environment that scripts/test.py prepares
    python benchmarks/card.py --dry-run          # every branch, at toy sizes on a CPU

First it checks that the card computes rightly, by the tests that run on one. Nothing is timed behind a red check. Then
it calls ``overhead.py`` for one stage after the other, each in a process of its own, because ComfyUI reads at its start
which attention it runs. It prints the tables and writes a record and a plot to benchmarks/results.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
RESULTS = PACK / "benchmarks" / "results"
STAGE_SECONDS = 600
VIDEO_480P, VIDEO_720P = 32768, 75776  # of 832x480x81 and 1280x720x81, to a multiple of 256
# tests that run on the device where there is one
CHECKS = ["tests/test_kernel.py", "tests/test_fusion.py", "tests/test_attention.py"]
TOY_CHECKS = ["tests/test_kernel.py", "-k", "test_one_identity_after_another"]


def stages(dry: bool, timeline: Path) -> dict[str, list[str]]:
    """By name, what ``overhead.py`` is given; on a card those of a package that is not installed are left out.

    timeline: the file for the trace of the offloaded cache.
    """
    # 15 rounds: with 30, an RTX 4090 would take more than STAGE_SECONDS for the attention alone, by arithmetic
    size = (["--width", "128", "--rounds", "2"] if dry else
            ["--cuda", "--dtype", "bfloat16", "--rounds", "15", "--warm-up", "3"])
    if dry:
        tokens, heads, more, compiler = ["64"], "1", ["256", "512"], "eager"
    else:
        tokens, heads, more, compiler = ["32760", "75600"], "40", [str(VIDEO_480P), str(VIDEO_720P)], "inductor"
    smaller, larger = (["--parts", "model", "--video-tokens", count, *size] for count in more)
    found = {
        "attention": ["--parts", "attention", "--attention-tokens", *tokens, "--attention-heads", heads, *size],
        "480p, every cache": [*smaller, "--timeline", str(timeline)],
        "720p": [*larger, "--no-caches"],
        "480p, batch of 2": [*smaller, "--no-caches", "--batch", "2"],
        "480p, fp8 weights": [*smaller, "--no-caches", "--weights", "float8_e4m3fn"],
        "480p, torch.compile": [*smaller, "--no-caches", "--compile", compiler],
        "480p, DynamicVRAM": [*smaller, "--dynamic-vram", "--blocks", "2" if dry else "8"],
    }
    for host, package in (("sage", "sageattention"), ("flash", "flash_attn")):
        if importlib.util.find_spec(package) is not None:
            found[f"480p, {package}"] = [*smaller, "--no-caches", "--host", host]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="of the card, for the files in benchmarks/results")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on a CPU; nothing is claimed of its figures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for the record and the plot")
    parser.add_argument("--check", nargs="+", help="what pytest is given instead of the tests that run on a device")
    options = parser.parse_args()
    if options.name is None and not options.dry_run:
        parser.error("--name: say which card it is, as in h100")
    name = options.name or "dry_run"
    started = time.monotonic()
    check(options.check or (TOY_CHECKS if options.dry_run else CHECKS))
    record = {}
    for stage, arguments in stages(options.dry_run, options.results / f"card_{name}_timeline.json.gz").items():
        record[stage] = timed(stage, arguments)
    (options.results / f"card_{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(record, options.results / f"card_{name}.png")
    sys.stdout.write(f"done in {(time.monotonic() - started) / 60:.1f} minutes\n")


def check(arguments: list[str]) -> None:
    """Raises SystemExit where a test is red: figures of a wrong result are worth nothing."""
    if subprocess.run([sys.executable, "-m", "pytest", "-q", *arguments], cwd=PACK).returncode:
        raise SystemExit("the check is red, so nothing was timed: mend what it names, or report it with its output.")


def timed(stage: str, arguments: list[str]) -> dict:
    """The record of one stage; where it failed or took too long, what was said of it, and the next stage goes on."""
    sys.stdout.write(f"\n## {stage}\n\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, str(PACK / "benchmarks" / "overhead.py"), *arguments, "--record", str(record)]
        try:
            program = subprocess.run(command, cwd=PACK, timeout=STAGE_SECONDS, text=True, stderr=subprocess.PIPE,
                                     env={**os.environ, "PYTHONUNBUFFERED": "1"})
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {STAGE_SECONDS} s"}
        if program.returncode:
            sys.stdout.write(program.stderr)
            return {"failed": program.stderr.strip().rpartition("\n")[2]}
        return json.loads(record.read_text())


def plot(record: dict, path: Path) -> None:
    """What each variant costs beside the plain one on the same attention, with the interval of its median."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(f"{stage}: {name}", row) for stage, result in record.items()
            for part in (*([result["model"]] if "model" in result else []), *result.get("attention", []))
            for name, row in part["timed"].items() if not name.endswith("plain")]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.22 * len(rows)), layout="constrained")
    for place, (_, row) in enumerate(rows):
        axes.plot([100 * (row["low"] - 1), 100 * (row["high"] - 1)], [place, place], color="tab:blue")
        axes.plot(100 * (row["ratio"] - 1), place, "o", color="tab:blue", markersize=4)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("time beside the plain model on the same attention, %")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
