"""What stays of an instance when its ranks have gone at different times, and who may still wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from etcd_pd import Client, Ended, Rank, Resolved, Topology
from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Condition, Delete, Operation, TxnResult
from etcd_pd.errors import StoreUnavailable
from tests.support.agent_in_memory import InMemory, running, until

pytestmark = pytest.mark.asyncio

#: Of the agents' sessions, seconds.
TTL = 2
TWO = Topology(dp=2)


@pytest_asyncio.fixture
async def agents(tmp_path: Path) -> AsyncIterator[tuple[InMemory, InMemory]]:
    """Two agents of one cell."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    settings: dict[str, Any] = {"session_ttl_seconds": TTL, "etcd": EtcdSettings(request_timeout_seconds=0.5)}
    async with (
        running(tmp_path / "a", agent_id="a", **settings) as a,
        running(tmp_path / "b", a.store, agent_id="b", **settings) as b,
    ):
        yield a, b


async def wait_for_a_sure(world: InMemory, decoder: Client) -> None:
    """Decode waits for room 7 of the start that stands now."""
    decoder.decode.want("p", 7)
    (wait,) = await until(lambda: [w for each in world.agent.view.waits._pending.values() for w in each], "it waits")
    world.agent.view.waits.pin(wait.asked_at)


async def answer(prefill: Client, decoder: Client) -> object:
    """What becomes of the only wait."""
    events: list[object] = []

    def look() -> bool:
        prefill.prefill.poll()
        events.extend(event for event in decoder.decode.poll() if isinstance(event, (Ended, Resolved)))
        return bool(events)

    await until(look, "an answer")
    return events[0]


async def test_nobody_is_lost_when_the_last_living_rank_s_session_ends_and_another_agent_has_the_instance_s_key(
    agents: tuple[InMemory, InMemory],
) -> None:
    a, b = agents
    alive, dead, decoder = await a.prefill(0, topology=TWO), await b.prefill(1, topology=TWO), b.client()
    await wait_for_a_sure(b, decoder)
    b.end(dead)
    await until(lambda: "p" in b.agent.announcer._withdrawn, "it is withdrawn")
    before = alive.prefill.epoch
    a.store.etcd.revoke(a.agent.session.lease_id)
    a.store.publish()
    await until(lambda: (alive.prefill.poll(), alive.prefill.epoch > before)[1], "it stands anew")
    alive.prefill.register(7)
    assert isinstance(await answer(alive, decoder), Resolved)


async def test_nobody_is_lost_when_the_key_of_the_last_living_rank_is_deleted(world: InMemory) -> None:
    alive, dead = await world.prefill(0, topology=TWO), await world.prefill(1, topology=TWO)
    decoder = world.client()
    await wait_for_a_sure(world, decoder)
    world.end(dead)
    await until(lambda: "p" in world.agent.announcer._withdrawn, "it is withdrawn")
    before = alive.prefill.epoch
    world.store.etcd.txn([], [Delete(world.keys.rank("p", Rank(0)))])
    world.store.publish()
    await until(lambda: (alive.prefill.poll(), alive.prefill.epoch > before)[1], "it stands anew")
    alive.prefill.register(7)
    assert isinstance(await answer(alive, decoder), Resolved)


@pytest.mark.parametrize("tried_again", [False, True])
async def test_the_instance_s_key_goes_when_its_last_ranks_went_with_another_agent_s_session(
    agents: tuple[InMemory, InMemory], tried_again: bool
) -> None:
    a, b = agents
    await a.prefill(0, topology=TWO)
    b.end(await b.prefill(1, topology=TWO))  # whose agent's lease the instance's key hangs on
    await until(lambda: "p" in b.agent.announcer._withdrawn, "it is withdrawn")
    if tried_again:
        listing, another = b.store.hold("list"), b.client()
        b.announce(another, 1, topology=TWO)
        await until(lambda: (another.prefill.poll(), b.agent.announcer.ranks)[1], "it is being announced")
        b.end(another)
        await until(lambda: not b.agent.announcer.ranks, "which its process did not live to see")
        listing.set()
    a.agent.announcer._ranks.clear()  # the node is gone
    a.store.etcd.revoke(a.agent.session.lease_id)
    a.store.publish()
    await until(lambda: b.keys.prefill("p") not in b.store.etcd.keys, "nothing is left")
    await until(lambda: not b.agent.announcer._withdrawn, "nor remembered")


@pytest.mark.parametrize("dp", [2, 3], ids=["dies", "is refused"])
async def test_the_instance_s_key_goes_when_its_last_ranks_went_while_another_was_being_announced(
    agents: tuple[InMemory, InMemory], dp: int
) -> None:
    a, b = agents
    await a.prefill(0, topology=TWO)
    b.end(await b.prefill(1, topology=TWO))
    of_b = b.agent.announcer
    await until(lambda: "p" in of_b._withdrawn and not of_b.background.tasks, "it is withdrawn")
    listing, another = b.store.hold("list"), b.client()
    b.announce(another, 1, topology=Topology(dp=dp))
    await until(lambda: (another.prefill.poll(), b.agent.announcer.ranks)[1], "it is being announced")
    a.agent.announcer._ranks.clear()  # the node is gone
    a.store.etcd.revoke(a.agent.session.lease_id)
    a.store.publish()
    await until(lambda: not b.agent.view.instances["p"].endpoints, "its last rank has gone")
    if dp == TWO.dp:
        b.end(another)
    listing.set()
    await until(lambda: (another.prefill.poll(), not b.agent.announcer.ranks)[1], "nobody is announced any more")
    await until(lambda: b.keys.prefill("p") not in b.store.etcd.keys, "nothing is left")


async def test_a_withdrawn_rank_is_forgotten_when_its_sibling_s_agent_has_ended_the_instance(world: InMemory) -> None:
    client, key = await world.prefill(), world.keys.rank("p", Rank(0))
    answered, real = asyncio.Event(), world.store.txn

    async def txn(compares: Sequence[Condition], operations: Sequence[Operation]) -> TxnResult:
        result = await real(compares, operations)
        if operations == [Delete(key)]:
            await answered.wait()
        return result

    world.store.txn = txn  # type: ignore[method-assign]
    world.end(client)
    await until(lambda: not world.agent.view.instances["p"].endpoints, "it is deleted")
    world.store.etcd.txn([], [Delete(world.keys.prefill("p"))])
    world.store.publish()
    await until(lambda: "p" not in world.agent.view.instances, "and its instance")
    answered.set()
    await until(lambda: not world.agent.announcer.background.tasks, "all is written")
    assert world.agent.announcer._withdrawn == {}


async def test_a_wait_by_an_address_goes_on_when_the_older_of_two_that_claim_it_ends(world: InMemory) -> None:
    older, decoder = await world.prefill(instance="old"), world.client()
    decoder.decode.want("host:1", 7)
    await until(lambda: world.agent.view.waits._pending, "decode waits")
    newer = await world.prefill(instance="new", launch_id="another")
    world.end(older)
    await until(lambda: "old" not in world.agent.view.instances, "the older one has ended")
    newer.prefill.register(7)
    assert isinstance(await answer(newer, decoder), Resolved)


async def test_a_computed_wait_goes_back_when_the_newer_of_two_that_claim_its_address_ends(world: InMemory) -> None:
    policy, decoder = "follow_bootstrap_room", world.client()
    await world.prefill(1, instance="old", policy=policy)
    decoder.decode.want("host:1", 4)  # whose rank 0 is not there yet
    await until(lambda: world.agent.view.waits._for_rank, "decode waits")
    newer = await world.prefill(1, instance="new", launch_id="another", policy=policy)
    world.end(newer)
    await until(lambda: "new" not in world.agent.view.instances, "the newer one has ended")
    older = await world.prefill(0, instance="old", policy=policy)
    assert isinstance(await answer(older, decoder), Resolved)


async def test_rooms_stay_with_their_rank_when_an_agent_ends_and_its_session_cannot_be_ended(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        prefill = await world.prefill()
        await world.registered(prefill, 7)
        world.store.hold("txn")
        world.end(prefill)
        await until(lambda: world.store.calls[-1] == "txn", "its rank's key is being deleted")
        world.store.fail("revoke", StoreUnavailable("revoke", "etcd is busy"))
    assert world.keys.rank("p", Rank(0)) in world.store.etcd.keys and world.room(7), "one is true with the other alone"
