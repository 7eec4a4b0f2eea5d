"""A headless Chromium over its debugging pipe, and what it finds wrong with a page.

The DevTools protocol here is JSON messages that end in a zero byte: the browser reads file descriptor 3, writes 4.
"""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip
PHONE, DESKTOP = 390, 1280
SMALLEST_TEXT = 12
SMALLEST_SCALE = 0.6
"""Pictures are shown at no less than this part of their own size."""

# What is measured in the page, once it has loaded.
MEASURE = """
(() => {
  const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (node.data.trim() && !parent.closest("script, style"))
      texts.push([parseFloat(getComputedStyle(parent).fontSize), node.data.trim().slice(0, 40)]);
  }
  const pictures = [...document.images].map(i => [i.getAttribute("src").slice(0, 80), i.complete && i.naturalWidth > 0,
    i.naturalWidth ? i.clientWidth / i.naturalWidth : 0]);
  return {texts, pictures, width: document.scrollingElement.scrollWidth};
})()
"""


def find_browser() -> str | None:
    """The program: $COSEGFLOW_BROWSER, or the first of NAMES on PATH."""
    return os.environ.get("COSEGFLOW_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One process, one tab. A context manager."""

    def __init__(self, program: str, profile: Path, patience: float = 60.0) -> None:
        """profile: an empty folder; patience: seconds that any answer may take."""
        self._patience, self._number, self._buffer = patience, 0, b""
        self.events: list[dict[str, Any]] = []
        out_read, self._write = os.pipe()
        self._read, in_write = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (out_read, in_write)]

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(3, 4), preexec_fn=place, **quiet)
        for end in (out_read, in_write, *ends):
            os.close(end)
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the process, by force where it does not answer."""
        try:
            self._call("Browser.close")
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired, AssertionError):
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """A command to the tab; its answer."""
        return self._call(method, self._session, **arguments)

    def _call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    def wait_for(self, method: str) -> None:
        """Until an event of the tab has come."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + self._patience
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._read, 1 << 16) if ready else b""
            assert part, f"the browser {'closed its pipe' if ready else f'did not answer in {self._patience:g} s'}"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int, height: int = 844) -> None:
        """Loads a file at a width in CSS pixels, as a telephone does where that is narrow; forgets earlier events."""
        mobile = width < 700
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        for url in ("about:blank", page.resolve().as_uri()):
            self.events.clear()
            self.call("Page.navigate", url=url)
            self.wait_for("Page.loadEventFired")

    def screenshot(self) -> Image.Image:
        """What is seen without scrolling."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def _said(event: dict[str, Any]) -> str | None:
    """What an event has to complain about; None: nothing."""
    what, told = event.get("method"), event.get("params", {})
    if what == "Runtime.exceptionThrown":
        detail = told["exceptionDetails"]
        return f"exception: {detail.get('exception', {}).get('description', detail['text'])}"
    if what == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert", "warning"):
        return f"console: {told['args']}"
    if what == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
        return f"log: {told['entry']['text']} {told['entry'].get('url', '')}"
    if what == "Network.loadingFailed":
        return f"failed to load: {told['errorText']}"
    return None


def problems(browser: Browser, page: Path, width: int) -> list[str]:
    """What is wrong with a page at a width, a line each: errors, pictures, overflow, small text, a blank screen."""
    browser.open(page, width)
    answer = browser.call("Runtime.evaluate", expression=MEASURE, returnByValue=True)
    assert "value" in answer["result"], answer
    found = answer["result"]["value"]
    lines = [line for event in browser.events if (line := _said(event)) is not None]
    lines += [f"picture not loaded: {source}" for source, loaded, _ in found["pictures"] if not loaded]
    lines += [
        f"picture at {scale:.2f} of its size: {source}"
        for source, loaded, scale in found["pictures"]
        if loaded and not scale >= SMALLEST_SCALE
    ]
    if not found["width"] <= width:
        lines.append(f"overflow: {found['width']} px wide on a screen of {width}")
    lines += [f"text of {size:g} px: {text}" for size, text in found["texts"] if not size >= SMALLEST_TEXT]
    if not np.asarray(browser.screenshot(), dtype=np.float64).std() > 1:
        lines.append("blank")
    return lines
