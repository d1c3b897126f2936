"""Write the bundled workflows from their graphs, laid out by ComfyUI's own page, with their thumbnails and the README's
picture of the first.

    .standin/venv/bin/python scripts/build_workflows.py [name ...]     # after scripts/test.py has set everything up

Needs Chromium.
"""
from __future__ import annotations

import io
import json
import math
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import PIL.Image
import skimage.data

from support import moving_photo
from support.browser import ComfyPage, comfy_page
from support.comfyui_server import link_node_pack, running_server
from support.environment import COMFYUI, PACK, import_comfyui
from support.page_layout import PADDING, Layout, Size, arrange, by_depth
from support.workflow_graphs import BLUEPRINTS, IDENTITY, PACKS, SOURCES, WORKFLOWS, Workflow

import_comfyui("--cpu")

from small_world.thumbnails import thumbnail

CATEGORY = "Stand-In"  # of the blueprints, as of the pack's nodes
WIDTH = 290  # of a column of nodes
WIDEST_VIDEO = 390  # of Load Video, whose picture grows with it: at 300 high, with a video of 416x240
PICTURES_ROOM = 200  # which a node gets for what it shows after a run
FIRST_WIDTHS = (350, 400, 450, 500)  # of the first, with the longest names and the note: the wider, the lower
PICTURES = "$$canvas-image-preview"  # the page's name for what a node shows

# titles, files, where the nodes of a subgraph stand inside it, these as subgraphs, and the note; returns the id of each
# inner node -> the id of its subgraph's node
DRESS = """([titles, models, subgraphs, note]) => {
    const graph = window.app.graph, became = {};
    for (const node of graph.nodes) {
        if (titles[node.id]) node.title = titles[node.id];
        if (models[node.id].length) node.properties.models = models[node.id];
    }
    for (const {title, description, columns, widgets, inputs, outputs} of subgraphs) {
        let left = 0;
        for (const column of columns) {
            const nodes = column.map(id => graph.getNodeById(id));
            const width = Math.max(...nodes.map(node => node.computeSize()[0]));
            let top = 0;
            for (const node of nodes) {
                node.pos = [left, top];
                node.setSize([width, node.computeSize()[1]]);
                top += node.size[1] + 60;
            }
            left += width + 60;
        }
        const ids = columns.flat();
        const {subgraph, node} = graph.convertToSubgraph(new Set(ids.map(id => graph.getNodeById(id))));
        subgraph.name = node.title = title;
        subgraph.description = description;
        for (const [id, name, label] of widgets) {
            const inner = subgraph.getNodeById(id), slot = inner.inputs.find(each => each.widget?.name === name);
            subgraph.addInput(label, String(slot.type)).connect(slot, inner);
        }
        inputs.forEach((name, index) => subgraph.renameInput(subgraph.inputs[index], name));
        outputs.forEach((name, index) => subgraph.renameOutput(subgraph.outputs[index], name));
        ids.forEach(id => { became[id] = node.id; });
    }
    if (note) {
        const words = LiteGraph.createNode('MarkdownNote');
        words.title = 'How to use';
        words.color = '#222';
        words.bgcolor = '#000';
        graph.add(words);
        words.widgets[0].value = note;
    }
    return became;
}"""
# what a node needs in the canvas's rendering, which unfolds everything, and in Vue's; and how much of its longest value
# is cut
MEASURE = """() => window.app.graph.nodes.map(node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    const texts = [...element?.querySelectorAll('*') ?? []].filter(
        each => getComputedStyle(each).textOverflow === 'ellipsis');
    return {id: String(node.id), type: node.type, canvas: node.computeSize()[1],
            vue: element ? element.offsetHeight - LiteGraph.NODE_TITLE_HEIGHT : 0,
            cut: Math.max(0, ...texts.map(each => each.scrollWidth - each.clientWidth))};
})"""
PLACE = """([nodes, groups, note]) => {
    const graph = window.app.graph;
    for (const [id, box] of Object.entries(nodes)) {
        const node = graph.getNodeById(id);
        node.pos = [box.left, box.top];
        node.setSize([box.width, box.height]);
    }
    for (const [title, box] of groups) {
        const group = new LiteGraph.LGraphGroup(title);
        group.pos = [box.left, box.top];
        group.size = [box.width, box.height];
        graph.add(group);
    }
    const words = graph.nodes.find(node => node.type === 'MarkdownNote');
    words.pos = [note.left, note.top];
    words.setSize([note.width, note.height]);
}"""


def build(comfy: ComfyPage, workflow: Workflow) -> None:
    """Write the graph, the prompt and the thumbnail of a workflow."""
    layout = lay_out(comfy, workflow)
    graph = comfy.graph(workflow.name)
    for node in graph["nodes"]:  # the page has unfolded them by now
        box = layout.nodes.get(str(node["id"]), layout.note)
        node["size"] = [box.width, box.height]
        for begins, pack in PACKS.items():
            if node["type"].startswith(begins):
                node["properties"]["cnr_id"] = pack  # by which the page offers to install what is missing
    if workflow.app:
        show_as_app(graph, workflow)
    show_pictures(graph, workflow)
    folder = PACK / "workflows"
    comfy.show(graph, workflow.name)
    write(folder / f"{workflow.name}.json", graph)
    write(folder / "api" / f"{workflow.name}.json", comfy.prompt())
    if workflow is IDENTITY:
        PIL.Image.open(io.BytesIO(comfy.page.screenshot())).save(PACK / "docs" / "images" / "workflow.png",
                                                                 optimize=True)
    thumbnail(workflow).save(folder / f"{workflow.name}.jpg", quality=82)


def show_as_app(graph: dict, workflow: Workflow) -> None:
    nodes = {str(node["id"]): node for node in graph["nodes"]}
    graph["extra"]["linearData"] = {
        "inputs": [[int(workflow.numbers[key]), name] for key, name, _ in workflow.app.inputs],
        "outputs": [int(workflow.numbers[key]) for key in workflow.app.outputs]}
    for key, name, label in workflow.app.inputs:
        (slot,) = [each for each in nodes[workflow.numbers[key]]["inputs"] if each["name"] == name]
        slot["label"] = label


def show_pictures(graph: dict, workflow: Workflow) -> None:
    """Have each subgraph's node show the pictures of the node inside that has them."""
    nodes = {node["type"]: node for node in graph["nodes"]}
    named = {each["name"]: each["id"] for each in graph["definitions"]["subgraphs"]}
    for each in workflow.subgraphs:
        if each.shows:
            nodes[named[each.title]]["properties"]["previewExposures"] = [{
                "name": PICTURES, "sourceNodeId": workflow.numbers[each.shows], "sourcePreviewName": PICTURES}]


def build_blueprint(comfy: ComfyPage, workflow: Workflow) -> None:
    """Write the one subgraph of a workflow as the page keeps a blueprint."""
    (number,) = set(dress(comfy, workflow).values())
    graph = comfy.graph(workflow.name)
    show_pictures(graph, workflow)
    (subgraph,) = graph["definitions"]["subgraphs"]
    subgraph["category"] = CATEGORY
    (node,) = [each for each in graph["nodes"] if str(each["id"]) == str(number)]
    node["inputs"] = [each | {"link": None} for each in node["inputs"]]
    node["outputs"] = [each | {"links": []} for each in node["outputs"]]
    node |= {"pos": [0, 0], "size": [WIDTH, node["size"][1]]}
    blueprint = {"revision": 0, "last_node_id": node["id"], "last_link_id": 0, "nodes": [node], "links": [],
                 "version": graph["version"], "definitions": graph["definitions"], "extra": {}}
    write(PACK / "subgraphs" / f"{workflow.name}.json", blueprint)


def dress(comfy: ComfyPage, workflow: Workflow) -> dict[str, int]:
    """The prompt as a graph with its subgraphs; returns the id of each inner node -> the id of its subgraph's node."""
    comfy.open()  # in a page that has shown another graph, subgraphs take widget values of that one
    comfy.load(workflow.prompt, workflow.name)
    ids, nodes = workflow.numbers, workflow.nodes
    subgraphs = [{"title": each.title, "description": each.description,
                  "columns": by_depth([ids[key] for key in each.keys], workflow.links),
                  "widgets": [(ids[key], name, label) for key, name, label in each.widgets],
                  "inputs": each.inputs, "outputs": each.outputs}
                 for each in workflow.subgraphs]
    became = comfy.page.evaluate(DRESS, [{ids[node.key]: node.title for node in nodes},
                                         {ids[node.key]: workflow.models(node) for node in nodes}, subgraphs,
                                         workflow.note and workflow.words])
    comfy.settle()
    return became


def lay_out(comfy: ComfyPage, workflow: Workflow) -> Layout:
    """Bring every node into its place, as measured in both of the page's renderings."""
    became = {inner: str(outer) for inner, outer in dress(comfy, workflow).items()}
    numbers = workflow.numbers
    groups = [list(dict.fromkeys(became.get(numbers[node.key], numbers[node.key]) for node in nodes))
              for _, nodes in workflow.groups]
    links = {(became.get(source, source), became.get(target, target)) for source, target in workflow.links}
    links = {link for link in links if link[0] != link[1]}  # without those inside a subgraph
    shown = {became.get(numbers[node.key], numbers[node.key]): node.height for node in workflow.nodes}
    comfy.draw_nodes_by_vue(True)
    comfy.page.evaluate("width => window.app.graph.nodes.forEach(node => node.setSize([width, 10]))", WIDTH)
    comfy.settle()
    measured = {each["id"]: each for each in comfy.page.evaluate(MEASURE)}
    (note,) = [key for key, each in measured.items() if each["type"] == "MarkdownNote"]
    showing = {became[numbers[each.shows]] for each in workflow.subgraphs if each.shows}
    layouts = []
    for first in FIRST_WIDTHS:
        sizes = {}
        for each, more in shown.items():
            needs = measured[each]["canvas"], measured[each]["vue"]
            room = (more or max(needs)) + (PICTURES_ROOM if each in showing else 0)
            width = first if each in groups[0] else WIDTH
            widest = WIDEST_VIDEO if measured[each]["type"] == "LoadVideo" else math.inf
            sizes[each] = Size(width, more or min(needs), room, width + measured[each]["cut"], widest)
        comfy.page.evaluate("([id, width]) => window.app.graph.getNodeById(id).setSize([width, 10])",
                            [note, first + 2 * PADDING])
        comfy.settle()
        (height,) = [each["vue"] for each in comfy.page.evaluate(MEASURE) if each["id"] == note]
        layouts.append(arrange(groups, sizes, links, Size(first, height, height)))
        if layouts[-1].fit == 1:
            break
    layout = max(layouts, key=lambda each: each.fit)
    comfy.draw_nodes_by_vue(False)
    comfy.page.evaluate(PLACE, [
        {key: asdict(box) for key, box in layout.nodes.items()},
        [(title, asdict(box)) for (title, _), box in zip(workflow.groups, layout.groups)], asdict(layout.note)])
    comfy.settle()
    return layout


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def empty_models(base: Path) -> None:
    """Files of the right names, so that the page offers them, a photo and videos to be seen, a folder of those."""
    for name, source in SOURCES.items():
        path = base / "models" / source.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (base / "input" / "people").mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(skimage.data.astronaut()).save(base / "input" / "photo.png")
    for name in ("video.mp4", "control.mp4"):
        moving_photo.write_video(base / "input" / name, moving_photo.video(9, 416, 240))


def main() -> None:
    chosen = sys.argv[1:] or [workflow.name for workflow in (*WORKFLOWS, *BLUEPRINTS)]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        empty_models(base)
        link_node_pack(base, "animatediff_nodes", PACK / "scripts" / "support" / "animatediff_nodes")
        comfyui = Path(os.environ.get("COMFYUI_PATH", COMFYUI))
        with (running_server(comfyui, base, base / "log.txt") as server,
              comfy_page(server.url) as comfy):
            for workflow in WORKFLOWS:
                if workflow.name in chosen:
                    build(comfy, workflow)
                    sys.stdout.write(f"{workflow.name}\n")
            for workflow in BLUEPRINTS:
                if workflow.name in chosen:
                    build_blueprint(comfy, workflow)


if __name__ == "__main__":
    main()
