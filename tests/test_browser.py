"""ComfyUI's own page in a real browser: every bundled workflow, and a user's first five minutes."""
import itertools
import json
import re

import pytest

from small_world.tiny_models import ADAPTER, CLIP_VISION
from small_world.tiny_workflow import on_tiny_models
from standin_core.stand_in.presets import PRESETS
from support import moving_photo
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
    assert overlaps(drawn.boxes()) == []
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


def overlaps(boxes):
    return [(first["title"], second["title"]) for first, second in itertools.combinations(boxes, 2)
            if first["left"] < second["right"] and second["left"] < first["right"]
            and first["top"] < second["bottom"] and second["top"] < first["bottom"]]


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
def upright(comfy, server):
    """The page where the templates' videos are upright ones."""
    files = [server.base / "input" / name for name in ("video.mp4", "control.mp4")]
    before = [file.read_bytes() for file in files]
    for file in files:
        moving_photo.write_video(file, moving_photo.video(9, 480, 832))
    comfy.open()  # which has no video in its cache
    yield comfy
    for file, content in zip(files, before):
        file.write_bytes(content)


@pytest.mark.parametrize("workflow", [each for each in WORKFLOWS if "LoadVideo" in {node.kind for node in each.nodes}],
                         ids=lambda workflow: workflow.name)
def test_an_upright_video_covers_no_node(upright, workflow):
    """On the canvas its node grows to the height that it has at this width."""
    upright.draw_nodes_by_vue(False)
    upright.show(json.loads((PACK / "workflows" / f"{workflow.name}.json").read_text(encoding="utf-8")), workflow.name)
    upright.page.wait_for_function(GROWN, timeout=20_000)
    upright.page.screenshot(path=SCREENSHOTS / f"{workflow.name}_upright.png")
    assert overlaps(upright.boxes()) == []


GROWN = "window.app.graph.nodes.filter(n => n.type === 'LoadVideo').every(n => n.size[1] > 1.5 * n.size[0])"


@pytest.fixture
def large(comfy):
    """A screen on which all cards have room: pictures load only on those that are seen."""
    usual_size, comfy.size = comfy.size, {"width": 2800, "height": 2600}
    yield comfy
    comfy.size = usual_size


def test_the_template_browser_has_them(large):
    """Under the name of the pack, whatever its folder is called, the one to begin with first; each with its picture,
    and a click opens it."""
    comfy = large
    comfy.open()
    comfy.page.keyboard.press("Escape")
    comfy.page.get_by_role("button", name="Templates").first.click()
    comfy.page.get_by_text("Stand-In", exact=True).first.click()
    for workflow in WORKFLOWS:
        card = comfy.page.get_by_text(workflow.name, exact=False).first
        card.wait_for(timeout=20_000)
    names = [workflow.name for workflow in WORKFLOWS]
    assert [title for title in comfy.page.locator("[role=dialog] h3").all_inner_texts() if title in names] == names
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


@pytest.mark.parametrize(("words", "slots", "sources"), [
    ("identity from a photo", ["image", "model", "vae"],
     {"stand_in": "LoadStandIn", "reference_image": "FacePreprocess"}),
    ("identity of a kept person", ["model", "vae"], {"stand_in": "LoadStandIn", "person": "LoadPerson"})])
def test_a_blueprint_is_one_node(comfy, words, slots, sources):
    """Found by the page's search; it takes these, and what is inside is linked."""
    comfy.open()
    comfy.page.evaluate("window.app.graph.clear()")
    comfy.drop(words, EMPTY_PLACE)
    (node,) = comfy.page.evaluate("""window.app.graph.nodes.filter(n => n.isSubgraphNode?.()).map(n => ({
        slots: n.inputs.filter(i => !i.widget).map(i => i.name), outputs: n.outputs.map(o => o.type)}))""")
    assert node == {"slots": slots, "outputs": ["MODEL"]}
    inner = comfy.prompt()
    (identity,) = [each for each in inner.values() if each["class_type"] == "ApplyIdentityBranch"]
    assert {name: inner[value[0]]["class_type"] for name, value in identity["inputs"].items()
            if isinstance(value, list)} == sources
    assert len(inner) == 3


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


# what a node says, in a piece
SAID = {"FacePreprocess": "cropped 1.5x", "StandInSampler": "identity read in", "IdentityReport": "similarity",
        "IdentityAttentionMap": "%"}


@pytest.fixture(scope="module")
def saying(photo):
    """A prompt with every node of SAID."""
    prompt = on_tiny_models(PACK / "workflows" / "api" / "identity_text_to_video.json", photo, 96, 64, 9, 2)
    # what is in its subgraphs stands beside the others here: an id with a colon would be looked for inside one
    prompt = json.loads(re.sub(r'"(\d+):(\d+)"', r'"\1\2"', json.dumps(prompt)))
    key = {node["class_type"]: key for key, node in prompt.items()}
    prompt[key["StandInSampler"]]["inputs"]["attention_map"] = True
    frames, reference = [key["VAEDecode"], 0], [key["LoadImage"], 0]
    return prompt | {
        "101": {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": CLIP_VISION}},
        "102": {"class_type": "IdentityReport", "inputs": {
            "images": frames, "reference_image": reference, "clip_vision": ["101", 0], "embedder": "clip vision",
            "region": "whole frame", "min_score": 0.5}},
        "103": {"class_type": "IdentityAttentionMap", "inputs": {
            "images": frames, "attention_map": [key["StandInSampler"], 2], "person": 0, "first_block": 0,
            "last_block": -1, "opacity": 0.6, "trim_latent": 0}},
        "104": {"class_type": "PreviewImage", "inputs": {"images": ["103", 0]}}}


def test_words_come_back(drawn, usual, saying, request):
    """Verdict and reports stand on their nodes after a run, in a tab that is opened again, and in the reloaded page
    after a run in which ComfyUI has the results already.
    """
    way = request.node.callspec.params["drawn"]
    drawn.load(saying, "words")
    drawn.page.evaluate(IN_A_ROW, list(SAID))
    said = run_and_read(drawn)
    assert all(piece in said[kind] for kind, piece in SAID.items())
    drawn.load({"1": {"class_type": "VAELoader", "inputs": {}}}, "another")
    drawn.page.get_by_text("words", exact=True).first.click()
    assert read(drawn) == said
    drawn.page.wait_for_timeout(3000)  # the page keeps the workflow a little later
    drawn.reload()
    drawn.page.evaluate(IN_A_ROW, list(SAID))
    assert run_and_read(drawn) == said
    drawn.page.screenshot(path=SCREENSHOTS / f"words_reloaded{'_vue' if way else ''}.png")
    assert kinds(drawn.errors) - usual == set()


def test_words_come_back_inside_a_subgraph(comfy, photo):
    """In a tab that is opened again, on a node that stands inside a subgraph, as in the templates."""
    comfy.open()
    comfy.draw_nodes_by_vue(False)
    comfy.load({"1": {"class_type": "LoadImage", "inputs": {"image": photo}},
                "2": {"class_type": "FacePreprocess", "inputs": {"image": ["1", 0]}}}, "inside")
    comfy.page.evaluate(INTO_A_SUBGRAPH)
    comfy.page.get_by_role("button", name="Run").first.click()
    comfy.page.wait_for_function(SAID_INSIDE, timeout=120_000)
    said = comfy.page.evaluate(SAID_INSIDE)
    assert SAID["FacePreprocess"] in said
    comfy.load({"1": {"class_type": "VAELoader", "inputs": {}}}, "another")
    comfy.page.get_by_text("inside", exact=True).first.click()
    comfy.page.wait_for_function(SAID_INSIDE, timeout=20_000)
    assert comfy.page.evaluate(SAID_INSIDE) == said


INTO_A_SUBGRAPH = """() => {
    const graph = window.app.graph;
    graph.convertToSubgraph(new Set(graph.nodes.filter(node => node.type === 'FacePreprocess')));
}"""
SAID_INSIDE = """() => [...window.app.rootGraph.subgraphs.values()].flatMap(graph => graph.nodes).find(
    node => node.type === 'FacePreprocess')?.widgets.find(w => w.name === 'text')?.value"""


def run_and_read(comfy):
    comfy.page.get_by_role("button", name="Run").first.click()
    return read(comfy)


def read(comfy):
    """Class of a node -> the words that are seen on it, once all of SAID say something."""
    comfy.page.wait_for_function(f"Object.keys(({READ})()).length === {len(SAID)}", timeout=120_000)
    comfy.page.wait_for_timeout(1500)  # pictures come, and nodes grow
    return comfy.page.evaluate(READ)


# those that say something at the top, the others below; a run does not draw another seed
IN_A_ROW = """kinds => {
    const {nodes} = window.app.graph, view = window.app.canvas;
    const speakers = kinds.map(kind => nodes.find(n => n.type === kind));
    speakers.forEach((node, i) => { node.pos = [40 + 460 * i, 110]; node.setSize([440, node.computeSize()[1]]); });
    nodes.filter(n => !speakers.includes(n)).forEach((node, i) => { node.pos = [300 * i, 1800]; });
    nodes.flatMap(n => n.widgets ?? []).filter(w => w.name === 'control_after_generate').forEach(
        w => { w.value = 'fixed'; });
    view.ds.scale = 1;
    view.ds.offset = [40, 20];
    view.setDirty(true, true);
}"""
# the boxes that are seen; Vue draws its own with the same words
READ = """() => Object.fromEntries(window.app.graph.nodes.flatMap(node => {
    const box = LiteGraph.vueNodesMode ? document.querySelector(`[data-node-id="${node.id}"] textarea[readonly]`)
        : node.widgets?.find(w => w.name === 'text')?.element;
    return box?.readOnly && box.checkVisibility() ? [[node.type, box.value]] : []; }))"""


def test_a_preset_and_what_it_sets_go_together(comfy):
    """What the node shows is what runs, whichever of the two a user turns."""
    comfy.open()
    comfy.load({"1": {"class_type": "ApplyIdentityBranch", "inputs": {"guidance": "own scale"}}}, "presets")

    def shown_after(name, value):
        comfy.page.evaluate(TURN, [name, value])
        (node,) = comfy.prompt().values()
        return node["inputs"]["preset"], node["inputs"]["guidance"]

    for name in ("paper", "closer likeness"):
        guidance = PRESETS[name]["guidance"]
        assert shown_after("preset", name) == (name, guidance)
        assert shown_after("preset", "custom") == ("custom", guidance)
        assert shown_after("guidance", guidance) == (name, guidance)
        assert shown_after("guidance", "own scale") == ("custom", "own scale")


# as the page does with what is picked from a list
TURN = """([name, value]) => {
    const widget = window.app.graph.nodes[0].widgets.find(each => each.name === name);
    widget.value = value;
    widget.callback(value);
}"""


@pytest.fixture
def in_chinese(drawn):
    """The page with a node of many choices, as a Chinese user has it."""
    language = "language => window.app.extensionManager.setting.set('Comfy.Locale', language)"
    drawn.page.evaluate(language, "zh")
    drawn.open()
    drawn.load({"1": {"class_type": "FacePreprocess", "inputs": {"preset": "face only", "which_face": "from left"}}},
               "choices")
    yield drawn
    drawn.page.evaluate(language, "en")
    drawn.open()


def test_choices_are_chinese_and_workflows_english(in_chinese, request):
    """The node, and the list that it opens; what is picked there stands in the prompt as everywhere."""
    page, way = in_chinese.page, request.node.callspec.params["drawn"]
    place = page.evaluate(COMBO_IN_SIGHT, "which_face")
    shown = (page.locator("[data-testid=widget-select-default-trigger]").all_inner_texts() if way
             else page.evaluate("window.app.graph.nodes[0].widgets.map(w => w._displayValue)"))
    assert {"仅脸部", "按序号", "报错"} <= set(shown)
    page.mouse.click(*place)
    entries = page.locator("[role=option]" if way else ".litemenu-entry")
    entries.first.wait_for()
    page.screenshot(path=SCREENSHOTS / f"choices_in_chinese{'_vue' if way else ''}.png")
    assert [text.strip() for text in entries.all_inner_texts()] == ["最大", "按序号", "全部"]
    entries.nth(2).click()
    (node,) = in_chinese.prompt().values()
    assert (node["inputs"]["which_face"], node["inputs"]["preset"]) == ("all", "face only")


# the middle of a node's only combo of this name on the screen, where screen and graph have one scale
COMBO_IN_SIGHT = """async name => {
    const [node] = window.app.graph.nodes, view = window.app.canvas;
    node.pos = [500, 150];
    node.setSize([420, node.computeSize()[1]]);
    view.ds.scale = 1;
    view.ds.offset = [0, 0];
    view.setDirty(true, true);
    await new Promise(done => setTimeout(done, 1500));
    if (LiteGraph.vueNodesMode) {
        const label = node.widgets.find(w => w.name === name).label;
        const box = document.querySelector(`button[role=combobox][aria-label="${label}"]`).getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    }
    const canvas = view.canvas.getBoundingClientRect(), widget = node.widgets.find(w => w.name === name);
    return [canvas.left + node.pos[0] + node.size[0] / 2, canvas.top + node.pos[1] + widget.y + 10];
}"""
