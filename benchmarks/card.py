"""What the identity costs on one card, in one command of under 25 minutes.

    python benchmarks/card.py --name h100        # inside the environment that scripts/test.py prepares
    python benchmarks/card.py --dry-run          # every branch, at toy sizes on a CPU; says how long a card takes

First it checks that the card computes rightly: by the tests that run on one, and by whole runs in which every path and
cache mode has to sample the same. Nothing is timed behind a red check. Then it calls ``overhead.py`` for one stage
after the other, each in a process of its own, because ComfyUI reads at its start which attention it runs. It prints the
tables and writes a record and a plot to benchmarks/results. The record is written after each stage: called again with
the same commit, machine and software, the command goes on with the stages that are not in it. A dry run begins anew.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
RESULTS = PACK / "benchmarks" / "results"
STAGE_SECONDS = 600
MACHINE = """
from support.environment import import_comfyui
import_comfyui()
import json, machine
print(json.dumps(machine.machine()))
"""
VIDEO_480P, VIDEO_720P = 32768, 75776  # of 832x480x81 and 1280x720x81, to a multiple of 256
# tests that run on the device where there is one
CHECKS = ["tests/test_kernel.py", "tests/test_fusion.py", "tests/test_attention.py"]
TOY_CHECKS = ["tests/test_kernel.py", "-k", "test_one_identity_after_another"]
# whole runs on the device, in which every path and cache mode has to sample the same: arguments of overhead.py
AGREEMENTS = {"ComfyUI as it is": (), "torch.compile": ("--compile", "inductor"), "DynamicVRAM": ("--dynamic-vram",)}

# 10^12 operations a second in attention and in linears, by which docs/performance.md computes its table
THROUGHPUT = {"RTX 4090": (150, 138), "H100": (371, 607)}
WIDTH, FFN = 5120, 13824
# guesses: tests and whole runs of the check; a process that imports ComfyUI and makes the weights; torch.compile
CHECK_SECONDS, START_SECONDS, COMPILE_SECONDS = 120 + 90, 40, 120
STEPS = 3  # of a turn of the model, as in overhead.py
# The interval of timing.py is the whole range of 7 rounds, which holds the median with 98 %; of 15 rounds it goes from
# the 4th value to the 12th (96 %). Fewer than 6 have none. Turns of the attention alone are short, and more of them
# tell the copies of a concatenation from none.
ROUNDS, SHORT_ROUNDS = 7, 15
# how many variants take turns: plain twice, auto, merge, concatenate; three caches more; the attention of one host
PATHS, CACHES, WAYS = 5, 3, 7
ATTENTION_HEADS = 10  # of 40: a quarter of the time, and thousands of tiles keep every card busy
ATTENTION_TOKENS = (32760, 75600)
# time of each attention over flash's, by its FLOPs; PyTorch's memory-efficient one takes about twice the time
ATTENTION_COSTS = {"flash": 1, "cuDNN": 1, "memory-efficient": 2, "sageattention": 1, "flash_attn": 1}


@dataclass(frozen=True)
class Stage:
    """What ``overhead.py`` is given for some figures, and how long that takes.

    tokens: of the video.
    blocks: of the model; two show a cache that fetches the next block's keys and values.
    caches: whether every cache mode is timed.
    short: whether the pieces of a block and the attention alone are timed, instead of a model.
    more: arguments of overhead.py.
    """

    tokens: int
    blocks: int = 1
    batch: int = 1
    caches: bool = False
    short: bool = False
    more: tuple[str, ...] = ()

    def arguments(self, dry: bool) -> list[str]:
        """dry: at toy sizes on a CPU."""
        tokens = {VIDEO_480P: 256, VIDEO_720P: 512}[self.tokens] if dry else self.tokens
        short, long = (6, 2) if dry else (SHORT_ROUNDS, ROUNDS)
        rounds = short if self.short else long
        common = ["--video-tokens", str(tokens), "--blocks", str(self.blocks), "--rounds", str(rounds), *self.more]
        common += ["--width", "128"] if dry else ["--cuda", "--dtype", "bfloat16", "--warm-up", "3"]
        if self.short:
            sizes = ["64"] if dry else map(str, ATTENTION_TOKENS)
            heads = "1" if dry else str(ATTENTION_HEADS)
            return ["--parts", "pieces", "attention", "--attention-tokens", *sizes, "--attention-heads", heads, *common]
        return ["--parts", "model", "--batch", str(self.batch), *([] if self.caches else ["--no-caches"]), *common]

    @property
    def variants(self) -> int:
        """How many take turns, where a model is timed."""
        return PATHS + (CACHES if self.caches else 0)

    def seconds(self, card: str) -> float:
        """About, by arithmetic.

        card: of THROUGHPUT.
        """
        if self.short:
            attention, _ = THROUGHPUT[card]
            a_round = sum(WAYS * cost * ATTENTION_HEADS / 40 * attention_tflop(n) / attention
                          for n in ATTENTION_TOKENS for cost in ATTENTION_COSTS.values())
            # two blocks, their pieces, and attention a second time; each call behind another
            a_round += 2 * 5 * block_seconds(self.tokens, card)
            return START_SECONDS + (SHORT_ROUNDS + 1) * a_round
        a_turn = STEPS * self.blocks * self.batch * block_seconds(self.tokens, card)
        compiling = COMPILE_SECONDS if "--compile" in self.more else 0
        return START_SECONDS + compiling + (ROUNDS + 1) * self.variants * a_turn


def attention_tflop(tokens: int) -> float:
    """TFLOP of the self-attention of one block with 40 heads."""
    return 4 * tokens**2 * WIDTH / 1e12


def block_seconds(tokens: int, card: str) -> float:
    attention, linears = THROUGHPUT[card]
    return attention_tflop(tokens) / attention + 4 * tokens * WIDTH * (3 * WIDTH + FFN) / 1e12 / linears


def stages(dry: bool, timeline: Path) -> dict[str, Stage]:
    """By name, in their order.

    timeline: the file for the trace of the offloaded cache.
    """
    return {
        "block": Stage(VIDEO_480P, short=True),
        "480p, every cache": Stage(VIDEO_480P, blocks=2, caches=True, more=("--timeline", str(timeline))),
        "720p": Stage(VIDEO_720P),
        "480p, batch of 2": Stage(VIDEO_480P, batch=2),
        "480p, fp8 weights": Stage(VIDEO_480P, more=("--weights", "float8_e4m3fn")),
        "480p, torch.compile": Stage(VIDEO_480P, more=("--compile", "eager" if dry else "inductor")),
        "480p, DynamicVRAM": Stage(VIDEO_480P, blocks=2, caches=True, more=("--dynamic-vram",)),
        "480p, sageattention": Stage(VIDEO_480P, more=("--host", "sage")),
        "480p, flash_attn": Stage(VIDEO_480P, more=("--host", "flash")),
    }


def installed(stage: str) -> bool:
    """Whether the package is there that a stage is named after, if it is."""
    return all(importlib.util.find_spec(package) for package in ("sageattention", "flash_attn") if package in stage)


def expected(found: dict[str, Stage]) -> str:
    """How many minutes the whole takes, as a table."""
    rows = [["minutes, by arithmetic", *THROUGHPUT], ["---"] * (1 + len(THROUGHPUT)),
            ["check", *[f"{CHECK_SECONDS / 60:.1f}"] * len(THROUGHPUT)]]
    rows += [[name, *(f"{stage.seconds(card) / 60:.1f}" for card in THROUGHPUT)] for name, stage in found.items()]
    totals = (CHECK_SECONDS + sum(stage.seconds(card) for stage in found.values()) for card in THROUGHPUT)
    rows.append(["all", *(f"{total / 60:.1f}" for total in totals)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


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
    found = stages(options.dry_run, options.results / f"card_{name}_timeline.json.gz")
    sys.stdout.write(expected(found))
    sys.stdout.flush()
    path = options.results / f"card_{name}.json"
    record = begun(path, measured_on(), options.dry_run)
    record["agreement"] = check(options.check or (TOY_CHECKS if options.dry_run else CHECKS), options.dry_run)
    results = record["stages"]
    for stage in filter(installed, found):
        if "failed" in results.get(stage, {"failed": "not timed yet"}):
            results[stage] = timed(stage, found[stage].arguments(options.dry_run))
            path.write_text(json.dumps(record, indent=1) + "\n")
    plot(results, options.results / f"card_{name}.png")
    failed = [stage for stage, result in results.items() if "failed" in result]
    sys.stdout.write(f"failed: {', '.join(failed)}\n" if failed else "")
    sys.stdout.write(f"done in {(time.monotonic() - started) / 60:.1f} minutes\n")


def measured_on() -> dict[str, str]:
    """Commit, machine, and the software that matters, asked in a process of its own, since it takes memory of the card.

    commit: with "-dirty" where files of it are changed; empty where git knows none.
    """
    asked = subprocess.run([sys.executable, "-c", MACHINE], cwd=PACK, text=True, stdout=subprocess.PIPE, check=True,
                           env={**os.environ, "PYTHONPATH": f"{PACK / 'scripts'}{os.pathsep}{PACK / 'benchmarks'}"})
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(command, cwd=PACK, text=True, capture_output=True).stdout if shutil.which("git") else ""
    found = json.loads(asked.stdout)
    return {"commit": commit.strip(), **{part: value for part, value in found.items() if part != "threads"}}


def begun(path: Path, here: dict[str, str], dry: bool) -> dict:
    """The record to go on with, or a new one.

    Raises SystemExit where figures of something else are there.
    """
    if dry or not path.exists():
        return {"measured_on": here, "stages": {}}
    record = json.loads(path.read_text())
    if record["measured_on"] != here:
        other = ", ".join(f"{part} {came!r} and not {here[part]!r}" for part, came in record["measured_on"].items()
                          if came != here[part])
        raise SystemExit(f"{path} was measured on {other}: take another --name, or move that file away.")
    return record


def check(arguments: list[str], dry: bool) -> dict[str, dict[str, float]]:
    """How far the paths and cache modes are from each other, for each of AGREEMENTS.

    arguments: of pytest.

    Raises SystemExit where a test is red or they differ: figures of a wrong result are worth nothing.
    """
    if subprocess.run([sys.executable, "-m", "pytest", "-q", *arguments], cwd=PACK).returncode:
        raise SystemExit("the check is red, so nothing was timed: fix what it names, or report it with its output.")
    return {name: agreed(name, dry) for name in AGREEMENTS}


def agreed(name: str, dry: bool) -> dict:
    """The distances in one of AGREEMENTS, in fp32."""
    size = ["--width", "128", "--video-tokens", "256"] if dry else ["--cuda", "--video-tokens", "1024"]
    more = [word if word != "inductor" or not dry else "eager" for word in AGREEMENTS[name]]
    result = overhead(["--parts", "agreement", *size, *more])
    if "failed" in result:
        raise SystemExit(f"{name}: {result['failed']} Nothing was timed.")
    return result["agreement"]["found"]


def timed(stage: str, arguments: list[str]) -> dict:
    """The record of one stage, or how it failed; the next stage goes on."""
    sys.stdout.write(f"\n## {stage}\n\n")
    sys.stdout.flush()
    return overhead(arguments)


def overhead(arguments: list[str]) -> dict:
    """The record of ``overhead.py``; where it failed or took too long, what was said of it."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, str(PACK / "benchmarks" / "overhead.py"), *arguments, "--record", str(record)]
        try:
            program = subprocess.run(command, cwd=PACK, timeout=STAGE_SECONDS, text=True, stderr=subprocess.PIPE,
                                     env={**os.environ, "PYTHONUNBUFFERED": "1"})
        except subprocess.TimeoutExpired as late:
            sys.stdout.write((late.stderr or b"").decode(errors="replace"))  # bytes, whatever text says
            return {"failed": f"took more than {STAGE_SECONDS} s"}
        if program.returncode:
            sys.stdout.write(program.stderr)
            return {"failed": program.stderr.strip().rpartition("\n")[2]}
        return json.loads(record.read_text())


def plot(results: dict, path: Path) -> None:
    """What each variant costs beside the plain one on the same attention, with the interval of its median."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(f"{stage}: {name}", row) for stage, result in results.items()
            for part in (*([result["model"]] if "model" in result else []), *result.get("attention", []))
            for name, row in part["timed"].items() if not name.endswith("plain")]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.22 * len(rows)), layout="constrained")
    for place, (_, row) in enumerate(rows):
        if "low" in row:
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
