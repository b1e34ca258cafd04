"""Load a file in a real headless Chromium with networking off, over its debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-port=0",
]  # fmt: skip
ALLOWED_S = 240


class Press(str):
    """A key to press, as a person would, where an expression could stand: 'Enter', '+', 'ArrowLeft'."""

    __slots__ = ()


def find() -> str | None:
    """The path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def load(
    file: Path, width: int, dark: bool, asked: dict[str, str], shot: Path | None = None, scripts: bool = True
) -> dict[str, Any]:
    """Load `file` at `width` px; gives the value of each JavaScript expression of `asked`, in order, and `complaints`.

    A promise is waited for. The debugger's own expressions are not held to the page's policy.

    Without `scripts` the page's own do not run. `complaints`: console errors, exceptions, and every address that the
    page tried to fetch.
    """
    look = (file, width, dark, asked, shot, scripts)
    return asyncio.run(asyncio.wait_for(_load(look), ALLOWED_S))


async def _load(look: tuple[Path, int, bool, dict[str, str], Path | None, bool]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = await asyncio.create_subprocess_exec(
            str(find()), *FLAGS, f"--user-data-dir={profile}", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, env=os.environ | {"TMPDIR": profile},
        )  # fmt: skip
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            while not (port_file.is_file() and "\n" in port_file.read_text()):
                await asyncio.sleep(0.1)
            port = port_file.read_text().splitlines()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                    pages = [page for page in await reply.json() if page["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    return await _look(_Page(socket), *look)
        finally:
            with contextlib.suppress(ProcessLookupError):
                browser.kill()
            await browser.wait()


class _Page:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.count, self.complaints, self.loaded = socket, 0, [], False

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        await self.socket.send_json({"id": self.count, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json()
            if message.get("id") == self.count:
                return message.get("result", {})
            self._note(message)

    async def until_loaded(self) -> None:
        while not self.loaded:
            self._note(await self.socket.receive_json())

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        self.loaded |= method == "Page.loadEventFired"
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
            self.complaints.append(params["request"]["url"])
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])
        if method == "Runtime.exceptionThrown" or (method == "Runtime.consoleAPICalled" and params["type"] == "error"):
            self.complaints.append(str(params))


async def _look(
    page: _Page, file: Path, width: int, dark: bool, asked: dict[str, str], shot: Path | None, scripts: bool
) -> dict[str, Any]:
    for domain in ("Page", "Runtime", "Log", "Network"):
        await page.call(f"{domain}.enable")
    await page.call(
        "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
    )
    await page.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await page.call("Emulation.setEmulatedMedia", features=[scheme])
    await page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
    await page.call("Page.navigate", url=file.resolve().as_uri())
    await page.until_loaded()
    found = {}
    for name, expression in asked.items():
        if isinstance(expression, Press):
            await _press(page, expression)
            continue
        reply = await page.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        found[name] = reply["result"].get("value")
    if shot is not None:
        reply = await page.call("Page.captureScreenshot", captureBeyondViewport=True)
        shot.write_bytes(base64.b64decode(reply["data"]))
    return found | {"complaints": page.complaints}


async def _press(page: _Page, key: str) -> None:
    text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
    code = {"Enter": 13}.get(key, 0)
    for kind in ("keyDown", "keyUp"):
        more = {"text": text} if text and kind == "keyDown" else {}
        await page.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)
