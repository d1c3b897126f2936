"""A ComfyUI of one's own, as a child process that ends with its parent, and the renders that it makes."""
from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import aiohttp

from support.comfyui_server import PromptFailed, Server, last_words, started_server

from .answers import reported, saved
from .workflow import unmeasured

GRACE_SECONDS = 20  # in which an interrupted server must be idle again
DEATH_SECONDS = 2  # from a broken connection to the end of the process
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PEOPLE = "stand_in/people"  # ComfyUI's name of the folder in which Load Person looks


class RenderLost(PromptFailed):
    """The server ended or did not answer in time: another try may end well."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How servers are started, and how long a render may take.

    comfyui: the folder with main.py.
    arguments: of ComfyUI.
    seconds: after which a render is given up.
    """

    comfyui: Path
    arguments: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Render:
    """What came of a job.

    files: (how the name ends, content) of each picture or video, in order.
    report: what Identity Report measured, as its JSON has it; None where it failed.
    seconds: how long it took, the upload included.
    worker: who made it.
    not_measured: ComfyUI's words of why the report failed; None where it did not.
    """

    files: list[tuple[str, bytes]]
    report: dict | None
    seconds: float
    worker: str
    not_measured: str | None = None


class Worker:
    """A ComfyUI, started anew where it ended, and one render at a time on it."""

    def __init__(self, settings: ServerSettings):
        """Start the server. Raises RuntimeError with its last words if it does not come up."""
        self.settings = settings
        self.name = f"{platform.node()}:{os.getpid()}"
        self._start()

    def render(self, graph: dict, files: dict[str, bytes]) -> Render:
        """Render, on a new server where the last one ended meanwhile. A render whose report fails is kept without it.

        files: name in the graph -> content.

        Raises PromptFailed with ComfyUI's words, RenderLost where it has none, and RuntimeError if a new server does
        not come up.
        """
        with self._told_of_losses():
            started = time.monotonic()
            report = not_measured = None
            try:
                outputs = self._run(graph, files)
                report = reported(outputs)
            except PromptFailed as failure:
                if failure.node is None or failure.node in unmeasured(graph):
                    raise
                not_measured = str(failure)
                outputs = self._run(unmeasured(graph), files)  # ComfyUI's cache has what was made before the report
            shown = [(Path(item["filename"]).suffix, self.server.read("/view?" + urlencode(item)))
                     for item in saved(outputs, graph)]
            self._drop_saved()
            return Render(shown, report, time.monotonic() - started, self.name, not_measured)

    def refusal(self, graph: dict, files: dict[str, bytes]) -> str | None:
        """ComfyUI's words of why it cannot run a prompt, or None if it can, or if that cannot be known now.

        files: as for ``render``.

        Raises RuntimeError if a new server does not come up.
        """
        try:
            with self._told_of_losses():
                self._run(graph, files)
        except RenderLost:
            return None
        except PromptFailed as failure:
            return str(failure)
        return None

    def close(self) -> None:
        self._running.close()

    def _run(self, graph: dict, files: dict[str, bytes]) -> dict[str, dict]:
        """Node id -> what the node put into the UI."""
        for name, content in files.items():
            self.server.upload_bytes(name, content)
        return self.server.run(graph, seconds=self.settings.seconds).outputs

    def _drop_saved(self) -> None:
        """Make room: over night every render would lie on this disk beside where it is kept."""
        folder = self.server.base / "output"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def _told_of_losses(self) -> Iterator[None]:
        """Begin with a server that runs, and raise RenderLost where it ends within the context or is too slow."""
        if self.server.process.poll() is not None:
            self._restart()
        try:
            yield
        except TimeoutError as error:
            words = f"not done after {self.settings.seconds:g} seconds, the time limit of a render"
            if not self._interrupted():
                words += "; ComfyUI could not be interrupted, so it was ended and started anew"
                self._restart()
            raise RenderLost(words) from error
        except (PromptFailed, aiohttp.ClientError, OSError) as error:
            if self._has_ended():
                words = f"ComfyUI ended in this render; its last words:\n{last_words(self._log, 1000)}"
                self._restart()
                raise RenderLost(words) from error
            if isinstance(error, PromptFailed):
                raise
            raise RenderLost(str(error)) from error

    def _start(self) -> None:
        """A server that writes nothing but into a folder of its own, which goes with it."""
        with contextlib.ExitStack() as stack:
            own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="casting_", ignore_cleanup_errors=True)))
            # Load Person looks among what was uploaded, which lies in *input*
            people = own / "people.yaml"
            people.write_text(json.dumps({"casting": {PEOPLE: str(own / "input")}}), encoding="utf-8")
            folders = ["--extra-model-paths-config", str(people)]
            for name in ("input", "output", "temp", "user"):
                (own / name).mkdir()
                folders += [f"--{name}-directory", str(own / name)]
            self._log = own / "comfyui.log"
            self.server: Server = stack.enter_context(started_server(
                self.settings.comfyui, own, self._log, *self.settings.arguments, *folders, "--database-url",
                f"sqlite:///{own / 'comfyui.db'}", preexec_fn=_end_with_parent if sys.platform == "linux" else None))
            self._running = stack.pop_all()

    def _has_ended(self) -> bool:
        """Asked after an error; the end of a process comes a little after that of its connections."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.server.process.wait(DEATH_SECONDS)
        return self.server.process.poll() is not None

    def _restart(self) -> None:
        self.server.process.kill()
        self.close()
        self._start()

    def _interrupted(self) -> bool:
        """Stop what runs; whether the server is idle then."""
        try:
            asyncio.run(asyncio.wait_for(_until_idle(self.server.url), GRACE_SECONDS))
        except (TimeoutError, aiohttp.ClientError):
            return False
        return True


async def _until_idle(url: str) -> None:
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        await session.post(f"{url}/interrupt")
        while True:
            async with session.get(f"{url}/queue") as response:
                if not (await response.json())["queue_running"]:
                    return
            await asyncio.sleep(0.2)


def _end_with_parent() -> None:
    """In the child, before it is ComfyUI: the kernel ends it when the thread that started it is no more."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
