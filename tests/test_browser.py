"""ComfyUI's own page in a real browser: every bundled workflow, and a user's first five minutes."""
import json
import re

import pytest

from small_world.tiny_models import ADAPTER, on_tiny_models
from support.browser import CHROMIUM, SEARCH
from support.environment import HOME, PACK
from support.workflow_graphs import WORKFLOWS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
SCREENSHOTS = HOME / "screenshots"
SCREENSHOTS.mkdir(parents=True, exist_ok=True)


@pytest.fixture(scope="module")
def usual(comfy):
    """What ComfyUI's own page says without the pack doing anything: it asks for files of the user's that there are not,
    and again when a workflow is opened."""
    comfy.open()
    return kinds(comfy.errors)


def kinds(errors):
    """Without what differs from page to page."""
    return {re.sub(r"https?://[^/]+|[?&].*", "", error) for error in errors}


@pytest.fixture(scope="module", params=(False, True), ids=("canvas", "vue"))
def drawn(comfy, request):
    """The page with its nodes drawn by the canvas, and by Vue."""
    comfy.open()
    comfy.draw_nodes_by_vue(request.param)
    yield comfy
    comfy.draw_nodes_by_vue(False)


READABLE = 0.65  # below 0.5 the canvas draws no words


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_workflow_in_the_page(drawn, usual, workflow, request):
    """As the template browser opens it at 1920x1080: words are read, values that differ look different, all nodes are
    known, no overlap, nothing cut, and the prompt is the file."""
    drawn.show(json.loads((PACK / "workflows" / f"{workflow.name}.json").read_text(encoding="utf-8")), workflow.name)
    way = request.node.callspec.params["drawn"]
    drawn.page.screenshot(path=SCREENSHOTS / f"{workflow.name}{'_vue' if way else ''}.png")
    assert (drawn.size["width"], drawn.size["height"]) == (1920, 1080)
    assert drawn.scale() >= READABLE
    boxes = drawn.boxes()
    for index, first in enumerate(boxes):
        for second in boxes[index + 1:]:
            assert (first["right"] <= second["left"] or second["right"] <= first["left"]
                    or first["bottom"] <= second["top"] or second["bottom"] <= first["top"]), (first, second)
    cut = drawn.page.evaluate(CUT_BY_VUE if way else CUT_BY_CANVAS)
    assert cut == []
    words = drawn.page.evaluate(WORDS_BY_VUE if way else WORDS_BY_CANVAS)
    values = drawn.page.evaluate(VALUES)
    assert set(words) & set(values)
    assert [word for word in words if word.endswith("…") and len(begin_with(word[:-1], values)) > 1] == []
    unknown = """window.app.graph.nodes.filter(
        n => !n.isSubgraphNode?.() && !LiteGraph.registered_node_types[n.type]).map(n => n.type)"""
    assert drawn.page.evaluate(unknown) == []
    expected = json.loads((PACK / "workflows" / "api" / f"{workflow.name}.json").read_text(encoding="utf-8"))
    assert drawn.prompt() == expected
    assert kinds(drawn.errors) - usual == set()


# nodes whose widgets need more room than they have, and notes whose end one must scroll to
CUT_BY_CANVAS = """() => [
    ...window.app.graph.nodes.filter(n => !['MarkdownNote', 'LoadVideo'].includes(n.type)).filter(n => {
        const need = n.computeSize(); return n.size[0] < need[0] - 1 || n.size[1] < need[1] - 1; }).map(n => n.type),
    ...[...document.querySelectorAll('.comfy-markdown')].filter(
        e => e.offsetParent && e.scrollHeight > e.clientHeight + 2).map(() => 'note')]"""
CUT_BY_VUE = """() => [...document.querySelectorAll('[data-node-id]')].filter(e => {
    const node = window.app.graph.getNodeById(e.dataset.nodeId);
    return node && e.offsetHeight > node.size[1] + LiteGraph.NODE_TITLE_HEIGHT + 2; }).map(e => e.dataset.nodeId)"""


# what is drawn as words, those that are cut with an ellipsis at the end; without the names of the widgets, which have a
# colour of their own: the page cuts them first
WORDS_BY_CANVAS = """() => {
    const prototype = CanvasRenderingContext2D.prototype, fillText = prototype.fillText, words = [];
    const pen = document.createElement('canvas').getContext('2d');
    pen.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR;
    prototype.fillText = function(text, ...place) {
        // an ellipsis is drawn after what it ends
        if (this.fillStyle !== pen.fillStyle) words.push(text === '…' ? words.pop() + text : String(text));
        return fillText.call(this, text, ...place);
    };
    window.app.canvas.draw(true, true);
    prototype.fillText = fillText;
    return words;
}"""
WORDS_BY_VUE = """() => [...document.querySelectorAll('[data-node-id] *')].filter(
    e => getComputedStyle(e).textOverflow === 'ellipsis' && e.textContent.trim()).map(e => {
        if (e.scrollWidth <= e.clientWidth) return e.textContent.trim();
        const text = document.createTreeWalker(e, NodeFilter.SHOW_TEXT).nextNode(), range = document.createRange();
        const pen = document.createElement('canvas').getContext('2d'), style = getComputedStyle(e);
        pen.font = style.font;
        const box = e.getBoundingClientRect(), scale = box.width / e.offsetWidth;
        const end = box.right - (pen.measureText('…').width + parseFloat(style.paddingRight)) * scale;
        let letters = text.length;
        range.setStart(text, 0);
        do range.setEnd(text, --letters); while (letters && range.getBoundingClientRect().right > end);
        return text.data.slice(0, letters).trimStart() + '…';
    })"""
VALUES = """() => window.app.graph.nodes.flatMap(node => node.widgets ?? []).map(widget => widget.value).filter(
    value => typeof value === 'string' && value)"""


def begin_with(start, values):
    return {value for value in values if value.startswith(start)}


@pytest.fixture
def large(comfy):
    """A screen on which all cards have room: pictures load only on those that are seen."""
    usual_size, comfy.size = comfy.size, {"width": 2800, "height": 2600}
    yield comfy
    comfy.size = usual_size


def test_the_template_browser_has_them(large):
    """Under the name of the pack, whatever its folder is called; each with its picture, and a click opens it."""
    comfy = large
    comfy.open()
    comfy.page.keyboard.press("Escape")
    comfy.page.get_by_role("button", name="Templates").first.click()
    comfy.page.get_by_text("Stand-In", exact=True).first.click()
    for workflow in WORKFLOWS:
        card = comfy.page.get_by_text(workflow.name, exact=False).first
        card.wait_for(timeout=20_000)
    comfy.page.wait_for_function(
        "count => [...document.images].filter(i => i.naturalWidth === 640 && i.naturalHeight === 360).length === count",
        arg=len(WORKFLOWS), timeout=20_000)
    comfy.page.screenshot(path=SCREENSHOTS / "template_browser.png")
    comfy.page.get_by_text("two_people", exact=True).first.click()
    comfy.page.wait_for_function("window.app.graph.nodes.some(n => n.title === 'Identity on the right')",
                                 timeout=30_000)
    comfy.settle()
    assert comfy.prompt() == json.loads((PACK / "workflows" / "api" / "two_people.json").read_text(encoding="utf-8"))


# output of a node -> input of another, as a user draws them
DRAWN = (("UNETLoader", "MODEL", "ApplyIdentityBranch", "model"),
         ("LoadStandIn", "stand_in", "ApplyIdentityBranch", "stand_in"),
         ("VAELoader", "VAE", "ApplyIdentityBranch", "vae"),
         ("LoadImage", "IMAGE", "FacePreprocess", "image"),
         ("FacePreprocess", "image", "ApplyIdentityBranch", "reference_image"),
         ("ApplyIdentityBranch", "MODEL", "StandInSampler", "model"),
         ("CLIPTextEncode", "CONDITIONING", "StandInSampler", "positive"),
         ("CLIPTextEncode", "CONDITIONING", "StandInSampler", "negative"),
         ("EmptyHunyuanLatentVideo", "LATENT", "StandInSampler", "latent_image"),
         ("StandInSampler", "latent", "VAEDecode", "samples"))
SEARCHED = {"LoadStandIn": "load stand-in", "FacePreprocess": "face preprocess",
            "ApplyIdentityBranch": "apply identity", "StandInSampler": "stand-in sampler"}
PLACES = {"LoadStandIn": (325, 488), "FacePreprocess": (552, 488), "ApplyIdentityBranch": (845, 488),
          "StandInSampler": (1137, 488)}


# ComfyUI's own nodes in two rows above, at the scale of a template
ARRANGE = """([ids, scale]) => {
    const view = window.app.canvas;
    view.ds.scale = scale;
    view.ds.offset = [0, 0];
    ids.forEach((id, i) => {
        const node = window.app.graph.getNodeById(id);
        node.pos = [80 + 290 * (i % 9), 110 + 320 * Math.floor(i / 9)];
        node.setSize([270, node.computeSize()[1]]);
    });
    view.setDirty(true, true);
}"""
# where a slot is on the screen
SLOT = """([kind, name, isInput]) => {
    const node = window.app.graph.nodes.find(n => n.type === kind), view = window.app.canvas;
    const slot = (isInput ? node.inputs : node.outputs).findIndex(s => s.name === name);
    const at = node.getConnectionPos(isInput, slot), canvas = view.canvas.getBoundingClientRect();
    return [canvas.left + (at[0] + view.ds.offset[0]) * view.ds.scale,
            canvas.top + (at[1] + view.ds.offset[1]) * view.ds.scale];
}"""
SET = """values => {
    for (const node of window.app.graph.nodes)
        for (const [name, value] of Object.entries(values[node.type] || {}))
            node.widgets.find(w => w.name === name).value = value;
}"""


EMPTY_PLACE = (1495, 715)


def found_by(comfy, words):
    """What the page's search finds: display names."""
    comfy.page.mouse.dblclick(*EMPTY_PLACE)
    comfy.page.locator(SEARCH).last.wait_for()
    comfy.page.keyboard.type(words, delay=20)
    comfy.page.wait_for_timeout(1200)
    text = comfy.page.locator(SEARCH).last.inner_text()
    comfy.page.keyboard.press("Escape")
    comfy.page.wait_for_timeout(400)
    return text


def test_the_blueprint_is_one_node_with_three_links(comfy):
    """Found by the page's search, and it takes a photo, a model and a VAE."""
    comfy.open()
    comfy.page.evaluate("window.app.graph.clear()")
    comfy.drop("identity from a photo", EMPTY_PLACE)
    (node,) = comfy.page.evaluate("""window.app.graph.nodes.filter(n => n.isSubgraphNode?.()).map(n => ({
        slots: n.inputs.filter(i => !i.widget).map(i => i.name), outputs: n.outputs.map(o => o.type),
        inner: n.subgraph.nodes.map(i => i.type).sort()}))""")
    assert node == {"slots": ["image", "model", "vae"], "outputs": ["MODEL"],
                    "inner": ["ApplyIdentityBranch", "FacePreprocess", "LoadStandIn"]}


@pytest.mark.parametrize("workflow", [each for each in WORKFLOWS if each.app], ids=lambda workflow: workflow.name)
def test_the_app_asks_for_what_changes(comfy, workflow):
    """In App mode, the photo and the prompt are there, and one button."""
    comfy.open()
    comfy.show(json.loads((PACK / "workflows" / f"{workflow.name}.json").read_text(encoding="utf-8")), workflow.name)
    comfy.page.keyboard.press("Alt+m")
    comfy.page.wait_for_timeout(2500)
    comfy.page.screenshot(path=SCREENSHOTS / f"{workflow.name}_app.png")
    text = comfy.page.inner_text("body")
    assert "App mode in beta" in text and "Run" in text
    assert all(label in text.splitlines() for _, _, label in workflow.app.inputs)
    (prompt,) = [node.inputs["text"] for node in workflow.nodes if node.key == "positive"]
    assert prompt in comfy.page.evaluate("[...document.querySelectorAll('textarea')].map(each => each.value)")


def test_first_five_minutes(comfy, usual, server, photo):
    """From the nodes of ComfyUI: search for ours, drop them, connect them with the mouse, run, see the video."""
    prompt = on_tiny_models(PACK / "workflows" / "api" / "identity_text_to_video.json", photo, 96, 64, 9, 2)
    theirs = {key: node for key, node in prompt.items() if node["class_type"] not in SEARCHED}
    for node in theirs.values():
        node["inputs"] = {name: value for name, value in node["inputs"].items()
                          if not isinstance(value, list) or value[0] in theirs}
    comfy.open()
    comfy.load(theirs, "first five minutes")
    page = comfy.page
    page.evaluate(ARRANGE, [list(theirs), READABLE])
    page.wait_for_timeout(500)
    assert {"Load Stand-In", "Stand-In Sampler"} <= set(found_by(comfy, "stand-in").splitlines())
    assert {"Apply Identity Branch", "Identity Report"} <= set(found_by(comfy, "identity").splitlines())
    for kind, words in SEARCHED.items():
        comfy.drop(words, PLACES[kind])
    assert set(SEARCHED) <= set(page.evaluate("window.app.graph.nodes.map(node => node.type)"))
    page.screenshot(path=SCREENSHOTS / "first_minutes_1_dropped.png")
    for output_kind, output, input_kind, input_ in DRAWN:
        start, end = page.evaluate(SLOT, [output_kind, output, False]), page.evaluate(SLOT, [input_kind, input_, True])
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=4)
        page.mouse.move(*end, steps=4)
        page.mouse.up()
        page.wait_for_timeout(150)
    page.evaluate(SET, {"LoadStandIn": {"adapter": ADAPTER}, "StandInSampler": {"steps": 2}})
    page.screenshot(path=SCREENSHOTS / "first_minutes_2_connected.png")
    page.get_by_role("button", name="Run").first.click()
    page.wait_for_function("document.querySelector('video') && document.querySelector('video').readyState >= 1",
                           timeout=120_000)
    page.wait_for_timeout(1500)
    page.screenshot(path=SCREENSHOTS / "first_minutes_3_video.png")
    assert kinds(comfy.errors) - usual == set()


def test_face_preprocess_shows_the_crop_again_after_a_reload(comfy, photo):
    """Crop and preview come with the first run, and in a fresh page with a run in which ComfyUI has them already."""
    inputs = next(node["inputs"] for node in json.loads(
        (PACK / "workflows" / "api" / "identity_text_to_video.json").read_text(encoding="utf-8")).values()
        if node["class_type"] == "FacePreprocess")
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": photo}},
              "2": {"class_type": "InvertMask", "inputs": {"mask": ["1", 1]}},
              "3": {"class_type": "FacePreprocess", "inputs": inputs | {
                  "image": ["1", 0], "subject_mask": ["2", 0], "download_missing": False}}}
    for name in ("face_preprocess", "face_preprocess_reloaded"):
        comfy.open()
        comfy.draw_nodes_by_vue(False)  # the canvas says what a node shows
        comfy.load(prompt, name)
        comfy.page.evaluate(SIDE_BY_SIDE)
        comfy.page.get_by_role("button", name="Run").first.click()
        comfy.page.wait_for_function(CROP_AND_PREVIEW, timeout=120_000)
        comfy.page.wait_for_timeout(1500)
        comfy.page.screenshot(path=SCREENSHOTS / f"{name}.png", clip={"x": 60, "y": 70, "width": 920, "height": 990})


SIDE_BY_SIDE = """() => {
    const node = type => window.app.graph.nodes.find(n => n.type === type);
    const [image, mask, face] = [node('LoadImage'), node('InvertMask'), node('FacePreprocess')];
    [image.pos, image.size, mask.pos, face.pos, face.size] = [[0, 0], [300, 360], [60, 440], [360, 0], [520, 930]];
    window.app.canvas.ds.scale = 1;
    window.app.canvas.ds.offset = [80, 120];
    window.app.canvas.setDirty(true, true);
}"""
CROP_AND_PREVIEW = "window.app.graph.nodes.find(n => n.type === 'FacePreprocess').imgs?.length === 2"
