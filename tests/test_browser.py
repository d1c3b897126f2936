"""ComfyUI's own page in a real browser: every bundled workflow, and a user's first five minutes."""
import json

import pytest
from browser import CHROMIUM, PACK_NAME, comfy_page
from workflow_graphs import WORKFLOWS

from environment import HOME, PACK

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
SCREENSHOTS = HOME / "screenshots"


@pytest.fixture(scope="module")
def comfy(server):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with comfy_page(server.url) as page:
        yield page


def ours(errors):
    """Of what the console said, what names the pack; ComfyUI misses files of its own without a network."""
    return [error for error in errors if "stand" in error.lower()]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_workflow_in_the_page(comfy, workflow):
    """Opened as the template browser opens it: all nodes known, no overlap, nothing cut, and the prompt is the file."""
    comfy.open(workflow.name)
    comfy.fit()
    comfy.page.screenshot(path=SCREENSHOTS / f"{workflow.name}.png")
    boxes = comfy.boxes()
    assert len(boxes) == len(workflow.prompt) + 1
    for index, first in enumerate(boxes):
        for second in boxes[index + 1:]:
            assert (first["right"] <= second["left"] or second["right"] <= first["left"]
                    or first["bottom"] <= second["top"] or second["bottom"] <= first["top"]), (first, second)
    cut = comfy.page.evaluate("""() => window.app.graph._nodes.filter(n => n.type !== 'MarkdownNote').filter(n => {
        const need = n.computeSize(); return n.size[0] < need[0] - 1 || n.size[1] < need[1] - 1; }).map(n => n.type)""")
    assert cut == []
    unknown = "window.app.graph._nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type)"
    assert comfy.page.evaluate(unknown) == []
    expected = json.loads((PACK / "workflows" / "api" / f"{workflow.name}.json").read_text(encoding="utf-8"))
    assert comfy.prompt() == expected
    assert ours(comfy.errors) == []


def test_the_template_browser_has_them(comfy):
    """Under the pack's name, each with its picture."""
    comfy.open()
    comfy.page.keyboard.press("Escape")
    comfy.page.get_by_role("button", name="Templates").first.click()
    comfy.page.get_by_text(PACK_NAME).first.click()
    for workflow in WORKFLOWS:
        card = comfy.page.get_by_text(workflow.name, exact=False).first
        card.wait_for(timeout=20_000)
    comfy.page.wait_for_timeout(1500)
    comfy.page.screenshot(path=SCREENSHOTS / "template_browser.png")
    pictures = comfy.page.evaluate(
        "[...document.images].filter(i => i.src.includes('ComfyUI-StandIn')).map(i => i.naturalWidth)")
    assert len(pictures) >= len(WORKFLOWS) and min(pictures) > 0
