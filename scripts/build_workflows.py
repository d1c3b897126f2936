"""Write the bundled workflows from their graphs, laid out by ComfyUI's own page, with their thumbnails and the README's
picture of the first.

    .standin/venv/bin/python scripts/build_workflows.py [name ...]     # after scripts/test.py has set everything up

Needs Chromium.
"""
from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import skimage.data

from support import moving_photo
from support.browser import ComfyPage, comfy_page
from support.comfyui_server import link_node_pack, running_server
from support.environment import COMFYUI, PACK
from support.workflow_graphs import IDENTITY, PACKS, SOURCES, SUBJECT, WORKFLOWS, Workflow

TITLE, GAP, COLUMN_GAP, NOTE_WIDTH = 40, 50, 60, 620
THUMBNAIL, NIGHT, PALE = (640, 360), (22, 32, 48), (224, 232, 240)

# nodes from top to bottom in columns, each group around its column, the note to their left
LAYOUT = """([columns, models, titles, heights, note, sizes]) => {
  const graph = window.app.graph, [title, gap, columnGap, noteWidth, noteHeight] = sizes;
  let left = 0;
  for (const [name, ids] of columns) {
    const nodes = ids.map(id => graph.getNodeById(id));
    const width = Math.max(340, ...nodes.map(n => n.computeSize()[0]));
    let top = 0;
    for (const node of nodes) {
      node.pos = [left, top];
      node.setSize([width, Math.max(node.computeSize()[1], heights[node.id] || 0)]);
      if (models[node.id].length) node.properties.models = models[node.id];
      if (titles[node.id]) node.title = titles[node.id];
      top += node.size[1] + title + gap;
    }
    const group = new LiteGraph.LGraphGroup(name);
    group.pos = [left - 20, -2 * title];
    group.size = [width + 40, top + title];
    graph.add(group);
    left += width + 40 + columnGap;
  }
  const words = LiteGraph.createNode('MarkdownNote');
  words.title = 'How to use';
  words.pos = [-noteWidth - 80, 0];
  words.setSize([noteWidth, noteHeight]);
  graph.add(words);
  words.widgets[0].value = note;
}"""


def build(comfy: ComfyPage, workflow: Workflow) -> None:
    """Write the graph, the prompt and the thumbnail of a workflow."""
    comfy.open()
    comfy.load(workflow.prompt, workflow.name)
    ids, nodes = workflow.numbers, workflow.nodes
    columns = [[title, [ids[node.key] for node in column]] for title, column in workflow.columns]
    arguments = [columns, {ids[node.key]: workflow.models(node) for node in nodes},
                 {ids[node.key]: node.title for node in nodes}, {ids[node.key]: node.height for node in nodes},
                 workflow.words, [TITLE, GAP, COLUMN_GAP, NOTE_WIDTH, note_height(workflow.words)]]
    comfy.page.evaluate(LAYOUT, arguments)
    comfy.settle()
    comfy.fit()
    graph = comfy.page.evaluate("window.app.graph.serialize()")
    for node in graph["nodes"]:
        for begins, pack in PACKS.items():
            if node["type"].startswith(begins):
                node["properties"]["cnr_id"] = pack  # by which the page offers to install what is missing
    graph["extra"]["ds"] = {"scale": 0.6, "offset": [NOTE_WIDTH + 120, 140]}
    folder = PACK / "workflows"
    write(folder / f"{workflow.name}.json", graph)
    write(folder / "api" / f"{workflow.name}.json", comfy.prompt())
    if workflow is IDENTITY:
        picture = PIL.Image.open(io.BytesIO(comfy.page.screenshot()))
        picture.resize((1900, 1900 * picture.height // picture.width), PIL.Image.Resampling.LANCZOS).save(
            PACK / "docs" / "images" / "workflow.png", optimize=True)
    thumbnail(workflow).save(folder / f"{workflow.name}.jpg", quality=90)


def thumbnail(workflow: Workflow) -> PIL.Image.Image:
    """What goes in, an arrow, and in a frame of film what it is about."""
    card = PIL.Image.new("RGB", THUMBNAIL, NIGHT)
    draw = PIL.ImageDraw.Draw(card)
    picture = skimage.data.chelsea()[10:250, 90:330] if workflow is SUBJECT else skimage.data.astronaut()[:230, 110:340]
    head = PIL.Image.fromarray(picture)
    left = 40
    for index in range(workflow.photos):
        photo = [head, PIL.ImageOps.mirror(PIL.ImageOps.grayscale(head).convert("RGB")), head.rotate(8)][index]
        offset = 26 * (index - (workflow.photos - 1) / 2)
        card.paste(photo.resize((150, 150), PIL.Image.Resampling.LANCZOS), (int(left + offset), int(105 + 2 * offset)))
    draw.line([(235, 180), (280, 180)], fill=PALE, width=6)
    draw.polygon([(280, 166), (304, 180), (280, 194)], fill=PALE)
    draw.rectangle([325, 80, 610, 280], outline=PALE, width=4)
    for x in range(337, 600, 26):
        for y in (88, 260):
            draw.rectangle([x, y, x + 12, y + 12], fill=PALE)
    draw.multiline_text((467, 180), workflow.headline, fill=PALE, font=PIL.ImageFont.load_default(34), anchor="mm",
                        align="center", spacing=10)
    return card


def note_height(words: str) -> int:
    """How high a note is that holds this text, with some room."""
    lines = sum(1 + len(line) // 95 for line in words.splitlines())
    return 60 + 19 * lines


def write(path: Path, record: dict) -> None:
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
    chosen = sys.argv[1:] or [workflow.name for workflow in WORKFLOWS]
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


if __name__ == "__main__":
    main()
