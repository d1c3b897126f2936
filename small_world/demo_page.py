"""The demo's page: for every person the photo, the frames with and without the identity, and what is read in them."""
from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from small_world.people import TRAITS, Person
from small_world.reader import Readings

CHANCE = np.mean([1 / len(values) for values in TRAITS.values()])
FRAMES_SHOWN, FRAME_PX, PHOTO_PX = 5, 128, 128

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Stand-In demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.6rem; }}
h2 {{ font-size: 1.15rem; margin-top: 2.2rem; border-top: 1px solid #ddd; padding-top: 1rem; }}
.row {{ display: flex; gap: .5rem; flex-wrap: wrap; align-items: end; margin: .4rem 0; }}
figure {{ margin: 0; }} figcaption {{ font-size: .8rem; color: #666; }}
img {{ display: block; border-radius: 4px; }}
table {{ border-collapse: collapse; font-size: .9rem; }} td, th {{ padding: .15rem 1rem .15rem 0; text-align: left; }}
td:first-child {{ color: #666; white-space: nowrap; }}
.other {{ color: #a33; }}
.note {{ background: #eef4fb; padding: .6rem 1rem; border-radius: 4px; }}
.score {{ font-size: 1.05rem; }}
</style>
<h1>One photo in, a video of that person out</h1>
<p class="note">These people are drawn: of a small world in which it is known who is who. Its models are tiny, but they
are ComfyUI's own Wan and VAE, and nobody who looks like these was seen in training. The bundled workflow ran as it is
in a ComfyUI server. The two rows of a person have the same prompt and the same seed; only the strength of the identity
differs. They are the first three, not the best three: docs/small_world.md measures 48.</p>
{people}
<h2>A photograph</h2>
<p>The first step with a real photo: Face Preprocess finds the face, crops it and puts it on white, where a parser is
installed. What it says: {verdict}</p>
<div class="row">{photograph}</div>
<h2>The run</h2>
<table>{facts}</table>
</html>
"""

PERSON = """<h2>“{caption}”</h2>
<p class="score">Traits of the person found in the frames: {summary}.</p>
<div class="row">{photo}{with_identity}</div>
<div class="row">{space}{plain}</div>
<table><tr><th></th><th>the photo</th><th>with the identity</th><th>without it</th></tr>{traits}</table>
"""


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A person of the demo. photo, video: files; frames, frames_without: [F, H, W, 3] uint8; reading_real: of a real
    video of the person through the VAE; record: of the run.
    """

    photo: Path
    video: Path
    person: Person
    caption: str
    frames: np.ndarray
    frames_without: np.ndarray
    reading: Readings
    reading_without: Readings
    reading_real: Readings
    record: dict

    @property
    def summary(self) -> str:
        """How many of the person's traits are found."""
        found, without, real = (reading.agreement(self.person) for reading in (
            self.reading, self.reading_without, self.reading_real))
        return (f"{found:.0%} with the identity, {without:.0%} without it; {CHANCE:.0%} by a guess, {real:.0%} in a "
                "real video through the same VAE")


def write_report(folder: Path, shown: list[Shown], crop: Path, verdict: str) -> Path:
    """Reads photo.png, the photograph, in folder; -> the page."""
    page = folder / "report.html"
    page.write_text(PAGE.format(
        people="".join(_person(each) for each in shown), verdict=html.escape(verdict).replace("\n", "; "),
        photograph=_figure(PIL.Image.open(folder / "photo.png"), "the photograph", 200)
        + _figure(PIL.Image.open(crop), "the reference image", 200),
        facts=_facts(shown[0].record)), encoding="utf-8")
    return page


def _person(shown: Shown) -> str:
    return PERSON.format(
        caption=html.escape(shown.caption), summary=shown.summary,
        photo=_figure(PIL.Image.open(shown.photo), "the photo", PHOTO_PX),
        space=_figure(PIL.Image.new("RGB", (PHOTO_PX, PHOTO_PX), "white"), "no photo", PHOTO_PX),
        with_identity=_strip(shown.frames), plain=_strip(shown.frames_without), traits=_traits(shown))


def _traits(shown: Shown) -> str:
    """What most frames show of each trait that can be seen."""
    rows = ""
    for index, (name, values) in enumerate(TRAITS.items()):
        if not shown.person.visible[index]:
            continue
        wanted = getattr(shown.person, name)
        cells = f"<td>{name.replace('_', ' ')}</td><td>{wanted}</td>"
        for reading in (shown.reading, shown.reading_without):
            found = values[np.bincount(reading.traits[:, index]).argmax()]
            kind = "same" if found == wanted else "other"
            cells += f'<td class="{kind}">{found}</td>'
        rows += f"<tr>{cells}</tr>"
    return rows


def _strip(video: np.ndarray) -> str:
    return "".join(_figure(PIL.Image.fromarray(video[i]), f"frame {i + 1}", FRAME_PX)
                   for i in np.linspace(0, len(video) - 1, FRAMES_SHOWN).round().astype(int))


def _figure(image: PIL.Image.Image, caption: str, width: int) -> str:
    data = io.BytesIO()
    image.resize((width, width * image.height // image.width), PIL.Image.Resampling.LANCZOS).save(data, "PNG")
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
