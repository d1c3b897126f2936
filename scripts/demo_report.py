"""The demo's page: the photo, the crop, the frames with and without the identity, and what the run did."""
from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
import PIL.Image

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Stand-In demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
.row {{ display: flex; gap: .5rem; flex-wrap: wrap; align-items: end; }}
figure {{ margin: 0; }} figcaption {{ font-size: .8rem; color: #666; }}
img {{ display: block; border-radius: 4px; }}
table {{ border-collapse: collapse; }} td {{ padding: .2rem 1rem .2rem 0; vertical-align: top; }}
td:first-child {{ color: #666; white-space: nowrap; }}
.note {{ background: #fff6dd; padding: .6rem 1rem; border-radius: 4px; }}
</style>
<h1>One photo in, a video out</h1>
<p class="note">The weights of this demo are tiny and random: everything that runs is real, what it paints is noise. The
two rows differ only in the strength of the identity.</p>
<h2>The reference</h2>
<div class="row">{reference}</div>
<p>{verdict}</p>
<h2>Frames with the identity</h2>
<div class="row">{with_identity}</div>
<h2>The same seed without it</h2>
<div class="row">{without}</div>
<h2>Where they differ</h2>
<div class="row">{difference}</div>
<p>Four times the difference; its mean is {mean:.1f} of 255.</p>
<h2>The run</h2>
<table>{facts}</table>
</html>
"""


def write_report(folder: Path, verdict: str, report: dict, with_identity: np.ndarray, without: np.ndarray) -> Path:
    """with_identity, without: [F, H, W, 3] uint8. Reads photo.png and face_crop.png in folder; -> the page."""
    shown = np.linspace(0, len(with_identity) - 1, 6).round().astype(int)
    reference = (_figure(PIL.Image.open(folder / "photo.png"), "the photo")
                 + _figure(PIL.Image.open(folder / "face_crop.png"), "the reference image"))
    difference = np.abs(with_identity.astype(float) - without)
    page = folder / "report.html"
    page.write_text(PAGE.format(
        reference=reference, verdict=html.escape(verdict).replace("\n", "<br>"),
        with_identity=_strip(with_identity, shown), without=_strip(without, shown),
        difference=_strip((4 * difference).clip(0, 255).astype(np.uint8), shown), mean=difference.mean(),
        facts=_facts(report)), encoding="utf-8")
    return page


def _strip(video: np.ndarray, shown: np.ndarray) -> str:
    return "".join(_figure(PIL.Image.fromarray(video[i]), f"frame {i + 1}", 144) for i in shown)


def _figure(image: PIL.Image.Image, caption: str, width: int = 256) -> str:
    data = io.BytesIO()
    image.resize((width, width * image.height // image.width)).save(data, "PNG")
    source = base64.b64encode(data.getvalue()).decode()
    return (f'<figure><img width="{width}" src="data:image/png;base64,{source}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>")


def _facts(report: dict) -> str:
    frames, height, width = report["video_grid"]
    (identity,) = report["identities"]
    facts = {
        "adapter": f"{identity['adapter_file']}, rank {identity['adapter_rank']}, sha256 "
                   f"{identity['adapter_sha256'][:12]}",
        "tokens": f"{identity['tokens']} identity beside {frames * height * width} video tokens",
        "attention": report["attention"],
        "identity K/V": f"{report['cache']}, built {report['builds']}x in {report['build_ms']:.0f} ms, "
                        f"{report['cache_bytes'] / 2**20:.1f} MiB, read {report['reads']} times",
        "sampling": f"{report['steps']} steps, {report['ms_per_step']:.0f} ms each",
    }
    return "".join(f"<tr><td>{name}</td><td>{html.escape(fact)}</td></tr>" for name, fact in facts.items())
