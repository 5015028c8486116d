"""A headless Chromium, asked over a pipe in the DevTools protocol with the standard library alone."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 180.0  # until an answer is given up; a busy machine starts a browser slowly
WATCHED = ("Network.requestWillBeSent", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: make emulators installs it (Debian)")


class Browser:
    """
    A page in a browser.

    :param read: descriptor that answers come from
    :param write: descriptor that commands go to
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._buffer, self._number = read, write, b"", 0
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path) -> None:
        """
        Open a file, and wait until it is loaded.

        :param path: the file
        """
        self.events = []
        self.call("Page.navigate", {"url": path.resolve().as_uri()})
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def evaluate(self, expression: str) -> Any:
        """
        The value of a JavaScript expression in the page.

        :param expression: the expression
        """
        answer = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        """
        Take another size of the window.

        :param width: in pixels
        :param height: in pixels
        """
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str, media: str = "") -> None:
        """
        Say what the reader prefers.

        :param scheme: ``light`` or ``dark``
        :param media: ``print`` for paper
        """
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", {"captureBeyondViewport": True})["data"])

    def requests(self) -> list[str]:
        """What the last page asked for: its own address, and ``data:`` addresses."""
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == WATCHED[0]]

    def complaints(self) -> list[dict[str, Any]]:
        """What the last page wrote to the console, and its errors."""
        self.evaluate("1")  # all events before this answer are here
        return [event for event in self.events if event["method"] in WATCHED[1:]]

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """
        A command to the page.

        :param method: its name
        :param params: its arguments
        """
        return self._call(method, params or {}, self._session)

    def _call(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._number += 1
        command = {"id": self._number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            content = os.read(self._read, 2**20)
            assert content, "the browser has ended"
            self._buffer += content
        message, _, self._buffer = self._buffer.partition(b"\0")
        found = json.loads(message)
        if "method" in found:
            self.events.append(found)
        return found


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser without network, with a profile of its own, that ends with the context."""
    assert CHROMIUM is not None
    (their_read, write), (read, their_write) = os.pipe(), os.pipe()
    theirs = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (their_read, their_write)]

    def place() -> None:  # the protocol's descriptors are 3 and 4
        os.dup2(theirs[0], 3)
        os.dup2(theirs[1], 4)

    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *options, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        process = subprocess.Popen(command, preexec_fn=place, pass_fds=(3, 4), stderr=subprocess.DEVNULL)
        for descriptor in (their_read, their_write, *theirs):
            os.close(descriptor)
        try:
            yield Browser(read, write)
        finally:
            with suppress(OSError):
                os.close(write)  # a browser whose pipe is closed ends
            os.close(read)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
