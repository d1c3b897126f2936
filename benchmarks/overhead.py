"""What the identity costs: plain model against every attention path and cache mode, in one run.

    python benchmarks/overhead.py                    # inside the environment that scripts/test.py prepares

Model: two blocks of Wan 14B's width, random weights, a 1:32 ratio of identity to video tokens, through ComfyUI's
sampler. Attention: the self-attention of such a block alone with the 32,760 tokens of 832x480x81, on a few of its
heads; there the share of the identity is 1/32 and stands out of the noise. On a GPU, all heads, 1280x720x81 (75,600
tokens) and the Triton kernel too:

    python benchmarks/overhead.py --cuda --dtype bfloat16 --video-tokens 32768 --attention-heads 40 \
        --attention-tokens 32760 75600 --name <card>

Variants take turns within each round; a ratio is taken within a round, and its median over the rounds is given with
half the interquartile range. The plain model takes a second turn in each round: its ratio is the machine's noise.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from support.environment import PACK, import_comfyui

import_comfyui("--use-pytorch-cross-attention", *([] if "--cuda" in sys.argv else ["--cpu"]))

import torch

import comfy.model_management
import comfy.sample
import comfy.sd
from comfy.ldm.modules.attention import optimized_attention
from machine import machine
from standin_core.attention import FLASH_ATTN, PYTORCH, SAGE, choose_attention, restricted_attention
from standin_core.stand_in.kv_cache import CACHE_MODES
from standin_core.report import ReportSink
from standin_core.stand_in.apply import apply_identity_branch
from standin_core.stand_in.adapter import parse_adapter
from small_world.tiny_models import TinyWan, adapter_weights

DIM, FFN_DIM, HEADS, RANK = 5120, 13824, 40, 128  # Wan 14B
HEAD_DIM = DIM // HEADS
PROMPT_TOKENS, TEXT_DIM = 512, 64
RATIO = 32
IDENTITY_TOKENS = 1024  # of a photo of 512x512
STEPS = 3  # the first builds the identity K/V and is not counted


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--video-tokens", type=int, default=1024, help="a multiple of 256")
    parser.add_argument("--attention-tokens", type=int, nargs="+", default=[32760])
    parser.add_argument("--attention-heads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=("model", "attention"), default=("model", "attention"),
                        help="the record keeps the other one")
    parser.add_argument("--name", default="cpu", help="of the file in benchmarks/results")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: at least 2 are needed to tell the noise")
    path = PACK / "benchmarks" / "results" / f"overhead_{options.name}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    about = {**machine(), "command": " ".join(["benchmarks/overhead.py", *sys.argv[1:]])}
    with torch.inference_mode():
        if "model" in options.parts:
            result["model"] = {**about, **whole_model(options)}
        if "attention" in options.parts:
            result["attention"] = [{**about, **attention_alone(options, n)} for n in options.attention_tokens]
    path.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(as_markdown(result))


def whole_model(options) -> dict:
    dtype = getattr(torch, options.dtype)
    wan = TinyWan(dim=DIM, ffn_dim=FFN_DIM, heads=HEADS, blocks=options.blocks, text_dim=TEXT_DIM)
    model = comfy.sd.load_diffusion_model_state_dict(wan.weights(), model_options={"dtype": dtype},
                                                     metadata=wan.metadata())
    adapter = parse_adapter(adapter_weights(DIM, options.blocks, RANK), "benchmark")
    frames = options.video_tokens // 256
    latent = torch.zeros(1, 16, frames, 32, 32)
    identity_tokens = options.video_tokens // RATIO
    reference = torch.randn(1, 16, 1, 8, identity_tokens // 4 * 2)
    prompt = [[torch.randn(1, PROMPT_TOKENS, TEXT_DIM), {}]]
    variants = {"plain": model, "plain again": model}
    for path in ("merge", "concatenate"):
        variants[path] = apply_identity_branch(model, adapter, reference, attention=path, cache="resident")
    for mode in CACHE_MODES:
        if mode not in ("auto", "resident"):
            variants[f"merge, {mode}"] = apply_identity_branch(model, adapter, reference, attention="merge", cache=mode)
    reports = {}

    def step_seconds(name: str) -> float:
        patched, sink = variants[name].clone(), ReportSink()
        sink.listen(patched)
        ends = []

        def note_end(*_):
            comfy.model_management.synchronize()
            ends.append(time.perf_counter())

        comfy.sample.sample(patched, comfy.sample.prepare_noise(latent, 0), STEPS, 1.0, "euler", "simple", prompt,
                            prompt, latent, callback=note_end, disable_pbar=True, seed=0)
        if sink.reports:
            (reports[name],) = sink.reports
        return (ends[-1] - ends[0]) / (STEPS - 1)

    timed = in_turns(variants, step_seconds, options.rounds)
    n, c = options.video_tokens, DIM
    block = (6 * 2 * n * c * c  # q, k, v, o of the self-attention, q and o of the cross-attention
             + 2 * 2 * PROMPT_TOKENS * c * c + 2 * 2 * n * c * FFN_DIM
             + 4 * n * n * c + 4 * n * PROMPT_TOKENS * c)
    return {
        "what": f"{options.blocks} block(s) of width {DIM}, {n} video and {identity_tokens} identity tokens, "
                f"{options.dtype}",
        "flops_share": 4 * n * identity_tokens * c / block, "timed": timed,
        "build_ms": reports["merge"].build_ms, "builds_per_run": reports["merge"].builds,
        "cache_bytes": {name: report.cache_bytes for name, report in reports.items()},
    }


def attention_alone(options, n: int) -> dict:
    device = comfy.model_management.get_torch_device()
    dtype, heads = getattr(torch, options.dtype), options.attention_heads
    q, k, v, identity_k, identity_v = (
        torch.randn(1, tokens, heads * HEAD_DIM, device=device, dtype=dtype)
        for tokens in (n, n, n, IDENTITY_TOKENS, IDENTITY_TOKENS))

    def plain():
        return optimized_attention(q, k, v, heads=heads)

    def reading(choice):
        attend = restricted_attention(choice)
        identities = [(identity_k, identity_v, torch.zeros(1, 1, device=device))]
        return lambda: attend(optimized_attention, q, k, v, identities, heads=heads)

    merge, concatenate = (choose_attention(path, (), PYTORCH, device, dtype, HEAD_DIM)
                          for path in ("merge", "concatenate"))
    variants = {"plain": plain, "plain again": plain, "merge": reading(dataclasses.replace(merge, kernel=False)),
                "concatenate": reading(concatenate)}
    if merge.kernel:
        variants["merge by the Triton kernel"] = reading(merge)
    for source in (SAGE, FLASH_ATTN):
        if source.refusal(device, dtype, HEAD_DIM) is None:
            variants[f"merge, {source.name}"] = reading(dataclasses.replace(merge, source=source))

    def seconds(name: str) -> float:
        comfy.model_management.synchronize()
        started = time.perf_counter()
        variants[name]()
        comfy.model_management.synchronize()
        return time.perf_counter() - started

    timed = in_turns(variants, seconds, options.rounds)
    for name, row in timed.items():
        keys = n if name.startswith("plain") else n + IDENTITY_TOKENS
        row["tflops_per_second"] = 4 * n * keys * heads * HEAD_DIM / row["ms"] / 1e9
        row["peak_bytes"] = cuda_peak(variants[name]) if device.type == "cuda" else None
    return {
        "what": f"self-attention of {heads} heads x {HEAD_DIM}, {n} video and {IDENTITY_TOKENS} identity tokens, "
                f"{options.dtype}",
        "flops_share": IDENTITY_TOKENS / n, "timed": timed,
    }


def cuda_peak(call) -> int:
    """The most bytes that a call allocates on the GPU."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def in_turns(variants: dict, seconds, rounds: int) -> dict:
    """name -> ms and ratio to plain, medians over rounds, after one round that is not counted."""
    for name in variants:
        seconds(name)
    times = {name: [] for name in variants}
    for i in range(rounds):
        # each round begins with another variant, so that none is always the one after a pause
        names = list(variants)[i % len(variants):] + list(variants)[:i % len(variants)]
        for name in names:
            times[name].append(seconds(name))
    ratios = {name: [a / b for a, b in zip(times[name], times["plain"])] for name in variants}
    summary = {}
    for name in variants:
        low, median, high = statistics.quantiles(ratios[name], n=4, method="inclusive")
        summary[name] = {"ms": 1000 * statistics.median(times[name]), "ratio": median, "noise": (high - low) / 2}
    return summary


def as_markdown(result: dict) -> str:
    lines = []
    for part in (*([result["model"]] if "model" in result else []), *result.get("attention", [])):
        lines += [f"{part['what']}; reading the identity adds {100 * part['flops_share']:.2f} % FLOPs; "
                  f"{part['machine']}, torch {part['torch']}, ComfyUI {part['comfyui']}", "",
                  "| | ms | ratio to plain | TFLOP/s | peak MiB |", "|---|---|---|---|---|"]
        lines += [f"| {name} | {row['ms']:.0f} | {row['ratio']:.4f} ± {row['noise']:.4f} | "
                  f"{_number(row.get('tflops_per_second'), 1)} | {_number(row.get('peak_bytes'), 2**20)} |"
                  for name, row in part["timed"].items()]
        lines.append("")
    if "model" in result:
        model = result["model"]
        lines.append(f"identity K/V: built {model['builds_per_run']} time(s) in a run, in {model['build_ms']:.0f} ms")
        lines += [f"{name} {held / 2**20:.2f} MiB" for name, held in model["cache_bytes"].items()]
    return "\n".join(lines) + "\n"


def _number(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.2f}"


if __name__ == "__main__":
    main()
