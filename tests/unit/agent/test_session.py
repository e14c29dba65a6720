"""The agent's session alone, on an in-memory store: what a restore of etcd makes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from etcd_pd.agent.session import Session
from etcd_pd.errors import LeaseNotFound
from tests.support.agent_in_memory import until
from tests.support.memory_etcd import MemoryEtcd
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.asyncio

#: Of the session, seconds; it is renewed three times in that.
TTL = 1


class Running:
    """A session that runs, and its store."""

    def __init__(self) -> None:
        self.store = MemoryStore(MemoryEtcd(time.monotonic))
        self.granted: list[int] = []
        self.session = Session(self.store, TTL, self.granted.append)

    async def next_grant(self) -> int:
        """The id of one more lease than there were."""
        count = len(self.granted)
        await until(lambda: len(self.granted) > count, "another lease")
        return self.granted[-1]


@pytest_asyncio.fixture
async def running() -> AsyncIterator[Running]:
    found = Running()
    work = asyncio.create_task(found.session.run())
    try:
        await until(lambda: found.granted, "the first lease")
        yield found
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def test_a_session_is_revoked_as_a_whole_when_it_is_abandoned(running: Running) -> None:
    first = running.session.lease_id
    running.session.abandon()
    assert running.session.lease_id == 0
    second = await running.next_grant()
    assert running.store.etcd.leases() == [second] != [first]


async def test_no_lease_is_granted_when_the_abandoned_one_cannot_be_revoked_yet(running: Running) -> None:
    revoking = running.store.hold("revoke")
    running.session.abandon()
    await until(lambda: running.store.calls[-1] == "revoke", "its end is asked for")
    assert running.store.calls.count("grant") == 1
    revoking.set()
    second = await running.next_grant()
    assert running.store.etcd.leases() == [second]


async def test_no_loss_is_counted_when_a_keepalive_is_refused_of_a_lease_that_was_abandoned(running: Running) -> None:
    renewing = running.store.hold("keep_alive")
    await until(lambda: running.store.calls[-1] == "keep_alive", "the lease is renewed")
    running.store.fail("keep_alive", LeaseNotFound("keep_alive"))
    running.session.abandon()
    renewing.set()
    second = await running.next_grant()
    assert (running.session.losses, running.session.lease_id) == (0, second)
