"""A real browser without a window, driven by Chromium's own protocol."""

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
    """A page in the browser; what it fetched and complained about is kept."""

    def __init__(self, socket):
        self._socket, self._numbers, self._waiting = socket, count(1), {}
        self.fetched, self.complaints = [], []

    async def listen(self):
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._waiting.pop(told["id"]).set_result(told)
            elif told["method"] == "Network.requestWillBeSent":
                self.fetched.append(told["params"]["request"]["url"])
            elif told["method"] == "Runtime.exceptionThrown":
                self.complaints.append(told["params"]["exceptionDetails"])
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.complaints.append(told["params"]["entry"])

    async def ask(self, method, **given):
        number, future = next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        await self._socket.send_json({"id": number, "method": method, "params": given})
        told = await asyncio.wait_for(future, 20)
        assert "error" not in told, told
        return told["result"]

    async def value(self, expression):
        """What an expression is in the page."""
        told = await self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, expression, seconds=20):
        async with asyncio.timeout(seconds):
            while not await self.value(expression):
                await asyncio.sleep(0.05)

    async def choose(self, selector, file):
        """Has a file chosen in an input."""
        root = (await self.ask("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.ask("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    async def press(self, selector, share):
        """Presses the mouse on an element, at a share of its width."""
        box = await self.value(
            f"(() => {{ const b = document.querySelector('{selector}').getBoundingClientRect();"
            f" return [b.left + b.width * {share}, b.top + b.height / 2] }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    async def picture(self, file):
        """Writes what the page looks like."""
        shot = await self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        Path(file).write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def tab(url):
    """A page of a fresh browser at an address."""
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
                    await page.ask(f"{domain}.enable")
                await page.ask("Page.navigate", url=url)
                yield page
                listening.cancel()
        finally:
            process.terminate()
            process.wait(20)


async def _address(session, profile):
    """Where the browser's first page listens."""
    file = Path(profile) / "DevToolsActivePort"
    async with asyncio.timeout(60):
        while not (file.exists() and file.read_text().count("\n")):
            await asyncio.sleep(0.1)
    port = file.read_text().splitlines()[0]
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        pages = [one for one in await answer.json() if one["type"] == "page"]
    return pages[0]["webSocketDebuggerUrl"]
