"""A real headless Chromium, driven over its own protocol: what a page shows, does and complains about."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

START_SECONDS = 30.0
PATIENCE = 15.0


@cache
def browser() -> str:
    """Path of a Chromium; installed where it is missing."""
    script = Path(__file__).parents[2] / "scripts" / "chromium"
    done = subprocess.run([script], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"no Chromium:\n{done.stderr}")
    return done.stdout.strip()


class Page:
    """One page; use it as an async context manager.

    Attributes:
        complaints: errors and warnings of its console, and what it failed to load.
    """

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self._profile = Path(tempfile.mkdtemp(prefix="etcd-pd-chromium-"))
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def __aenter__(self) -> Page:
        command = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--no-first-run", "--disable-extensions", "--disable-background-networking"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._session = aiohttp.ClientSession()
        try:
            port = await self._port()
            async with self._session.get(f"http://127.0.0.1:{port}/json/list") as listed:
                targets = await listed.json()
            (target,) = [one for one in targets if one["type"] == "page"]
            self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
            self._reading = asyncio.create_task(self._read())
            for domain in ("Page", "Runtime", "Log", "Network"):
                await self.call(f"{domain}.enable")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()
        await self._end()

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number, answered = next(self._numbers), asyncio.get_running_loop().create_future()
        self._answers[number] = answered
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(answered, PATIENCE)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression is."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true; its value."""
        deadline = time.monotonic() + PATIENCE
        while not (found := await self.value(expression)):
            assert time.monotonic() < deadline, f"{expression} is not so; the page says {await self.text()}"
            await asyncio.sleep(0.05)
        return found

    async def open(self, url: str) -> None:
        """Load a page."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def text(self) -> str:
        """All text that is shown."""
        return str(await self.value("document.body.innerText"))

    async def size(self, width: int, height: int) -> None:
        """Be a screen of this size, in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def colours(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def press(self, key: str) -> None:
        """Press ``Tab`` or ``Enter``."""
        codes = {"Tab": (9, ""), "Enter": (13, "\r")}
        code, text = codes[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def middle(self, selector: str, along: float = 0.5) -> tuple[float, float]:
        """A point of an element, brought into view: so far from its left side, and half down."""
        box = await self.value(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); one.scrollIntoView();"
            " const box = one.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
        )
        left, top, width, height = map(float, box)
        return left + along * width, top + height / 2

    async def point(self, x: float, y: float) -> None:
        """Move the pointer to a point of the window."""
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def picture(self) -> bytes:
        """A PNG of what is shown."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])

    async def _port(self) -> int:
        found, deadline = self._profile / "DevToolsActivePort", time.monotonic() + START_SECONDS
        while not found.exists() or not found.read_text().strip():
            assert self._process.poll() is None and time.monotonic() < deadline, "Chromium does not start"
            await asyncio.sleep(0.05)
        return int(found.read_text().split()[0])

    async def _read(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            else:
                self._note(told["method"], told["params"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])

    async def _end(self) -> None:
        await self._session.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, 10)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its helpers may still write into the profile
        self._process.wait()
        deadline = time.monotonic() + PATIENCE
        while self._profile.exists():
            assert time.monotonic() < deadline, f"cannot remove {self._profile}"
            shutil.rmtree(self._profile, ignore_errors=True)
            await asyncio.sleep(0.05)
