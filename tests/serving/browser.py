"""Headless Chromium, driven by the DevTools protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1280,900"]


class Tab:
    """A page in the browser, with the URLs it fetched and the errors it logged."""

    def __init__(self, socket):
        self._socket, self._numbers, self._waiting = socket, count(1), {}
        self.fetched, self.errors = [], []

    async def listen(self):
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                self._waiting.pop(event["id"]).set_result(event)
            elif event["method"] == "Network.requestWillBeSent":
                self.fetched.append(event["params"]["request"]["url"])
            elif event["method"] == "Runtime.exceptionThrown":
                self.errors.append(event["params"]["exceptionDetails"])
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                self.errors.append(event["params"]["entry"])

    async def call(self, method, **params):
        number, future = next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        await self._socket.send_json({"id": number, "method": method, "params": params})
        response = await asyncio.wait_for(future, 20)
        assert "error" not in response, response
        return response["result"]

    async def value(self, expression):
        """Evaluates an expression in the page."""
        response = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in response, response
        return response["result"].get("value")

    async def until(self, expression, seconds=20):
        async with asyncio.timeout(seconds):
            while not await self.value(expression):
                await asyncio.sleep(0.05)

    async def choose(self, selector, file):
        """Chooses a file in an input."""
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    async def press(self, selector, fraction):
        """Presses the mouse on an element, at a fraction of its width."""
        box = await self.value(
            f"(() => {{ const b = document.querySelector('{selector}').getBoundingClientRect();"
            f" return [b.left + b.width * {fraction}, b.top + b.height / 2] }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    async def screenshot(self, file):
        """Writes a screenshot of the page."""
        response = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(file).write_bytes(base64.b64decode(response["data"]))


@asynccontextmanager
async def tab(url):
    """A page of a new browser at a URL."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
        )
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(await _address(session, profile)) as socket,
            ):
                page = Tab(socket)
                listening = asyncio.create_task(page.listen())
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await page.call(f"{domain}.enable")
                await page.call("Page.navigate", url=url)
                yield page
                listening.cancel()
        finally:
            process.terminate()
            process.wait(20)


async def _address(session, profile):
    """The WebSocket URL of the first page."""
    file = Path(profile) / "DevToolsActivePort"
    async with asyncio.timeout(60):
        while not (file.exists() and file.read_text().count("\n")):
            await asyncio.sleep(0.1)
    port = file.read_text().splitlines()[0]
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        pages = [target for target in await answer.json() if target["type"] == "page"]
    return pages[0]["webSocketDebuggerUrl"]
