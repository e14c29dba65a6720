"""Small transactions by the clock, many in flight: what etcd commits when many prefill agents write at once.

The prefill agents of a large cell write one room or two at a time, and etcd's log takes what many of them sent in one
write to disk. So many agents do not fit on the machine: here one process plays their transactions, each what an agent
sends for one room, under a prefix that nobody watches. Run as ``python -m benchmarks.growth.commits CONFIG`` by
benchmarks/harness.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from etcd_pd.store import etcdrpc

from ..harness import play

_VALUE = b'{"dp_rank":3,"epoch":1234567,"state":"assigned"}'


async def _write(endpoint: str, rate: float, seconds: float, in_flight: int) -> int:
    """As many as the rate says, or fewer where etcd does not answer fast enough."""
    import grpc

    parts, answered, started = urlsplit(endpoint), 0, time.monotonic()
    async with grpc.aio.insecure_channel(f"{parts.hostname}:{parts.port}") as channel:
        call: Any = channel.unary_unary("/etcdserverpb.KV/Txn")
        epoch = b"/growth/unwatched/rank"
        numbers = iter(range(int(rate * seconds)))

        async def writer() -> None:
            nonlocal answered
            for number in numbers:
                wait = started + number / rate - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                if time.monotonic() > started + seconds:
                    return
                await call(_registration(b"/growth/unwatched/%d" % number, epoch))
                answered += 1

        await asyncio.gather(*(writer() for _ in range(in_flight)))
    return answered


def _registration(key: bytes, epoch: bytes) -> bytes:
    rpc = etcdrpc
    compares = [rpc.Compare(key=at, target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL) for at in (key, epoch)]
    put = rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=_VALUE))
    return bytes(rpc.TxnRequest(compare=compares, success=[put]).SerializeToString())


def _set_up(config: dict[str, Any]) -> Callable[[Any], Any]:
    def run(start: float) -> int:
        time.sleep(max(0.0, start - time.monotonic()))
        return asyncio.run(_write(config["endpoint"], config["rate"], config["seconds"], config["in_flight"]))

    return run


if __name__ == "__main__":
    etcdrpc.install()
    play(_set_up)
