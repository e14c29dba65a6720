"""etcd's JSON gateway: a second way to the same keys, which shares no code with the agent.

What the demo checks, it checks through this. See etcd's documentation on its gRPC gateway: keys and values are base64,
64-bit numbers are strings.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

#: A line of the watch stream holds a whole batch of events.
_LINE_LIMIT = 16 << 20


@dataclass(frozen=True)
class KeyValue:
    """A key as etcd keeps it; of a deleted one only ``key`` and ``mod_revision`` are set."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


@dataclass(frozen=True)
class Range:
    """Keys at one revision."""

    revision: int
    kvs: list[KeyValue]


@dataclass(frozen=True)
class Event:
    """One change of a key."""

    deleted: bool
    kv: KeyValue


class Gateway:
    """A connection to one etcd endpoint. An async context manager.

    Every call raises :class:`aiohttp.ClientError` (an OSError where nothing answers) and nothing else.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    async def __aenter__(self) -> Gateway:
        self._session = aiohttp.ClientSession(self._endpoint, read_bufsize=_LINE_LIMIT, raise_for_status=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def range(self, prefix: str) -> Range:
        """All keys under a prefix."""
        answer = await self._post("/v3/kv/range", _range(prefix))
        return Range(int(answer["header"]["revision"]), [_key_value(kv) for kv in answer.get("kvs", ())])

    async def time_to_live(self, lease: int) -> int:
        """Seconds that a lease has left; -1 where it is gone."""
        answer = await self._post("/v3/lease/timetolive", {"ID": str(lease)})
        return int(answer.get("TTL", 0))

    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[list[Event]]:
        """Changes under a prefix, a batch at a time; the first batch is empty and says that the watch stands."""
        request = {"create_request": {**_range(prefix), "start_revision": str(start_revision)}}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.post("/v3/watch", json=request, timeout=timeout) as answer:
            async for line in answer.content:
                yield [_event(event) for event in json.loads(line)["result"].get("events", ())]

    async def _post(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        async with self._session.post(path, json=request) as answer:
            found: dict[str, Any] = await answer.json()
            return found


def _range(prefix: str) -> dict[str, str]:
    first = prefix.encode()
    # prefixes here are text, so the last byte is never 0xff
    end = first[:-1] + bytes([first[-1] + 1])
    return {"key": base64.b64encode(first).decode(), "range_end": base64.b64encode(end).decode()}


def _event(event: dict[str, Any]) -> Event:
    return Event(event.get("type") == "DELETE", _key_value(event["kv"]))


def _key_value(kv: dict[str, Any]) -> KeyValue:
    return KeyValue(
        key=base64.b64decode(kv["key"]).decode(errors="replace"),
        value=base64.b64decode(kv.get("value", "")),
        create_revision=int(kv.get("create_revision", 0)),
        mod_revision=int(kv.get("mod_revision", 0)),
        lease=int(kv.get("lease", 0)),
    )
