"""Ranks that stay for a while after their process: each is withdrawn once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from etcd_pd import Announced, Client, Drained, RankDraining, RankEnded, Refused, Registered, Rejected
from etcd_pd.agent.connection import EngineConnection
from etcd_pd.agent.lingering import Lingering
from etcd_pd.client.drain import drain
from etcd_pd.core.claims import LocalRank
from etcd_pd.core.own_room import RankRef
from etcd_pd.core.records import Condition, Operation, TxnResult
from etcd_pd.wire.values import DRAINING, InstanceInfo, Rank, RankEndpoint, Topology
from tests.support.agent_in_memory import InMemory, running, until

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


P0 = RankRef("p", 0)


def engine_of(world: InMemory, tp: int = 0) -> EngineConnection:
    """The connection of a rank's process."""
    return next(one for one in world.agent.server.connections if one.rank and one.rank.rank.tp == tp)


async def pair(world: InMemory) -> tuple[Client, Client]:
    """The two processes of a DP rank, which linger."""
    first, second = world.client(), world.client()
    for tp, one in enumerate((first, second)):
        world.announce(one, rank=Rank(0, 0, tp), topology=Topology(dp=1, tp=2), port=5000 + tp, linger=30.0)
    for one in (first, second):
        await world.event(one, Announced)
    return first, second


async def knows_another(client: Client, epoch: int) -> None:
    """Wait until a client knows of an epoch after this one."""
    await until(lambda: (client.prefill.poll(), client.prefill.epoch > epoch)[1], "it knows of the next epoch")


def delay_answer(world: InMemory, key: bytes) -> asyncio.Event:
    """What is written under a key happens, and its answer comes when the event is set."""
    real, gate = world.store.txn, asyncio.Event()

    async def txn(compares: Sequence[Condition], operations: Sequence[Operation]) -> TxnResult:
        result = await real(compares, operations)
        if any(operation.key == key for operation in operations):
            await gate.wait()
        return result

    world.store.txn = txn  # type: ignore[method-assign]
    return gate


def cut(world: InMemory, tp: int = 0) -> LocalRank:
    """The connection of a rank's process breaks: its lingering rank."""
    engine_of(world, tp).close("cut")
    (left,) = world.agent.ranks.lingering.of("p")
    return left


def end_session(world: InMemory) -> None:
    world.store.etcd.revoke(world.agent.session.lease_id)
    world.store.publish()


async def end_epoch_behind(world: InMemory, client: Client) -> int:
    """Its connection breaks, the session expires, and its rank stands anew before it has noticed: the epoch of now."""
    before = client.prefill.epoch
    left = cut(world)
    end_session(world)
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
    client, sibling = await pair(world)
    await end_epoch_behind(world, client)
    await knows_another(sibling, client.prefill.epoch)
    await world.registered(sibling, 8)
    await world.event(client, RankEnded)
    assert world.agent.book.count(P0) == 1


async def test_a_room_of_the_present_epoch_stays_when_the_claim_of_a_sibling_that_comes_back_is_not_answered_yet(
    world: InMemory,
) -> None:
    client, sibling = await pair(world)
    before = client.prefill.epoch
    cut(world)
    answered = delay_answer(world, world.keys.rank("p", Rank(0)))
    end_session(world)
    await knows_another(sibling, before)
    await world.registered(sibling, 8)
    await world.event(client, RankEnded)
    answered.set()
    await world.event(client, Announced)
    assert world.agent.book.count(P0) == 1


async def test_a_room_of_the_present_epoch_stays_when_a_sibling_s_claim_finds_another_history(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        client, sibling = clients = await pair(world)
        await world.registered(sibling, 7)
        world.clients.clear()
        store, before = world.store, client.prefill.epoch
        world.stop.set()
        for one in clients:
            await until(lambda one=one: (one.prefill.poll(), one.state == "connecting")[1], "the agent is gone")  # type: ignore[misc]
    store.etcd.revision, store.etcd.keys, store.etcd.history, store.etcd.cluster_id = 30, {}, [], 2
    async with running(tmp_path, store) as world:
        world.clients += clients
        answered = delay_answer(world, world.keys.rank("p", Rank(0)))
        await until(
            lambda: (client.prefill.poll(), sibling.prefill.poll(), sibling.prefill.epoch > before)[2], "it knows"
        )
        sibling.prefill.register(8)
        await until(lambda: (sibling.prefill.poll(), world.agent.book.count(P0))[1], "said")
        answered.set()
        await world.event(client, Announced)
        await world.event(sibling, Registered)
        assert world.agent.book.count(P0) == 1


async def test_a_successor_holds_no_dead_room_when_its_predecessor_s_epoch_had_ended_unseen(world: InMemory) -> None:
    client, successor = await world.prefill(linger=30.0), world.client()
    old = await world.registered(client, 7)
    (watch,) = world.store._watches
    watch.freeze()
    await world.linger(client)
    (left,) = world.agent.ranks.lingering.of("p")
    before = left.key_epoch
    world.store.etcd.revoke(world.agent.session.lease_id)
    await until(lambda: left.key_epoch > before, "it was claimed anew, which the view does not know yet")
    world.announce(successor, linger=30.0)
    await until(lambda: (successor.prefill.poll(), not world.agent.ranks.lingering)[1], "it is taken over")
    assert (await world.registered(successor, 7)).epoch == old.epoch, "as far as anybody knows"
    world.store.drop_watches()
    assert (await world.event(successor, RankEnded)).epoch == old.epoch
    present = (await world.event(successor, Announced)).epoch
    assert (await world.registered(successor, 7)).epoch == present > old.epoch


async def test_a_process_is_refused_when_its_rank_was_refused_while_nobody_spoke_for_it(world: InMemory) -> None:
    await world.prefill(1, topology=Topology(dp=2))  # the same launch with another topology
    listing, client = world.store.hold("list"), world.client()
    world.announce(client, linger=60.0)
    await until(lambda: (client.prefill.poll(), len(world.agent.announcer.ranks) == 2)[1], "it is claimed")
    next(one for one in world.agent.server.connections if one.rank and one.rank.rank.dp == 0).close("cut")
    listing.set()
    await until(lambda: len(world.agent.announcer.ranks) == 1, "it is refused")
    assert (await world.event(client, Refused)).error.instance == "p"


async def test_a_process_is_notified_once_that_it_is_drained_when_its_rank_ended_meanwhile(world: InMemory) -> None:
    client = await world.prefill(linger=30.0)
    await world.registered(client, 7)
    client.prefill.drain()
    await until(lambda: (rank := engine_of(world).rank) and rank.draining, "it drains")
    await end_epoch_behind(world, client)
    events: list[object] = []

    def seen(kind: type) -> bool:
        events.extend(client.prefill.poll())
        return any(isinstance(event, kind) for event in events)

    await until(lambda: seen(RankEnded) and seen(Drained), "it knows of its end, and is drained")
    client.prefill.release(7)
    await until(lambda: seen(Drained) and not client.prefill._intents.endings, "whatever was said before has come")
    assert [type(event) for event in events if isinstance(event, (Drained, RankEnded))] == [RankEnded, Drained]


async def drain_node(world: InMemory) -> None:
    await asyncio.to_thread(drain, world.settings.socket_path, 10.0)


@pytest.mark.parametrize("linger", [0.0, 30.0])
async def test_a_rank_lets_no_room_in_when_its_process_connects_anew_after_its_node_was_drained(
    world: InMemory, linger: float
) -> None:
    client = await world.prefill(linger=linger)
    await drain_node(world)
    engine_of(world).close("cut")
    await until(
        lambda: (client.prefill.poll(), not world.agent.ranks.lingering and client.state == "connected")[1], "back"
    )
    client.prefill.register(7)
    assert isinstance((await world.event(client, Rejected)).error, RankDraining)
    instances = world.agent.view.instances
    await until(lambda: "p" in instances and instances["p"].endpoints.get(Rank(0)), "it is in etcd")
    await until(lambda: instances["p"].endpoints[Rank(0)].state == DRAINING, "etcd says that it drains")


async def test_a_rank_takes_rooms_when_another_process_takes_it_over_after_its_node_was_drained(
    world: InMemory,
) -> None:
    client = await world.prefill(linger=30.0)
    await drain_node(world)
    await world.linger(client)
    await world.registered(await world.prefill(linger=30.0), 7)


async def test_a_process_holds_a_room_of_the_present_epoch_when_its_claim_at_a_new_agent_is_answered_late(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as world:
        client, sibling = clients = await pair(world)
        world.clients.clear()
        store, before, session = world.store, client.prefill.epoch, world.agent.session.lease_id
    store.etcd.revoke(session)
    async with running(tmp_path, store) as world:
        world.clients += clients
        answered = delay_answer(world, world.keys.rank("p", Rank(0)))
        await until(
            lambda: (client.prefill.poll(), sibling.prefill.poll(), sibling.prefill.epoch > before)[2], "it knows"
        )
        assert client.prefill.epoch == before, "nobody knows yet whether its claim was written"
        client.prefill.register(7)
        await until(lambda: (client.prefill.poll(), engine_of(world).said == 1)[1], "said")
        await world.registered(await world.prefill(0, "q"), 8)  # which is written after that, or with it
        answered.set()
        await until(lambda: (client.prefill.poll(), client.prefill.epoch > before)[1], "it knows of its epoch")
        await until(lambda: (client.prefill.poll(), not client.prefill._intents.asked)[1], "it is answered")
        assert 7 in client.prefill._intents.held


async def test_a_rank_lets_no_room_in_when_its_process_was_away_while_its_node_was_drained(world: InMemory) -> None:
    client = await world.prefill(linger=30.0)
    cut(world)
    await drain_node(world)
    await until(lambda: (client.prefill.poll(), not world.agent.ranks.lingering)[1], "it is back")
    client.prefill.register(7)
    assert isinstance((await world.event(client, Rejected)).error, RankDraining)


async def test_a_node_is_not_drained_when_a_rank_that_lingers_has_rooms(world: InMemory) -> None:
    client = await world.prefill(linger=30.0)
    await world.registered(client, 7)
    cut(world)
    draining = asyncio.create_task(drain_node(world))
    await until(lambda: world.agent.ranks.drained, "its agent is to drain")
    await until(lambda: (client.prefill.poll(), not world.agent.ranks.lingering)[1], "it is back")
    assert not draining.done()
    client.prefill.release(7)
    await until(lambda: (client.prefill.poll(), draining.done())[1], "the node is drained")
    await draining
