"""What etcd itself saw of the rooms: recorded by a watch of its own, room by room."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

from .etcd_gateway import Event, Gateway


@dataclass
class SeenRoom:
    """A room's key as etcd had it.

    Attributes:
        instance: prefill instance in the key.
        dp_rank: rank in the value; None where the value was no assignment.
        epoch: epoch in the value.
        revision: create_revision.
        lease: lease that the key hung on; 0: none.
        seconds_left: what that lease had left when etcd was asked, at once; None before its answer.
        deleted_at: revision of the key's deletion; 0 while it exists.
    """

    instance: str
    dp_rank: int | None
    epoch: int | None
    revision: int
    lease: int
    seconds_left: int | None = None
    deleted_at: int = 0

    @property
    def lease_lived(self) -> bool:
        """Whether the key had a lease that lived as long as the key.

        etcd puts no key under a dead lease. A room that was released before the question arrived may have taken its
        lease along, since an empty bucket's lease is revoked; so a lease found dead counts only against a living key.
        """
        return self.lease != 0 and (self.deleted_at != 0 or (self.seconds_left or 0) > 0)


class RoomObserver:
    """Watches a cell's rooms from the moment it is entered until it is left.

    Attributes:
        rooms: every room that had a key meanwhile.
    """

    def __init__(self, gateway: Gateway, root: str) -> None:
        self.rooms: dict[int, SeenRoom] = {}
        self._gateway = gateway
        self._prefix = f"{root}/v1/rooms/"
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> RoomObserver:
        now = (await self._gateway.range(self._prefix)).revision
        batches = self._gateway.watch(self._prefix, now + 1)
        await anext(batches)
        self._watching = self._spawn(self._follow(batches))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait_until_empty(self, timeout: float) -> list[str]:
        """Wait until the cell has no room key and the watch has seen them go; the keys left after ``timeout``."""
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            if self._watching.done():
                raise ConnectionError(f"the observer's watch has ended: {self._watching.exception()}")
            left = [kv.key for kv in (await self._gateway.range(self._prefix)).kvs]
            settled = not left and all(room.deleted_at for room in self.rooms.values())
            if settled or asyncio.get_running_loop().time() > deadline:
                return left
            await asyncio.sleep(0.05)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        return task

    async def _follow(self, batches: AsyncIterator[list[Event]]) -> None:
        async for events in batches:
            for event in events:
                self._record(event)

    def _record(self, event: Event) -> None:
        instance, _, room = event.kv.key.removeprefix(self._prefix).rpartition("/")
        if not room.isdigit():
            return
        seen = self.rooms.get(int(room))
        if event.deleted:
            if seen:
                seen.deleted_at = event.kv.mod_revision
        elif seen is None:
            value = _object(event.kv.value)
            seen = SeenRoom(
                instance, value.get("dp_rank"), value.get("epoch"), event.kv.create_revision, event.kv.lease
            )
            self.rooms[int(room)] = seen
            self._spawn(self._ask_lease(seen))

    async def _ask_lease(self, seen: SeenRoom) -> None:
        seen.seconds_left = await self._gateway.time_to_live(seen.lease)


def _object(value: bytes) -> dict[str, int]:
    try:
        found = json.loads(value)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
