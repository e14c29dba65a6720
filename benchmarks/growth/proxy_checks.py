"""Whether our watch holds through ``etcd grpc-proxy``: asked of a real proxy, by the agent's own store and agent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import etcd_pd
from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Put, WatchResponse
from etcd_pd.store.etcd import EtcdStore
from etcd_pd.store.stream import EtcdWatch

from ..agents import AgentProcess
from ..harness import Row, etcd_on_disk
from .rig import proxy

_PREFIX = b"/growth/"
#: Together more than etcd puts into one message: a watch that falls behind gets them in fragments.
_KEYS, _VALUE = 30, b"v" * 40_000
#: How long an answer may take, and how long an agent is looked at in an idle cell, seconds.
_PATIENCE, _IDLE_SECONDS = 1.0, 7.0


def checks(_: object) -> Iterator[Row]:
    """A row for etcd itself and one for the proxy before it."""
    with etcd_on_disk() as etcd, proxy(etcd.endpoint) as (behind, _process):
        for name, endpoint in (("etcd", etcd.endpoint), ("grpc-proxy", behind)):
            found = asyncio.run(_ask(endpoint, etcd.endpoint))
            yield {"asked": name, **found, "view_lost": _view_lost(endpoint), "idle_seconds": _IDLE_SECONDS}


async def _ask(endpoint: str, direct: str) -> Row:
    async with _store(endpoint) as store, _store(direct) as writer:
        start = (await writer.txn([], [Put(_PREFIX + b"first", b"1", 0)])).header
        for _ in range(2):
            await writer.txn([], [Put(_PREFIX + b"%d" % n, _VALUE, 0) for n in range(_KEYS)])
        late = await _heard(await store.watch(_PREFIX, start.revision + 1), 2 * _KEYS)
        watch = await store.watch(_PREFIX, start.revision + 3)
        fresh = asyncio.create_task(_heard(watch, 10))
        await asyncio.sleep(0.2)
        for n in range(10):
            await writer.txn([], [Put(_PREFIX + b"new", b"%d" % n, 0)])
        heard = await fresh
        second = await _second(store, start.revision + 13)
        progress = await _progress(await store.watch(_PREFIX, start.revision + 13))
        granted = await store.grant(5)
        return {
            "same_cluster": all(response.header.cluster_id == start.cluster_id for response in late + heard),
            "second_same_cluster": second == start.cluster_id,
            "created_revision": late[0].created and late[0].header.revision == start.revision + 2,
            "in_order": _revisions(heard) == [start.revision + 3 + n for n in range(10)],
            "fragments": any(response.fragment for response in late),
            "largest_message": max(_bytes(response) for response in late),
            "progress": progress,
            "keepalive": await store.keep_alive(granted.lease_id) > 0,
        }


def _store(endpoint: str) -> EtcdStore:
    return EtcdStore(EtcdSettings(endpoints=(endpoint,)))


async def _heard(watch: EtcdWatch, events: int) -> list[WatchResponse]:
    """What a watch says until so many events have come, or nothing more comes."""
    responses: list[WatchResponse] = []

    async def read() -> None:
        async for response in watch:
            responses.append(response)
            if sum(len(response.events) for response in responses) >= events:
                return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _PATIENCE * 3)
    await watch.close()
    return responses


async def _second(store: EtcdStore, revision: int) -> int:
    """The cluster that a watch is told of when another one like it stands already."""
    found = 0
    watches = []
    for _ in range(2):
        watches.append(await store.watch(_PREFIX, revision))
        created = await asyncio.wait_for(anext(aiter(watches[-1])), _PATIENCE * 3)
        found = created.header.cluster_id
    for watch in watches:
        await watch.close()
    return found


async def _progress(watch: EtcdWatch) -> bool:
    """Whether a caught-up watch answers when it is asked for a sign of life."""
    answered: Any = False
    with contextlib.suppress(asyncio.TimeoutError):
        async for response in _timed(watch):
            if response.created:
                watch.request_progress()
            elif not response.events:
                answered = True
                break
    await watch.close()
    return bool(answered)


async def _timed(watch: EtcdWatch) -> Any:
    responses = watch.__aiter__()
    while True:
        yield await asyncio.wait_for(responses.__anext__(), _PATIENCE)


def _revisions(responses: list[WatchResponse]) -> list[int]:
    return [event.mod_revision for response in responses for event in response.events]


def _bytes(response: WatchResponse) -> int:
    return sum(len(event.key) + len(event.kv.value if event.kv else b"") for event in response.events)


def _view_lost(endpoint: str) -> int:
    """How often an agent's view is not synced in an idle cell: looked at a hundred times a second."""
    with AgentProcess(endpoint, "growth-idle") as agent, etcd_pd.connect(agent.socket_path) as client:
        while client.decode.view != "synced":
            client.decode.poll()
            time.sleep(0.01)
        lost, seen, end = 0, "synced", time.monotonic() + _IDLE_SECONDS
        while time.monotonic() < end:
            client.decode.poll()
            view = client.decode.view
            lost += view != "synced" and seen == "synced"
            seen = view
            time.sleep(0.01)
        return lost
