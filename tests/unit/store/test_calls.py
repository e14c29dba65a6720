"""Calls on a connection that is closed under them, as one that another call left."""

from __future__ import annotations

import asyncio

import pytest

from etcd_pd.config import EtcdSettings
from etcd_pd.errors import StoreUnavailable
from etcd_pd.store import etcdrpc as rpc
from etcd_pd.store.connections import Connection
from etcd_pd.store.etcd import EtcdStore

pytestmark = pytest.mark.asyncio


async def call(store: EtcdStore, connection: Connection) -> object:
    return await store._calls.call_on(connection, "settle", "KV", "Range", rpc.RangeRequest(key=b"/k"))


async def test_a_call_in_flight_is_unavailable_when_its_connection_is_closed(silent: str) -> None:
    async with EtcdStore(EtcdSettings(endpoints=(silent,), request_timeout_seconds=30.0)) as store:
        connection = await store._calls.connections.use()
        calling = asyncio.ensure_future(call(store, connection))
        await asyncio.sleep(0)  # it has begun
        await connection.close()
        with pytest.raises(StoreUnavailable):
            await calling


async def test_a_call_is_unavailable_when_its_connection_was_closed_before(silent: str) -> None:
    async with EtcdStore(EtcdSettings(endpoints=(silent,))) as store:
        connection = await store._calls.connections.use()
        await connection.close()
        with pytest.raises(StoreUnavailable):
            await call(store, connection)


async def test_a_call_is_cancelled_when_its_task_is(silent: str) -> None:
    async with EtcdStore(EtcdSettings(endpoints=(silent,), request_timeout_seconds=30.0)) as store:
        calling = asyncio.ensure_future(call(store, await store._calls.connections.use()))
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
