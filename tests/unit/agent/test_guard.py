"""What a registration is compared with: every key of its DP rank, as the epoch ends with any of them."""

from __future__ import annotations

import asyncio

import pytest

from etcd_pd import Announced, Rank, Topology
from etcd_pd.core.records import Delete
from tests.support.agent_in_memory import InMemory, until

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("dead", [0, 1, 2])
async def test_a_registration_is_refused_when_any_process_of_its_rank_has_died_unnoticed(
    world: InMemory, dead: int
) -> None:
    clients = [world.client() for _ in range(3)]
    for tp_rank, client in enumerate(clients):
        world.announce(client, rank=Rank(0, 0, tp_rank), topology=Topology(dp=2, tp=3))
    for client in clients:
        await world.event(client, Announced)
    first = clients[0]
    await until(lambda: world.agent.view.epoch("p", 0), "all of them are there")
    for watch in world.store._watches:
        watch.freeze()  # the agent does not learn what comes now
    world.store.etcd.txn([], [Delete(world.keys.rank("p", Rank(0, 0, dead)))])
    before = len(world.store.calls)
    first.prefill.register(7)
    await until(lambda: (first.prefill.poll(), "txn" in world.store.calls[before:])[1], "it is tried")
    await asyncio.sleep(0.05)
    assert world.store.etcd.scan(world.keys.rooms()).kvs == [], "nothing was written under the dead epoch"


async def test_nothing_is_written_under_a_dead_epoch_when_the_rank_s_key_is_back_and_the_view_does_not_know(
    world: InMemory,
) -> None:
    client = world.client()
    world.announce(client)
    await world.event(client, Announced)
    await until(lambda: world.agent.view.epoch("p", 0), "it is there")
    [local] = world.agent.announcer.ranks
    before = local.key_epoch
    for watch in world.store._watches:
        watch.freeze()
    world.store.etcd.revoke(world.agent.session.lease_id)
    await until(lambda: local.key_epoch not in (0, before), "it is written anew")
    client.prefill.register(7)
    await until(lambda: (client.prefill.poll(), len(world.agent.book))[1], "it is asked for")
    await asyncio.sleep(0.05)
    assert world.store.etcd.scan(world.keys.rooms()).kvs == [], "its epoch is over, whatever the view says"
