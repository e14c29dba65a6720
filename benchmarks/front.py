"""How long an engine's front keeps /health waiting under a hostile crowd: ``python -m benchmarks.front``.

It starts a decode instance, opens many connections that say nothing or half of what they should, sends one huge prompt
after the other, and times GET /health meanwhile. Nothing is computed, and no agent is needed: any answer counts.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress

import aiohttp

from etcd_pd.reference.local.probe import http_ok
from etcd_pd.reference.local.process import Process, free_ports

CONNECTIONS = 500
PROMPT_BYTES = 12 << 20
PROMPTS = 5


async def measure(host: str, port: int) -> tuple[list[float], list[int]]:
    """Seconds that each GET /health took, and the statuses of the huge prompts."""
    idle = [await asyncio.open_connection(host, port) for _ in range(CONNECTIONS)]
    for _, writer in idle[: CONNECTIONS // 2]:
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    routed = {"bootstrap_host": "127.0.0.1", "bootstrap_port": 9, "bootstrap_room": 7}
    body = json.dumps({"text": "x" * PROMPT_BYTES, **routed}).encode()
    seconds: list[float] = []
    sending = asyncio.create_task(asyncio.to_thread(_send, host, port, body))
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
        while not sending.done() or len(seconds) < 50:
            started = time.perf_counter()
            async with session.get("/health") as response:
                await response.read()
            seconds.append(time.perf_counter() - started)
            await asyncio.sleep(0.01)
    for _, writer in idle:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return seconds, await sending


def _send(host: str, port: int, body: bytes) -> list[int]:
    """The statuses of the huge prompts; from a thread, so that this side's loop is not what is measured."""
    statuses = []
    for _ in range(PROMPTS):
        connection = http.client.HTTPConnection(host, port, timeout=120)
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        statuses.append(connection.getresponse().status)
        connection.close()
    return statuses


def report(seconds: Sequence[float]) -> str:
    """The figures in words."""
    return (
        f"GET /health beside {CONNECTIONS} connections and {PROMPTS} prompts of {PROMPT_BYTES >> 20} MiB: "
        f"median {statistics.median(seconds) * 1000:.1f} ms, worst {max(seconds) * 1000:.1f} ms of {len(seconds)}"
    )


def main() -> int:
    """Print the figures."""
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "etcd_pd", "decode", "--port", str(port), "--socket", f"{directory}/none.sock"]
        process = Process("decode", command, log=None)
        try:
            process.wait_until(lambda: http_ok(f"http://127.0.0.1:{port}/liveness"), 120.0)
            seconds, _ = asyncio.run(measure("127.0.0.1", port))
        finally:
            process.stop()
    print(report(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
