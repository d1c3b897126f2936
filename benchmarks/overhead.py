"""What the identity costs: plain model against every attention path and cache mode, in one run.

    python benchmarks/overhead.py                    # inside the environment that scripts/test.py prepares

Model: two blocks of Wan 14B's width, random weights, a 1:32 ratio of identity to video tokens, through ComfyUI's
sampler; *auto* is what a run chooses. Attention: the self-attention of such a block alone with the 32,760 tokens of
832x480x81, on a few of its heads; there the share of the identity is 1/32 and stands out of the noise. Pieces: each
piece of such a block alone, beside the whole block. Agreement: times nothing, and stops where a path or cache mode
samples something else than the others. On a GPU, ``benchmarks/card.py`` calls this program for all that is
to be known of a card.

Variants take turns within each round. A ratio is taken within a round, to the plain model on the same attention; its
median over the rounds is given with half the interquartile range, and from 6 rounds on with an interval that holds the
true median with 95 % or more. The plain model takes a second turn in each round: its ratio is the machine's noise.
"""
from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]  # before this folder, which has a small_world.py
sys.path.append(str(PACK / "tests"))  # for the bars
from support.environment import import_comfyui

HOSTS = {"pytorch": "--use-pytorch-cross-attention", "sage": "--use-sage-attention", "flash": "--use-flash-attention"}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--width", type=int, default=5120, help="of the model; 5120 is Wan 14B's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=float, default=0.0, help="seconds of work before the first round")
    parser.add_argument("--video-tokens", type=int, default=1024, help="of the model and of the block whose pieces are "
                        "timed, a multiple of 256")
    parser.add_argument("--batch", type=int, default=1, help="videos in a call of the model")
    parser.add_argument("--attention-tokens", type=int, nargs="+", default=[32760])
    parser.add_argument("--attention-heads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--weights", choices=("float8_e4m3fn",), help="of the model, where not in --dtype")
    parser.add_argument("--host", choices=HOSTS, default="pytorch", help="the attention that ComfyUI starts with")
    parser.add_argument("--caches", action=argparse.BooleanOptionalAction, default=True, help="time every cache mode")
    parser.add_argument("--timeline", type=Path, help="a file for a trace of one step with the offloaded cache, as "
                        "chrome://tracing and Perfetto show it")
    parser.add_argument("--compile", metavar="BACKEND", help="of torch.compile, which the model then runs under")
    parser.add_argument("--dynamic-vram", action="store_true", help="as ComfyUI's main program switches it on")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=("agreement", "model", "attention", "pieces"),
                        default=("model", "attention"), help="the record keeps the others")
    parser.add_argument("--name", default="cpu", help="of the file in benchmarks/results")
    parser.add_argument("--record", type=Path, help="a file elsewhere")
    options = parser.parse_args()
    if options.timeline and not options.caches:
        parser.error("--timeline: needs the cache modes, leave out --no-caches")
    if options.rounds < 2:
        parser.error("--rounds: at least 2 are needed to tell the noise")
    return options


OPTIONS = parsed()
import_comfyui(HOSTS[OPTIONS.host], *([] if OPTIONS.cuda else ["--cpu"]))

import torch
from torch.nn.attention import sdpa_kernel

import comfy.model_management
import comfy.sample
import comfy.sd
from comfy_api.torch_helpers import set_torch_compile_wrapper
import dynamic_vram
from machine import machine
from pieces import BLOCK, WITH_IDENTITY, pieces_of
from small_world.tiny_models import TinyWan, adapter_weights
from standin_core.attention import (
    ATTENTION_PATHS,
    AttentionChoice,
    AttentionInUse,
    Host,
    choose_attention,
    restricted_attention,
    split_heads,
)
from standin_core.attention.extend import kernel_refusal, kernel_trial, triton_refusal
from standin_core.attention.fusion import fusion_trial
from standin_core.attention.states import FLASH_ATTN, FUSED, SAGE, state_trial
from standin_core.report import ReportSink
from standin_core.stand_in.adapter import parse_adapter
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.kv_cache import CACHE_MODES
from standin_core.wan import Wan
from timing import Clocks, beside, in_turns, seconds_of
from tolerances import WHOLE_RUN, relative_rms

HEAD_DIM, RANK = 128, 128
PROMPT_TOKENS, TEXT_DIM = 512, 64
RATIO = 32
IDENTITY_TOKENS = 1024  # of a photo of 512x512
# how many keys a variant's attention reads for n video tokens, where not the video's and the identity's
KEYS = {"plain": lambda n: n, "plain again": lambda n: n, "identity alone, as a state": lambda n: IDENTITY_TOKENS}
STEPS = 3  # the first builds the identity K/V and is not counted
FP8_SHARE = 0.05  # of what the identity changes, which rounding its keys and values to fp8 may cost


def main() -> None:
    options = OPTIONS
    path = options.record or PACK / "benchmarks" / "results" / f"overhead_{options.name}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    about = {**machine(), "command": " ".join(["benchmarks/overhead.py", *sys.argv[1:]])}
    if options.dynamic_vram:
        about["dynamic_vram"] = dynamic_vram.switch_on()
    with torch.inference_mode():
        if "agreement" in options.parts:
            result["agreement"] = {**about, **agreement(options)}
        if "model" in options.parts:
            about["once_a_process"] = once_a_process(getattr(torch, options.dtype), options.width // HEAD_DIM)
            result["model"] = {**about, **whole_model(options)}
        if "attention" in options.parts:
            result["attention"] = [{**about, **attention_alone(options, n)} for n in options.attention_tokens]
        if "pieces" in options.parts:
            result["pieces"] = {**about, **pieces(options)}
    path.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(as_markdown(result))


def random_model(options):
    """A Wan of random weights."""
    dtype, width = getattr(torch, options.dtype), options.width
    ffn = width * 27 // 10 // 256 * 256  # 13,824 for Wan 14B
    wan = TinyWan(dim=width, ffn_dim=ffn, heads=width // HEAD_DIM, blocks=options.blocks, text_dim=TEXT_DIM)
    model = comfy.sd.load_diffusion_model_state_dict(
        wan.weights(), metadata=wan.metadata(),
        model_options={"dtype": getattr(torch, options.weights) if options.weights else dtype})
    model.set_model_compute_dtype(dtype)
    return model


def pieces(options) -> dict:
    """The pieces of a block, beside the whole block."""
    model, device = random_model(options), comfy.model_management.get_torch_device()
    comfy.model_management.load_models_gpu([model])
    n = options.video_tokens
    found, left_out = pieces_of(Wan(model.model), device, n, n // RATIO, PROMPT_TOKENS)
    clocks = Clocks()
    timed = in_turns(found, lambda name: seconds_of(found[name].call, device, queued=True), options.rounds,
                     dict.fromkeys(found, BLOCK), options.warm_up, clocks.note)
    for name, row in timed.items():
        row["tflops_per_second"] = found[name].flops / row["ms"] / 1e9 if found[name].flops else None
    return {"what": f"pieces of one block of width {options.width}, {n} video and {n // RATIO} identity tokens, "
                    f"{options.dtype}, ComfyUI with {options.host}",
            "flops_share": found[WITH_IDENTITY].flops / found[BLOCK].flops - 1, "timed": timed, "refused": left_out,
            "clocks": clocks.noted}


class Runs:
    """Short runs of a model through ComfyUI's sampler: plain, and with the identity in every path and cache mode."""

    def __init__(self, options):
        self.options, self.model = options, random_model(options)
        self.identity_tokens = options.video_tokens // RATIO
        draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
        self.latent = torch.zeros(options.batch, 16, options.video_tokens // 256, 32, 32)
        self.prompt = [[draw(1, PROMPT_TOKENS, TEXT_DIM), {}]]
        adapter = parse_adapter(adapter_weights(options.width, options.blocks, RANK), "benchmark")
        reference = draw(1, 16, 1, 8, self.identity_tokens // 4 * 2)
        self.variants = {"plain": self.model, "plain again": self.model}
        for path in ATTENTION_PATHS:
            self.variants[path] = apply_identity_branch(self.model, adapter, reference, attention=path,
                                                        cache="resident")
        for mode in CACHE_MODES if options.caches else ():
            if mode not in ("auto", "resident"):
                self.variants[f"merge, {mode}"] = apply_identity_branch(self.model, adapter, reference,
                                                                        attention="merge", cache=mode)

    def run(self, name: str, after_step=None) -> tuple[torch.Tensor, list]:
        """The latent that comes out, and the run's reports.

        after_step: called after each step.
        """
        patched, sink = self.variants[name].clone(), ReportSink()
        if self.options.compile:
            set_torch_compile_wrapper(patched, backend=self.options.compile)
        sink.listen(patched)
        latent = comfy.sample.sample(patched, comfy.sample.prepare_noise(self.latent, 0), STEPS, 1.0, "euler", "simple",
                                     self.prompt, self.prompt, self.latent, callback=after_step, disable_pbar=True,
                                     seed=0)
        return latent, sink.reports


def agreement(options) -> dict:
    """How far the paths and cache modes are from each other, which compute the same.

    Raises SystemExit where one is further than tests/tolerances.py allows, or where the identity changes nothing.
    """
    runs = Runs(options)
    latents = {name: runs.run(name)[0] for name in runs.variants}
    found = {name: relative_rms(latent, latents["concatenate"]) for name, latent in latents.items()}
    bars = {"merge, fp8": FP8_SHARE * found["plain"]}
    wrong = {name: distance for name, distance in found.items()
             if not name.startswith("plain") and not distance <= bars.get(name, WHOLE_RUN)}
    if wrong or not found["plain"] > 100 * WHOLE_RUN:
        raise SystemExit(f"what computes the same differs on this device: {found}")
    return {"what": "relative RMS to concatenate", "found": found}


def whole_model(options) -> dict:
    runs, width = Runs(options), options.width
    variants, identity_tokens = runs.variants, runs.identity_tokens
    reports, first_run = {}, {}

    def step_seconds(name: str) -> float:
        ends, started = [], time.perf_counter()

        def note_end(*_):
            comfy.model_management.synchronize()
            ends.append(time.perf_counter())

        _, made = runs.run(name, note_end)
        first_run.setdefault(name, ends[0] - started)
        if made:
            (reports[name],) = made
        return (ends[-1] - ends[0]) / (STEPS - 1)

    clocks = Clocks()
    timed = in_turns(variants, step_seconds, options.rounds, dict.fromkeys(variants, "plain"), options.warm_up,
                     clocks.note)
    n, c = options.video_tokens, width
    block = (6 * 2 * n * c * c  # q, k, v, o of the self-attention, q and o of the cross-attention
             + 2 * 2 * PROMPT_TOKENS * c * c + 2 * 2 * n * c * runs.model.model.diffusion_model.ffn_dim
             + 4 * n * n * c + 4 * n * PROMPT_TOKENS * c)
    return {
        "what": ", ".join([
            f"{options.blocks} block(s) of width {width}", f"{options.batch} x {n} video tokens",
            f"{identity_tokens} identity tokens", options.dtype,
            *([f"weights {options.weights}"] if options.weights else []),
            *([f"torch.compile {options.compile}"] if options.compile else []), f"ComfyUI with {options.host}"]),
        "flops_share": 4 * n * identity_tokens * c / block, "timed": timed, "clocks": clocks.noted,
        **({"timeline": timeline(lambda: step_seconds("merge, offloaded"), options.timeline)}
           if options.timeline else {}),
        "build_ms": reports["merge"].build_ms, "builds_per_run": reports["merge"].builds,
        "first_step_seconds_of_the_process": first_run,
        "attention": {name: [report.attention, *report.refusals] for name, report in reports.items()},
        "cache_bytes": {name: report.cache_bytes for name, report in reports.items()},
    }


def once_a_process(dtype: torch.dtype, heads: int) -> dict[str, dict[str, float]]:
    """What is tried before the first run depends on it, in milliseconds: the trial, and what its first call takes more,
    which is the compiler's, or the reading of what it compiled in an earlier process.
    """
    device = comfy.model_management.get_torch_device()
    trials = {source.name: lambda source=source: state_trial.__wrapped__(source, device, dtype, HEAD_DIM)
              for source in FUSED if source.device_type == device.type}
    if triton_refusal(device) is None:
        trials["Triton kernel"] = lambda: kernel_trial.__wrapped__(device, dtype, HEAD_DIM)
        trials["fused RMSNorm and RoPE"] = lambda: fusion_trial.__wrapped__(device, dtype, heads, HEAD_DIM)
    found = {}
    for name, trial in trials.items():
        first, second = (1000 * seconds_of(trial, device) for _ in range(2))
        found[name] = {"trial_ms": second, "compile_ms": first - second}
    return found


def timeline(step, path: Path) -> dict[str, float]:
    """Write a trace of a run, and say how much of its copies to the GPU lies beside computing.

    step: takes the run.
    """
    with torch.profiler.profile() as profiler:
        step()
    profiler.export_chrome_trace(str(path))
    copies, work = [], []
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            span = event.time_range.start, event.time_range.end
            if "Memcpy HtoD" in event.name:
                copies.append(span)
            elif "Mem" not in event.name:  # neither copies nor fills
                work.append(span)
    return {"copies_ms": sum(end - begin for begin, end in copies) / 1000, "share_beside_computing":
            beside(copies, work)}


def attention_alone(options, n: int) -> dict:
    device = comfy.model_management.get_torch_device()
    dtype, heads = getattr(torch, options.dtype), options.attention_heads
    q, k, v, identity_k, identity_v = (
        torch.randn(1, tokens, heads * HEAD_DIM, device=device, dtype=dtype)
        for tokens in (n, n, n, IDENTITY_TOKENS, IDENTITY_TOKENS))
    longer_k, longer_v = torch.cat((k, identity_k), dim=1), torch.cat((v, identity_v), dim=1)
    identities = [(identity_k, identity_v, torch.zeros(1, 1, device=device))]
    variants, against, refused, taken = {}, {}, {}, {}

    def add(host: str, plain, source) -> None:
        """What is timed on one attention: plain(q, k, v, heads) computes the video's, source its state."""
        def reading(choice):
            attend = restricted_attention(choice)
            return lambda: attend(plain, q, k, v, identities, heads=heads)

        merge = AttentionChoice("merge", source, ())
        calls = {
            "plain": lambda: plain(q, k, v, heads), "plain again": lambda: plain(q, k, v, heads),
            "concatenate": reading(AttentionChoice("concatenate", None, ())),
            "concatenate, copies free": lambda: plain(q, longer_k, longer_v, heads),
            "merge": reading(merge), "identity alone, as a state": lambda: state(source, identity_k, identity_v)}
        no_kernel = kernel_refusal(device, dtype, HEAD_DIM)
        if no_kernel is None:
            calls["merge by the Triton kernel"] = reading(dataclasses.replace(merge, kernel=True))
        else:
            refused["Triton kernel"] = str(no_kernel)
        for name, call in calls.items():
            variants[f"{host}: {name}"], against[f"{host}: {name}"] = call, f"{host}: plain"
        in_use = AttentionInUse(Host.PYTORCH, backend=lambda *_: source.backend, compute=plain)
        if source.package is not None:
            in_use = AttentionInUse(Host.SAGE if source is SAGE else Host.FLASH, source, compute=plain)
        choice = choose_attention("auto", (), in_use, device, dtype, HEAD_DIM, (n, IDENTITY_TOKENS))
        taken[host] = [str(choice), *map(str, choice.passed_over)]

    def state(source, k, v):
        split = (split_heads(x, heads) for x in (q, k, v))
        return source.state(*split, HEAD_DIM**-0.5)

    for source in (*FUSED, SAGE, FLASH_ATTN):
        refusal = source.refusal(device, dtype, HEAD_DIM)
        if refusal is not None:
            refused[source.name] = str(refusal)
        elif source.package is None:
            add(source.name, forced(source.backend), source)
        else:  # the package's own function gives a log-sum-exp or not at the same price
            add(source.name, lambda q, k, v, heads, source=source, **_: source.state(
                *(split_heads(x, heads) for x in (q, k, v)), HEAD_DIM**-0.5)[0]
                .transpose(1, 2).flatten(2), source)

    clocks = Clocks()
    timed = in_turns(variants, lambda name: seconds_of(variants[name], device), options.rounds, against,
                     options.warm_up, clocks.note)
    for name, row in timed.items():
        host, _, what = name.partition(": ")
        keys = KEYS.get(what, lambda n: n + IDENTITY_TOKENS)(n)
        row["tflops_per_second"] = 4 * n * keys * heads * HEAD_DIM / row["ms"] / 1e9
        row["identity_ms"] = row["ms"] - timed[f"{host}: plain"]["ms"] if keys > n else None
        row["peak_bytes"] = cuda_peak(variants[name]) if device.type == "cuda" else None
    return {
        "what": f"self-attention of {heads} heads x {HEAD_DIM}, {n} video and {IDENTITY_TOKENS} identity tokens, "
                f"{options.dtype}",
        "flops_share": IDENTITY_TOKENS / n, "timed": timed, "refused": refused, "auto": taken, "clocks": clocks.noted,
    }


def forced(backend):
    """ComfyUI's attention by PyTorch, with one of its backends alone."""
    def attention(q, k, v, heads, **_):
        split = (split_heads(x, heads) for x in (q, k, v))
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    return attention


def cuda_peak(call) -> int:
    """The most bytes that a call allocates on the GPU."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def as_markdown(result: dict) -> str:
    lines = []
    for part in (*(result[part] for part in ("model", "pieces") if part in result), *result.get("attention", [])):
        lines += [f"{part['what']}; reading the identity adds {100 * part['flops_share']:.2f} % FLOPs; "
                  f"{part['machine']}, torch {part['torch']}, ComfyUI {part['comfyui']}", "",
                  "| | ms | ratio to plain | the median lies in | identity ms | TFLOP/s | peak MiB |",
                  "|---|---|---|---|---|---|---|"]
        lines += [f"| {name} | {row['ms']:.2f} | {row['ratio']:.4f} ± {row['noise']:.4f} | "
                  f"{_number(row.get('low'), 1, 4)} to {_number(row.get('high'), 1, 4)} | "
                  f"{_number(row.get('identity_ms'), 1)} | {_number(row.get('tflops_per_second'), 1)} | "
                  f"{_number(row.get('peak_bytes'), 2**20)} |"
                  for name, row in part["timed"].items()]
        lines += ["", *(f"left out {name}: {why}" for name, why in part.get("refused", {}).items()),
                  *(f"{host}: auto takes {choice}" for host, (choice, *_) in part.get("auto", {}).items())]
    if "model" in result:
        model = result["model"]
        lines.append(f"auto takes {model['attention']['auto'][0]}")
        lines += [f"once a process, {name}: trial {row['trial_ms']:.1f} ms, compiling {row['compile_ms']:.1f} ms"
                  for name, row in model.get("once_a_process", {}).items()]
        if model.get("timeline", {}).get("copies_ms"):
            lines.append("copies to the GPU with the offloaded cache: {copies_ms:.2f} ms in a run, of which "
                         "{share_beside_computing:.0%} beside computing".format(**model["timeline"]))
        lines.append(f"identity K/V: built {model['builds_per_run']} time(s) in a run, in {model['build_ms']:.0f} ms")
        lines += [f"{name} {held / 2**20:.2f} MiB" for name, held in model["cache_bytes"].items()]
    return "\n".join(lines) + "\n"


def _number(value: float | None, unit: float, digits: int = 2) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


if __name__ == "__main__":
    main()
