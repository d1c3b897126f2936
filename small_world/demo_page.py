"""The demo's page, one file: every person's photo beside the videos of each setting, and what is read in them."""
from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from small_world.animation import animated_webp, enlarged, there_and_back
from small_world.people import TRAITS, Person
from small_world.reader import Readings
from small_world.settings import CLOSER, PAPER, PLAIN, Setting, people_measured

CHANCE = np.mean([1 / len(values) for values in TRAITS.values()])
SHOWN_PX = 256

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Stand-In demo</title>
<style>
body {{ font: 17px/1.5 system-ui, sans-serif; max-width: 1090px; margin: 1.5rem auto 3rem; padding: 0 1rem;
  color: #222; }}
h1 {{ font-size: 1.7rem; margin: 0; }}
h2 {{ font-size: 1.15rem; margin: 0 0 .5rem; }}
section {{ margin-top: 1.6rem; padding-top: 1.1rem; border-top: 1px solid #ddd; }}
.row {{ display: flex; gap: 1.2rem; flex-wrap: wrap; }}
figure {{ margin: 0; }} figcaption {{ font-size: .9rem; color: #555; }}
img {{ display: block; border-radius: 6px; }}
p {{ margin: .5rem 0; }}
table {{ border-collapse: collapse; font-size: .9rem; margin: .5rem 0; }}
td, th {{ padding: .15rem 1.2rem .15rem 0; text-align: left; }}
td:first-child {{ color: #666; white-space: nowrap; }}
summary {{ color: #666; cursor: pointer; }}
.other {{ color: #a33; }}
</style>
<h1>One photo in, a video of that person out</h1>
<p>The people are drawn, and the models are tiny: ComfyUI's own Wan and VAE at small widths. Nobody here, and nobody who
looks like them, was seen in training. The bundled workflow made every video in a ComfyUI server. The three videos of a
row have one prompt and one seed; only a setting of <i>Apply Identity Branch</i> differs. They are the first {people} of
the list, not the best; the videos play there and back at half their speed.</p>
<p>A <i>reader</i>, a small network that was trained on drawn pictures alone, names the traits in every frame. Over
{measured} people, on a scale from 0 (chance) to 1 (real videos), {paper.kept:.2f} of a person is kept {paper.name},
{closer.kept:.2f} with <i>guidance: positive pass</i> ({closer.name}), and {plain.kept:.2f} {plain.name}.</p>
{rows}
<section>
<h2>A photograph</h2>
<p>The first step with a real photo: Face Preprocess finds the face and crops it.</p>
<div class="row">{photograph}</div>
<details><summary>What Face Preprocess says</summary><p>{verdict}</p></details>
</section>
</html>
"""

ROW = """<section>
<h2>“{caption}”</h2>
<div class="row">{photo}{videos}</div>
<p>{summary}</p>
<details><summary>Trait by trait, and the run</summary>
<table><tr><th></th><th>the photo</th>{names}</tr>{traits}</table>
<table>{facts}</table>
</details>
</section>
"""


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """A video of the demo.

    file: as ComfyUI saved it.
    frames: [F, H, W, 3] uint8.
    reading: what the reader says of these frames.
    """

    setting: Setting
    file: Path
    frames: np.ndarray
    reading: Readings


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A person of the demo.

    photo: a file.
    videos: one for each setting.
    reading_real: what the reader says of a real video of the person that went through the VAE.
    record: the run record of the first video.
    """

    photo: Path
    person: Person
    caption: str
    videos: list[Video]
    reading_real: Readings
    record: dict

    @property
    def summary(self) -> str:
        """How many of the person's traits are found."""
        found = ", ".join(f"{video.reading.agreement(self.person):.0%} {video.setting.name}" for video in self.videos)
        return (f"Traits found: {found} (a guess: {CHANCE:.0%}; a real video: "
                f"{self.reading_real.agreement(self.person):.0%}).")


def write_report(folder: Path, shown: list[Shown], photograph: Path, crop: Path, verdict: str) -> Path:
    """Write the page; returns its file.

    photograph, crop: pictures, before and after Face Preprocess.
    verdict: what Face Preprocess says of the photograph.
    """
    page = folder / "report.html"
    page.write_text(PAGE.format(
        people=len(shown), measured=people_measured(), paper=PAPER, closer=CLOSER, plain=PLAIN,
        rows="".join(_row(each) for each in shown), verdict=html.escape(verdict).replace("\n", "; "),
        photograph=_still(photograph, "the photograph") + _still(crop, "the reference image")), encoding="utf-8")
    return page


def _row(shown: Shown) -> str:
    return ROW.format(
        caption=html.escape(shown.caption), summary=shown.summary, photo=_still(shown.photo, "the photo"),
        videos="".join(_moving(video) for video in shown.videos), traits=_traits(shown), facts=_facts(shown.record),
        names="".join(f"<th>{video.setting.name}</th>" for video in shown.videos))


def _traits(shown: Shown) -> str:
    """What most frames show of each trait that can be seen."""
    rows = ""
    for index, (name, values) in enumerate(TRAITS.items()):
        if not shown.person.visible[index]:
            continue
        wanted = getattr(shown.person, name)
        cells = f"<td>{name.replace('_', ' ')}</td><td>{wanted}</td>"
        for video in shown.videos:
            found = values[np.bincount(video.reading.traits[:, index]).argmax()]
            kind = "same" if found == wanted else "other"
            cells += f'<td class="{kind}">{found}</td>'
        rows += f"<tr>{cells}</tr>"
    return rows


def _still(file: Path, caption: str) -> str:
    content = io.BytesIO()
    image = enlarged(np.asarray(PIL.Image.open(file).convert("RGB")), SHOWN_PX)
    image.save(content, "PNG")
    return _figure(content.getvalue(), "png", caption)


def _moving(video: Video) -> str:
    frames = [enlarged(frame, SHOWN_PX) for frame in there_and_back(video.frames)]
    return _figure(animated_webp(frames), "webp", video.setting.name)


def _figure(content: bytes, kind: str, caption: str) -> str:
    source = base64.b64encode(content).decode()
    return (f'<figure><img height="{SHOWN_PX}" src="data:image/{kind};base64,{source}" alt="{caption}">'
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
