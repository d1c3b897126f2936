"""The shortest ways to a first video in ComfyUI's own page, and what the README says that they take."""
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from comfyui_workflow_templates_core import get_asset_path

from small_world.tiny_workflow import on_tiny_models
from support.browser import CHROMIUM
from support.comfyui_server import node_id
from support.environment import PACK
from support.workflow_graphs import IDENTITY

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
WIDTH, HEIGHT, LENGTH = 96, 64, 9
README = (PACK / "README.md").read_text(encoding="utf-8")
IN_THE_FILE_DIALOG = 2  # the file, Open
MOST_CLICKS = 8
EMPTY_PLACE = (1495, 715)


def test_the_template_takes_few_clicks(comfy, tmp_path):
    """With the models in place, from the empty page to the queue: the photo that was chosen and the words that were
    typed are in the prompt that the server takes."""
    photo = tmp_path / "somebody.png"
    PIL.Image.new("RGB", (64, 64), "white").save(photo)
    clicks = 0

    def click(what):
        nonlocal clicks
        clicks += 1
        what.first.click()

    comfy.open()
    comfy.draw_nodes_by_vue(True)
    page = comfy.page
    click(page.get_by_role("button", name="Templates"))
    click(page.get_by_text("Stand-In", exact=True))
    click(page.get_by_text(IDENTITY.name, exact=True))
    page.wait_for_function("window.app.graph.nodes.some(node => node.title === 'Identity from a photo')")
    comfy.settle()
    page.evaluate(WITHOUT_DOWNLOADS)
    with page.expect_file_chooser() as chooser:
        click(page.locator(node(IDENTITY, "photo")).locator('[class*="folder-search"]'))
    chooser.value.set_files(photo)
    clicks += IN_THE_FILE_DIALOG
    click(page.locator(node(IDENTITY, "positive")).locator("textarea"))
    page.keyboard.press("Control+a")
    page.keyboard.type("A man waves.")
    with page.expect_response(lambda response: response.url.endswith("/prompt")) as answer:
        click(page.get_by_role("button", name="Run"))
    assert answer.value.ok
    prompt = json.loads(answer.value.request.post_data)["prompt"]
    assert prompt[IDENTITY.numbers["photo"]]["inputs"]["image"] == photo.name
    assert prompt[IDENTITY.numbers["positive"]]["inputs"]["text"] == "A man waves."
    assert clicks <= MOST_CLICKS
    graph = json.loads((PACK / "workflows" / f"{IDENTITY.name}.json").read_text(encoding="utf-8"))
    inner = [each for subgraph in graph["definitions"]["subgraphs"] for each in (subgraph["nodes"], subgraph["links"])]
    assert counts(f"The template *{IDENTITY.name}*") == [
        f"{len(graph['nodes'])}, and {sum(map(len, inner[::2]))} inside",
        f"{len(graph['links'])}, and {sum(map(len, inner[1::2]))} inside", str(clicks)]


def node(workflow, key):
    return f'[data-node-id="{workflow.numbers[key]}"]'


def counts(way):
    """The cells beside it in the README's table."""
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {way} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


WITHOUT_DOWNLOADS = """() => window.app.graph.nodes.forEach(node => (node.widgets ?? []).filter(
    widget => widget.name === 'download face models').forEach(widget => { widget.value = false; }))"""


@pytest.mark.parametrize(("template", "way"), [
    ("text_to_video_wan", "ComfyUI's own template for Wan 2.1, *text_to_video_wan*"),
    ("video_wan2_2_14B_t2v", "ComfyUI's own template for Wan 2.2, *video_wan2_2_14B_t2v*"),
])
def test_a_template_of_comfyui_takes_the_identity(comfy, server, photo, tmp_path, template, way):
    """A photo, and the blueprint between each expert and what samples with it. On the server, every expert reads the
    identity, and strength 0 is the template without it."""
    comfy.open()
    comfy.draw_nodes_by_vue(False)
    comfy.show(json.loads(Path(get_asset_path(template, f"{template}.json")).read_text(encoding="utf-8")), template)
    before = comfy.page.evaluate(ENTER)
    comfy.page.wait_for_timeout(1500)
    for words in ("load image", *["identity from a photo"] * before["experts"]):
        comfy.page.evaluate(ELSEWHERE)
        comfy.page.wait_for_timeout(500)
        comfy.drop(words, EMPTY_PLACE)
    after = comfy.page.evaluate(CONNECT)
    assert counts(way) == [f"{after['nodes'] - before['nodes']} to add", f"{after['links'] - before['links']} more", ""]
    assert after["nodes"] - before["nodes"] == 1 + before["experts"]
    assert after["links"] - before["links"] == 3 * before["experts"]

    path = tmp_path / "prompt.json"
    path.write_text(json.dumps(comfy.prompt()), encoding="utf-8")
    prompt = small(on_tiny_models(path, photo, WIDTH, HEIGHT, LENGTH, 2))
    identities = [key for key, each in prompt.items() if each["class_type"] == "ApplyIdentityBranch"]
    assert len(identities) == before["experts"] == (2 if "2_2" in template else 1)

    def frames(*strengths):
        for key, strength in zip(identities, strengths):
            prompt[key]["inputs"]["strength"] = strength
        return run(server, prompt)

    nothing = frames(*[0.0] * len(identities))
    assert np.array_equal(nothing, run(server, without_identity(prompt)))
    for expert in range(len(identities)):
        strengths = [float(index == expert) for index in range(len(identities))]
        assert not np.array_equal(frames(*strengths), nothing)


# the graph with the models: that of the page, or the one inside its subgraph; nodes and links of it, and the experts
ENTER = """() => {
    const outer = window.app.graph.nodes.find(node => node.isSubgraphNode?.());
    if (outer) window.app.canvas.openSubgraph(outer.subgraph, outer);
    const graph = window.app.canvas.graph;
    return {nodes: graph.nodes.length, links: graph.links.size,
            experts: graph.nodes.filter(node => node.type === 'ModelSamplingSD3').length};
}"""
# what is there out of sight, so that the next node finds its place empty
ELSEWHERE = "() => { window.app.canvas.ds.offset[1] -= 3000; window.app.canvas.setDirty(true, true); }"
CONNECT = """() => {
    const graph = window.app.canvas.graph, of = type => graph.nodes.filter(node => node.type === type);
    const [photo] = of('LoadImage'), [vae] = of('VAELoader');
    const identities = graph.nodes.filter(node => node.isSubgraphNode?.());
    of('ModelSamplingSD3').forEach((sampling, index) => {
        const identity = identities[index], link = graph.links.get(sampling.inputs[0].link);
        graph.getNodeById(link.origin_id).connect(link.origin_slot, identity, identity.findInputSlot('model'));
        photo.connect(0, identity, identity.findInputSlot('image'));
        vae.connect(0, identity, identity.findInputSlot('vae'));
        identity.connect(0, sampling, 0);
    });
    return {nodes: graph.nodes.length, links: graph.links.size};
}"""


def small(prompt):
    """A few steps of a small video, and its frames beside it, without the loss of a video."""
    for each in prompt.values():
        if each["class_type"] == "EmptyHunyuanLatentVideo":
            each["inputs"] |= {"width": WIDTH, "height": HEIGHT, "length": LENGTH}
        elif each["class_type"] == "PrimitiveBoolean":
            each["inputs"]["value"] = True  # 4 steps
    return prompt | {"seen": {"class_type": "SaveImage", "inputs": {
        "images": [node_id(prompt, "VAEDecode"), 0], "filename_prefix": "first_video"}}}


def without_identity(prompt):
    around = {key: each["inputs"]["model"] for key, each in prompt.items()
              if each["class_type"] == "ApplyIdentityBranch"}
    return {key: each | {"inputs": {name: around.get(value[0], value) if isinstance(value, list) else value
                                    for name, value in each["inputs"].items()}}
            for key, each in prompt.items() if key not in around}


def run(server, prompt):
    with ThreadPoolExecutor(1) as thread:  # playwright has the event loop of this one
        result = thread.submit(server.run, prompt).result()
    return np.stack([np.asarray(PIL.Image.open(server.path_of(item))) for item in result.outputs["seen"]["images"]])
