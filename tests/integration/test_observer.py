"""The demo's own eyes: etcd's JSON gateway, and the record of the rooms that a watch of its own makes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import aiohttp
import pytest

from etcd_pd.reference.local.embedded import EmbeddedEtcd
from etcd_pd.reference.stack.etcd_gateway import Gateway
from etcd_pd.reference.stack.observer import RoomObserver
from tests.support.etcdctl import EtcdCtl

VALUE = '{"dp_rank":3,"epoch":7,"state":"assigned"}'


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with EmbeddedEtcd.start() as server:
        yield server.endpoint


def test_a_room_is_recorded_from_its_key_to_its_deletion(endpoint: str, root: str) -> None:
    ctl = EtcdCtl(endpoint)
    lease = ctl.grant(60)
    ctl.put(f"{root}/v1/rooms/p/1", VALUE)

    async def observe() -> RoomObserver:
        async with Gateway(endpoint) as gateway, RoomObserver(gateway, root) as observer:
            created = ctl.put(f"{root}/v1/rooms/p/{2**63 - 1}", VALUE, lease)
            ctl.put(f"{root}/v1/prefill/p", "{}", lease)
            ctl.put(f"{root}/v1/rooms/p/2", "garbage")
            await _until(lambda: len(observer.rooms) == 2 and observer.rooms[2**63 - 1].seconds_left is not None)
            seen = observer.rooms[2**63 - 1]
            assert (seen.instance, seen.dp_rank, seen.epoch, seen.revision, seen.lease) == ("p", 3, 7, created, lease)
            assert 50 < (seen.seconds_left or 0) <= 60
            assert seen.lease_lived and not seen.deleted_at
            assert observer.rooms[2].dp_rank is None and not observer.rooms[2].lease_lived
            assert len(await observer.wait_until_empty(0.1)) == 3
            ctl.delete_prefix(f"{root}/v1/rooms/")
            assert await observer.wait_until_empty(5) == []
            assert seen.deleted_at > created
            return observer

    assert set(asyncio.run(observe()).rooms) == {2, 2**63 - 1}


def test_a_lease_that_is_gone_is_distinguished_when_another_lives(endpoint: str) -> None:
    ctl = EtcdCtl(endpoint)
    lease = ctl.grant(60)

    async def ask() -> tuple[int, int]:
        async with Gateway(endpoint) as gateway:
            alive = await gateway.time_to_live(lease)
            ctl.revoke(lease)
            return alive, await gateway.time_to_live(lease)

    alive, gone = asyncio.run(ask())
    assert alive > 0 > gone


def test_an_observer_whose_etcd_is_gone_says_so(root: str) -> None:
    async def observe() -> None:
        with EmbeddedEtcd.start() as etcd:
            async with Gateway(etcd.endpoint) as gateway, RoomObserver(gateway, root) as observer:
                etcd.process.stop()
                await observer.wait_until_empty(5)

    with pytest.raises((ConnectionError, aiohttp.ClientError)):
        asyncio.run(observe())


async def _until(condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), 5)
