"""A real ComfyUI server, headless, with the pack in its custom_nodes, and a client that follows a prompt to its end."""
from __future__ import annotations

import asyncio
import contextlib
import json
import mimetypes
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from support.environment import PACK

START_SECONDS = 600
PREVIEW_EVENTS = (1, 4)  # ComfyUI's protocol.py: a preview image, without and with metadata


class PromptFailed(RuntimeError):
    """What the server said of a prompt it refused or could not finish.

    node: the id of the node that failed; None where none did.
    kind: the name of that node's exception, as the page shows it before the words.
    """

    def __init__(self, words: str, node: str | None = None, kind: str | None = None):
        super().__init__(words)
        self.node = node
        self.kind = kind


@dataclass
class Result:
    """What came of a prompt.

    outputs: node id -> what the node put into the UI.
    previews: how many latent previews came.
    progress: (value, maximum) of each step that the server told.
    """

    outputs: dict[str, dict] = field(default_factory=dict)
    previews: int = 0
    progress: list[tuple[int, int]] = field(default_factory=list)


def node_id(prompt: dict, class_type: str) -> str:
    """The first node of a class in a prompt (API format)."""
    return next(key for key, node in prompt.items() if node["class_type"] == class_type)


def link_node_pack(base: Path, name: str, folder: Path) -> None:
    """Put a node pack into base/custom_nodes, as a link: what runs is this very checkout."""
    link = base / "custom_nodes" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(link):
        return
    if os.name == "nt":
        import _winapi  # a junction needs no privilege, a symbolic link does
        _winapi.CreateJunction(str(folder), str(link))
    else:
        link.symlink_to(folder, target_is_directory=True)


@contextlib.contextmanager
def running_server(comfyui: Path, base: Path, log: Path, *arguments: str) -> Iterator[Server]:
    """A server on a free local port, on the CPU, with models, inputs and outputs in base; stopped at the end."""
    link_node_pack(base, "ComfyUI-StandIn", PACK)
    link_node_pack(base, "tiny_encoders", PACK / "small_world" / "tiny_encoders")
    with started_server(comfyui, base, log, "--cpu", "--base-directory", str(base), "--database-url",
                        f"sqlite:///{base / 'comfyui.db'}", "--disable-api-nodes", *arguments) as server:
        yield server


@contextlib.contextmanager
def started_server(comfyui: Path, base: Path, log: Path, *arguments: str, **popen) -> Iterator[Server]:
    """A server on a free local port; stopped at the end.

    base: the folder in which the server's folders of inputs and outputs lie.
    log: a file for its words.
    arguments: of ComfyUI.
    popen: further arguments of ``subprocess.Popen``.

    Raises RuntimeError with its last words if it does not come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # ComfyUI takes the last value of an argument, and who starts his own with --port may give that here too
    command = [sys.executable, str(comfyui / "main.py"), "--disable-auto-launch", *arguments, "--listen", "127.0.0.1",
               "--port", str(port)]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **popen)
    try:
        server = Server(f"http://127.0.0.1:{port}", base, process)
        asyncio.run(server.wait_until_up(log))
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_words(log: Path, count: int) -> str:
    """The last characters of a log, into which drivers and libraries may have written what is no text."""
    return log.read_text(encoding="utf-8", errors="replace")[-count:]


class Server:
    def __init__(self, url: str, base: Path, process: subprocess.Popen):
        self.url = url
        self.base = base
        self.process = process

    async def wait_until_up(self, log: Path) -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(START_SECONDS * 5):
                if self.process.poll() is not None:
                    break
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.url}/system_stats") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.2)
        raise RuntimeError(f"ComfyUI did not come up; its last words in {log}:\n" + last_words(log, 3000))

    def get(self, path: str):
        """The JSON at a path of the server."""
        async def fetch():
            async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
                return await response.json()
        return asyncio.run(fetch())

    def text(self, path: str) -> str:
        """As ``read``, as text."""
        return self.read(path).decode()

    def read(self, path: str) -> bytes:
        """What is at a path of the server. Raises aiohttp.ClientResponseError if there is nothing."""
        async def fetch():
            async with (aiohttp.ClientSession(raise_for_status=True) as session,
                        session.get(self.url + path) as response):
                return await response.read()
        return asyncio.run(fetch())

    def upload(self, file: Path) -> str:
        """As ``upload_bytes``, from a file and under its name."""
        return self.upload_bytes(file.name, file.read_bytes())

    def upload_bytes(self, name: str, content: bytes) -> str:
        """Upload a picture or a video as the browser does; returns the name that LoadImage or LoadVideo knows it by."""
        async def send():
            form = aiohttp.FormData()
            form.add_field("image", content, filename=name, content_type=mimetypes.guess_type(name)[0])
            url = f"{self.url}/upload/image"
            async with aiohttp.ClientSession() as session, session.post(url, data=form) as response:
                return (await response.json())["name"]
        return asyncio.run(send())

    def run(self, prompt: dict, on_progress: Callable[[str, int, int], None] = lambda node, value, most: None,
            interrupt_at: int | None = None, seconds: float | None = None) -> Result:
        """Queue a prompt (API format) and follow the websocket to the end.

        on_progress: called with node class, value and maximum.
        interrupt_at: the sampler step at which to interrupt.
        seconds: after which nobody follows it any more; None for never.

        Raises PromptFailed with the server's words, and TimeoutError after these seconds.
        """
        return asyncio.run(asyncio.wait_for(self._run(prompt, on_progress, interrupt_at), seconds))

    async def _run(self, prompt, on_progress, interrupt_at) -> Result:
        client = uuid.uuid4().hex
        url = f"{self.url}/ws?clientId={client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as messages:
            async with session.post(f"{self.url}/prompt", json={"prompt": prompt, "client_id": client}) as response:
                answer = await response.json()
            # where one output can run and another cannot, ComfyUI runs the one and says what is wrong with the other
            if "prompt_id" not in answer or answer.get("node_errors"):
                raise PromptFailed(json.dumps(answer, indent=1))
            result = Result()
            async for message in messages:
                if message.type == aiohttp.WSMsgType.BINARY:
                    result.previews += int.from_bytes(message.data[:4], "big") in PREVIEW_EVENTS
                    continue
                event = json.loads(message.data)
                data = event["data"]
                if not isinstance(data, dict) or data.get("prompt_id") != answer["prompt_id"]:
                    continue  # another pack's, or of another prompt
                match event["type"]:
                    case "progress":
                        result.progress.append((data["value"], data["max"]))
                        if data["node"] in prompt:  # and is none that ComfyUI put in place of another
                            on_progress(prompt[data["node"]]["class_type"], data["value"], data["max"])
                        if data["value"] == interrupt_at:
                            await session.post(f"{self.url}/interrupt")
                    case "executed":
                        result.outputs[data["node"]] = data["output"]
                    case "execution_error":
                        raise PromptFailed(f"{data['node_type']}: {data['exception_message'].strip()}", data["node_id"],
                                           data["exception_type"])
                    case "execution_interrupted":
                        raise PromptFailed(f"{data['node_type']}: interrupted")
                    case "execution_success":
                        return result
        raise PromptFailed("the server closed the connection")

    def path_of(self, item: dict) -> Path:
        """Where a saved output (an entry of a node's ``images``) lies."""
        return self.base / item["type"] / item.get("subfolder", "") / item["filename"]
