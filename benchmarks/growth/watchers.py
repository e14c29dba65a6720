"""Watch streams that read and throw away: what a watcher costs etcd or a proxy, without the agent that it usually is.

An agent of ours costs the machine many times what its watch costs etcd, so that with agents alone the fan-out could be
measured up to a few dozen watchers only. A stream here has a connection of its own, as an agent has; what is sent on it
is thrown away unparsed. Run as ``python -m benchmarks.growth.watchers CONFIG`` by benchmarks/harness.py.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

from etcd_pd.core.keys import prefix_end
from etcd_pd.store import etcdrpc

from ..harness import play

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)


async def _watch(endpoint: str, prefix: bytes, count: int, watching: threading.Event) -> None:
    import grpc

    parts = urlsplit(endpoint)
    create = etcdrpc.WatchCreateRequest(key=prefix, range_end=prefix_end(prefix), fragment=True)
    request = etcdrpc.WatchRequest(create_request=create).SerializeToString()

    async def asking() -> AsyncIterator[bytes]:
        yield request
        await asyncio.Event().wait()

    async def drain() -> None:
        channel = grpc.aio.insecure_channel(f"{parts.hostname}:{parts.port}", options=_OPTIONS)
        method: Any = channel.stream_stream("/etcdserverpb.Watch/Watch")
        call = method(asking())
        await call.read()  # created
        standing.append(True)
        if len(standing) == count:
            watching.set()
        while await call.read() is not grpc.aio.EOF:
            pass

    standing: list[bool] = []
    await asyncio.gather(*(drain() for _ in range(count)))


def _set_up(config: dict[str, Any]) -> Callable[[Any], Any]:
    watching = threading.Event()
    watch = _watch(config["endpoint"], config["prefix"].encode(), config["count"], watching)
    threading.Thread(target=asyncio.run, args=(watch,), daemon=True).start()
    if not watching.wait(30):
        raise RuntimeError("the watches do not stand")
    return lambda message: message


if __name__ == "__main__":
    etcdrpc.install()
    play(_set_up)
