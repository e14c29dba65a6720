"""Ranks that stay for a while after their process: each is withdrawn once."""

from __future__ import annotations

import asyncio

import pytest

from etcd_pd import Announced, Client, RankEnded
from etcd_pd.agent.lingering import Lingering
from etcd_pd.core.claims import LocalRank
from etcd_pd.core.own_room import RankRef
from etcd_pd.wire.values import InstanceInfo, Rank, RankEndpoint, Topology
from tests.support.agent_in_memory import InMemory, until

pytestmark = pytest.mark.asyncio


def rank(port: int, linger: float = 0.01) -> LocalRank:
    info = InstanceInfo("", "launch", (), Topology(), "round_robin")
    return LocalRank("p", Rank(0), info, RankEndpoint(Rank(0), "10.0.0.1", port), linger=linger)


async def test_both_are_withdrawn_when_two_processes_of_one_rank_have_gone() -> None:
    """The second may have announced itself before the agent noticed that the first was gone."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    withdrawn: list[LocalRank] = []
    lingering = Lingering(withdrawn.append)
    first, second = rank(1, linger=600.0), rank(2)
    lingering.add(first)
    lingering.add(second)
    assert withdrawn == [first] and lingering.of("p") == [second]
    await until(lambda: not lingering, "the second has gone")
    assert withdrawn == [first, second] and errors == []


async def test_a_rank_is_not_withdrawn_when_its_process_s_successor_takes_it_over() -> None:
    withdrawn: list[LocalRank] = []
    lingering = Lingering(withdrawn.append)
    left = rank(1, linger=600.0)
    lingering.add(left)
    assert lingering.take_over(rank(1)) is left
    assert withdrawn == [] and not lingering


async def end_epoch_behind(world: InMemory, client: Client) -> int:
    """Its connection breaks, the session expires, and its rank stands anew before it has noticed: the epoch of now."""
    before = client.prefill.epoch
    engine = next(one for one in world.agent.server.connections if one.rank and one.rank.rank.tp == 0)
    engine.close("cut")
    (left,) = world.agent.ranks.lingering.of("p")
    world.store.etcd.revoke(world.agent.session.lease_id)
    world.store.publish()
    await until(lambda: left.known_epoch > before, "the rank stands anew")
    return left.known_epoch


async def test_a_process_is_notified_when_its_epoch_ended_while_nobody_spoke_for_its_rank(world: InMemory) -> None:
    client = await world.prefill(linger=30.0)
    before = client.prefill.epoch
    await world.registered(client, 7)
    present = await end_epoch_behind(world, client)
    assert (await world.event(client, RankEnded)).epoch == before
    assert (await world.event(client, Announced)).epoch == present
    assert (await world.registered(client, 7)).epoch == present, "it holds nothing of the epoch before"


async def test_a_room_of_the_present_epoch_stays_when_a_sibling_comes_back_with_the_one_before(world: InMemory) -> None:
    topology = Topology(dp=1, tp=2)
    client, sibling = world.client(), world.client()
    for tp, one in enumerate((client, sibling)):
        world.announce(one, rank=Rank(0, 0, tp), topology=topology, port=5000 + tp, linger=30.0)
    for one in (client, sibling):
        await world.event(one, Announced)
    present = await end_epoch_behind(world, client)
    await until(lambda: (sibling.prefill.poll(), sibling.prefill.epoch == present)[1], "the sibling knows")
    await world.registered(sibling, 8)
    await world.event(client, RankEnded)
    assert world.agent.book.count(RankRef("p", 0)) == 1
