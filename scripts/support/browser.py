"""ComfyUI's page in a headless Chromium, driven by playwright."""
from __future__ import annotations

import contextlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlencode

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")
PACK_NAME = "ComfyUI-StandIn"
READY = "window.app && window.app.graph && window.app.canvas"
SEARCH = "[role=dialog], .comfy-vue-node-search-container"
UP_MS = 120_000
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass
class ComfyPage:
    """A page of ComfyUI.

    browser: playwright's.
    size: of the window in pixels, as playwright's viewport.
    errors: exceptions on the page, errors on its console, and answers of the server with an error status.
    """

    browser: object
    url: str
    size: dict
    page: object = None
    errors: list[str] = field(default_factory=list)

    def open(self, workflow: str | None = None) -> None:
        """A fresh page, with a bundled workflow where one is named, as a link to a template opens it."""
        if self.page is not None:
            self.page.context.close()  # ComfyUI would open again what was open
        self.errors.clear()
        self.page = self.browser.new_context(viewport=self.size).new_page()
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("response", lambda answer: answer.status >= 400 and self.errors.append(
            f"{answer.status} {answer.url}"))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        query = "" if workflow is None else "?" + urlencode({"template": workflow, "source": PACK_NAME})
        self.page.goto(self.url + query)
        self.page.wait_for_function(READY, timeout=UP_MS)
        if workflow is not None:
            self.page.wait_for_function("window.app.graph._nodes.length > 3", timeout=UP_MS)
        self.settle()

    def reload(self) -> None:
        """The same page anew, as a browser's own button loads it; ComfyUI opens again what was open."""
        nodes = self.page.evaluate("window.app.graph.nodes.length")
        self.page.reload()
        self.page.wait_for_function(f"{READY} && window.app.graph.nodes.length === {nodes}", timeout=UP_MS)
        self.page.get_by_role("button", name="Run").first.wait_for(timeout=UP_MS)
        self.settle()

    def settle(self) -> None:
        """Until the number of nodes and their sizes stay, and no dialog covers them."""
        last = None
        for _ in range(40):
            self.page.wait_for_timeout(400)
            now = self.page.evaluate("JSON.stringify(window.app.graph._nodes.map(n => [n.id, ...n.size]))")
            if now == last:
                break
            last = now
        self.page.keyboard.press("Escape")
        self.page.wait_for_timeout(400)

    def draw_nodes_by_vue(self, vue: bool) -> None:
        """Let the page draw nodes by Vue (*Nodes 2.0* in its settings), or by the canvas as before."""
        self.page.evaluate("vue => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
        self.settle()

    def prompt(self) -> dict:
        """The graph as the frontend sends it to the queue, without the player of a video, which is no input."""
        prompt = self.page.evaluate("async () => (await window.app.graphToPrompt()).output")
        for node in prompt.values():
            node["inputs"].pop("video-preview", None)
        return prompt

    def load(self, prompt: dict, name: str) -> None:
        """A prompt of the server's as a graph."""
        self.page.evaluate("([prompt, name]) => window.app.loadApiJson(prompt, name)", [prompt, name])
        self.settle()

    def graph(self, name: str) -> dict:
        """The graph as the page saves it; the random ids of subgraphs, slots and the rest become ones that depend on
        the name and their order.
        """
        text = self.page.evaluate("JSON.stringify(window.app.graph.serialize())")
        for index, found in enumerate(dict.fromkeys(UUID.findall(text))):
            text = text.replace(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name}/{index}")))
        return json.loads(text)

    def show(self, graph: dict, name: str) -> None:
        """A graph as the template browser opens it: fitted to the screen."""
        self.page.evaluate("""([graph, name]) => window.app.loadGraphData(
            graph, true, true, name, {openSource: 'template'})""", [graph, name])
        self.settle()

    def drop(self, words: str, place: tuple[int, int]) -> None:
        """The first node that the page's search finds, at a place of the screen that is empty."""
        count = "window.app.canvas.graph.nodes.length"
        before = self.page.evaluate(count)
        self.page.mouse.dblclick(*place)
        self.page.locator(SEARCH).last.wait_for()
        self.page.keyboard.type(words, delay=20)
        self.page.wait_for_timeout(1200)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(f"before => {count} > before", arg=before)
        self.page.wait_for_timeout(600)
        self.page.mouse.click(*place)
        self.page.wait_for_timeout(300)

    def scale(self) -> float:
        """Pixels of the screen for one of the graph."""
        return self.page.evaluate("window.app.canvas.ds.scale")

    def boxes(self) -> list[dict]:
        """Where the nodes are drawn: id, type, and left, top, right, bottom with the title."""
        return json.loads(self.page.evaluate("""() => JSON.stringify(window.app.graph._nodes.map(n => ({
            id: n.id, type: n.type, title: n.title, left: n.pos[0], top: n.pos[1] - LiteGraph.NODE_TITLE_HEIGHT,
            right: n.pos[0] + n.size[0], bottom: n.pos[1] + n.size[1]})))"""))

    def fit(self, margin: float = 40) -> None:
        """Show the whole graph."""
        self.page.evaluate("""margin => {
            const nodes = window.app.graph._nodes, view = window.app.canvas;
            const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 70;
            const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]));
            const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]));
            const scale = Math.min((innerWidth - 140) / (right - left + margin), (innerHeight - 200) / (bottom - top));
            view.ds.scale = scale;
            view.ds.offset = [90 / scale - left, 140 / scale - top];  // below the bar with Run
            view.setDirty(true, true);
        }""", margin)
        self.page.wait_for_timeout(1500)


@contextlib.contextmanager
def comfy_page(url: str, width: int = 1920, height: int = 1080) -> Iterator[ComfyPage]:
    """A browser for ComfyUI's page; CHROMIUM must be there."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # to a new user, the page shows the template browser some time after it is up
        playwright.request.new_context().post(f"{url}/api/settings/Comfy.TutorialCompleted", data="true",
                                              headers={"Content-Type": "application/json"})
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        try:
            yield ComfyPage(browser, url, {"width": width, "height": height})
        finally:
            browser.close()
