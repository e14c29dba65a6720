"""Rooms that a doctor, or ``helm test``, registers and resolves: whose they are, and that nothing of them stays."""

from __future__ import annotations

import asyncio

import pytest

from etcd_pd.kubernetes import round_trip
from tests.support.agent_in_memory import InMemory, until

pytestmark = pytest.mark.asyncio


def left_behind(world: InMemory) -> list[bytes]:
    return [key for key in world.store.etcd.keys if round_trip.PREFIX.encode() in key]


async def test_nothing_is_left_when_rooms_went_there_and_back(world: InMemory) -> None:
    path = world.settings.socket_path
    seconds = await asyncio.to_thread(round_trip.run, path, path, 10.0, lambda _: None)
    assert len(seconds) == round_trip.ROOMS
    await until(lambda: left_behind(world) == [], "all of it is gone")


async def test_nothing_is_left_when_a_room_fails_amid_it(world: InMemory) -> None:
    seen: list[bytes] = []

    def fail(line: str) -> None:
        seen.extend(left_behind(world))
        raise RuntimeError(line)

    path = world.settings.socket_path
    with pytest.raises(RuntimeError, match="dp_rank=1"):
        await asyncio.to_thread(round_trip.run, path, path, 10.0, fail)
    assert any(b"/rooms/" in key for key in seen) and any(b"/ranks/" in key for key in seen)
    await until(lambda: left_behind(world) == [], "all of it is gone")
