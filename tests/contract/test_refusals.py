"""What real servers refuse, and whether for good. tests/unit/store has the whole table of their words."""

from __future__ import annotations

import pytest

from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Delete, Put
from etcd_pd.errors import StoreBusy, StoreRejected
from etcd_pd.store.etcd import EtcdStore
from tests.support.etcd_server import EtcdServer

pytestmark = [pytest.mark.integration, pytest.mark.every_etcd, pytest.mark.asyncio]


async def test_a_full_etcd_is_busy_with_what_needs_space_and_takes_the_rest(fresh_etcd: EtcdServer) -> None:
    async with EtcdStore(EtcdSettings(endpoints=(fresh_etcd.endpoint,))) as store:
        lease = (await store.grant(60)).lease_id
        await store.txn([], [Put(b"/k", b"v", lease)])
        fresh_etcd.ctl.alarm("NOSPACE", active=True)
        for call in (store.txn([], [Put(b"/l", b"", 0)]), store.grant(60)):
            with pytest.raises(StoreBusy, match="database space exceeded"):
                await call
        assert (await store.txn([], [Delete(b"/k")])).succeeded
        assert await store.keep_alive(lease) == 60
        await store.revoke(lease)
        fresh_etcd.ctl.alarm("NOSPACE", active=False)
        assert (await store.txn([], [Put(b"/l", b"", 0)])).succeeded


async def test_what_can_never_be_written_is_refused_for_good(etcd: EtcdServer, root: str) -> None:
    async with EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as store:
        with pytest.raises(StoreRejected, match="request is too large"):
            await store.txn([], [Put(root.encode(), b"x" * 2_000_000, 0)])
        with pytest.raises(StoreRejected, match="too large lease TTL"):
            await store.grant(9_000_000_001)
