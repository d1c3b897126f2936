"""The demo's page, of real videos in the place of generated ones: six people, every video plays, all in one file."""
import base64
import io
import json
import re

import numpy as np
import PIL.Image
import pytest

from small_world.cases import cases, real
from small_world.demo_page import Shown, Video, write_report
from small_world.reader import load_reader, read
from small_world.settings import SETTINGS
from support.browser import ARGUMENTS, CHROMIUM
from support.environment import PACK

PEOPLE = 6
RUN = {"video_grid": [3, 4, 4], "attention": "pytorch", "cache": "resident", "builds": 1, "build_ms": 2.0,
       "cache_bytes": 2**20, "reads": 12, "steps": 12, "ms_per_step": 100.0,
       "identities": [{"adapter_file": "a.safetensors", "adapter_rank": 32, "adapter_sha256": 64 * "0", "tokens": 16}]}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder, reader, people = tmp_path_factory.mktemp("demo"), load_reader(), []
    for number, case in enumerate(cases(PEOPLE)):
        photo = folder / f"{number}.png"
        PIL.Image.fromarray(case.photo).save(photo)
        reading = read(reader, real(case))
        videos = [Video(setting, photo.with_suffix(".mp4"), real(case), reading) for setting in SETTINGS]
        people.append(Shown(photo, case.person, case.clip.caption, videos, reading, RUN))
    return people


@pytest.fixture(scope="module")
def page(shown):
    photo = shown[0].photo
    return write_report(photo.parent, shown, photo, photo, "a face")


def pictures(page, kind):
    return [PIL.Image.open(io.BytesIO(base64.b64decode(data)))
            for data in re.findall(rf'src="data:image/{kind};base64,([^"]+)"', page.read_text(encoding="utf-8"))]


def test_every_row_has_videos_that_play_for_ever(page, shown):
    """There and back, as large as is promised, and in each frame what the video has there."""
    playing = iter(pictures(page, "webp"))
    for person in shown:
        for video in person.videos:
            picture, last = next(playing), len(video.frames) - 1
            assert picture.n_frames == 2 * last and picture.info["loop"] == 0 and min(picture.size) >= 256
            for index in range(picture.n_frames):
                picture.seek(index)
                small = np.asarray(picture.convert("RGB").resize(video.frames.shape[2:0:-1], PIL.Image.Resampling.BOX))
                expected = video.frames[min(index, 2 * last - index)]
                assert np.abs(small.astype(int) - expected).mean() < 6
    assert next(playing, None) is None
    assert min(min(photo.size) for photo in pictures(page, "png")) >= 256


def test_figures_are_those_of_the_record(page):
    """Read from it, not typed."""
    record = json.loads((PACK / "benchmarks" / "results" / "small_world_cpu.json").read_text(encoding="utf-8"))
    words = " ".join(page.read_text(encoding="utf-8").split())
    said = re.search(r"Over (\d+) people, .*, (\S+) of a person is kept as in the paper, (\S+) with .*, and (\S+) "
                     r"without the identity", words).groups()
    assert said == (str(record["people"]), *(f"{record[name]['kept']:.2f}" for name in (
        "with the branch", "positive pass", "without the branch")))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_plays_them_without_a_network(page):
    """At 1920x1080: six rows, each in one line; nothing is asked of anybody; what is technical is folded away."""
    from playwright.sync_api import sync_playwright

    asked, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        context = browser.new_context(viewport={"width": 1920, "height": 1080}, offline=True)
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url[:30]))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(page.as_uri())
        rows = tab.locator(".row:has(img[src*=webp])")
        assert rows.count() == PEOPLE
        for row in rows.all():
            row.scroll_into_view_if_needed()
            boxes = [image.bounding_box() for image in row.locator("img").all()]
            assert len(boxes) == 1 + len(SETTINGS) and len({box["y"] for box in boxes}) == 1
            assert min(min(box["width"], box["height"]) for box in boxes) >= 256
            for image in row.locator("img[src*=webp]").all():
                first = image.screenshot()
                assert any(image.screenshot() != first for _ in range(20))
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not tab.get_by_text("sha256").first.is_visible()
        browser.close()
    assert not errors and not [url for url in asked if not url.startswith(("file:", "data:"))]
