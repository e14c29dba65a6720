"""A process whose connection broke while its rank lingers says again what was not answered: no room has it twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from etcd_pd import Client, Registered, RegistrationTimeout, Rejected
from etcd_pd.wire import messages
from tests.support.agent_in_memory import InMemory, running, until
from tests.unit.agent.test_lingering import P0, cut, delay_answer, engine_of

pytestmark = pytest.mark.asyncio


async def says_again(world: InMemory, client: Client) -> None:
    """Wait until it has connected anew and said all that it has to say."""
    await until(lambda: (client.prefill.poll(), not world.agent.ranks.lingering)[1], "it is back")
    await until(lambda: engine_of(world).said == client.prefill._intents.sequence, "it has said all")


async def settled(client: Client) -> None:
    await until(lambda: (client.prefill.poll(), not len(client.prefill._intents))[1], "everything is answered")


async def release(world: InMemory, client: Client, room: int) -> None:
    client.prefill.release(room)
    await settled(client)
    assert not world.room(room)


async def successor_of(world: InMemory, client: Client) -> Client:
    """Another process that goes on for a rank's first one, which ended."""
    world.clients.remove(client)
    client.detach()
    await until(lambda: world.agent.ranks.lingering, "it lingers")
    return await world.prefill(linger=30.0)


@pytest.mark.parametrize("rooms", [[7], [7, 8]])
async def test_a_failed_room_is_written_once_when_its_process_says_it_again(world: InMemory, rooms: list[int]) -> None:
    client, key = await world.prefill(linger=30.0), world.keys.room("p", 7)
    answered = delay_answer(world, key)
    client.prefill.register_lot(rooms) if len(rooms) > 1 else client.prefill.register(7)
    client.prefill.fail(7, "why")
    await until(lambda: (client.prefill.poll(), world.room(7))[1], "it is written, which the agent does not know yet")
    cut(world)
    await says_again(world, client)
    written = world.store.etcd.keys[key].create_revision
    answered.set()
    await settled(client)
    assert world.store.etcd.keys[key].create_revision == written


async def test_a_failed_room_is_written_once_when_its_process_had_not_been_announced(world: InMemory) -> None:
    client, key = world.client(), world.keys.room("p", 7)
    answered = delay_answer(world, key)
    world.announce(client, linger=30.0)
    client.prefill.register(7)
    client.prefill.fail(7, "why")
    await until(lambda: client.prefill._connection.receive() is None or world.room(7), "it is written")
    cut(world)
    await says_again(world, client)
    written = world.store.etcd.keys[key].create_revision
    answered.set()
    await settled(client)
    assert world.store.etcd.keys[key].create_revision == written


async def test_a_room_is_gone_when_its_next_life_is_released_after_a_cut(world: InMemory) -> None:
    client = await world.prefill(linger=30.0)
    await world.registered(client, 7)
    gate = delay_answer(world, world.keys.room("p", 7))
    client.prefill.release(7)
    client.prefill.register(7)
    await until(lambda: (client.prefill.poll(), engine_of(world).said == 3)[1], "said")
    cut(world)
    client.prefill.release(7)
    await says_again(world, client)
    gate.set()
    await settled(client)
    assert not world.room(7) and not world.agent.book.count(P0)


async def reuse_cut(world: InMemory) -> tuple[Client, Registered, asyncio.Event]:
    """A room's release is in etcd, not answered, and its next life is asked for, when the connection breaks."""
    client = await world.prefill(linger=30.0)
    first = await world.registered(client, 7)
    released = delay_answer(world, world.keys.room("p", 7))
    client.prefill.release(7)
    await until(lambda: (client.prefill.poll(), not world.room(7))[1], "it is gone, which the agent does not know yet")
    client.prefill.register(7)
    await until(lambda: (client.prefill.poll(), engine_of(world).said == 3)[1], "said")
    cut(world)
    return client, first, released


async def test_a_room_s_next_life_is_acknowledged_under_its_own_token_when_it_is_said_again(world: InMemory) -> None:
    client, first, released = await reuse_cut(world)
    await says_again(world, client)
    released.set()
    assert (await world.event(client, Registered)).token > first.token
    assert world.room(7)


@pytest.mark.parametrize("fails", [True, False])
async def test_a_room_s_next_life_ends_when_that_is_said_after_a_cut(world: InMemory, fails: bool) -> None:
    client, _, released = await reuse_cut(world)
    client.prefill.fail(7, "why") if fails else client.prefill.release(7)
    await says_again(world, client)
    released.set()
    await settled(client)
    assert (found := world.room(7)) is None or found.state == "failed"


async def test_a_room_is_held_only_when_it_stands_though_its_last_life_ends_late(tmp_path: Path) -> None:
    async with running(tmp_path, registration_timeout_seconds=1.0) as world:
        client, _, released = await reuse_cut(world)
        await says_again(world, client)
        assert isinstance((await world.event(client, Rejected)).error, RegistrationTimeout)
        released.set()
        await settled(client)
        assert 7 not in client.prefill._intents.held and not world.room(7)


async def test_each_registration_is_answered_when_a_room_that_was_never_here_is_released_first(
    world: InMemory,
) -> None:
    client = await world.prefill(linger=30.0)
    released = delay_answer(world, world.keys.room("p", 7))
    client.prefill.release(7)
    client.prefill.register(7)
    await until(lambda: (client.prefill.poll(), engine_of(world).said == 2)[1], "said")
    cut(world)
    await says_again(world, client)
    released.set()
    await settled(client)
    assert world.room(7) and 7 in client.prefill._intents.held


async def test_a_successor_s_rooms_are_new_when_its_connection_breaks_before_it_has_said_as_much(
    world: InMemory,
) -> None:
    client = await world.prefill(linger=30.0)
    for room in range(100, 110):
        await world.registered(client, room)
    successor = await successor_of(world, client)
    cut(world)
    await says_again(world, successor)
    for _ in range(2):
        await world.registered(successor, 7)
        assert world.room(7), "acknowledged, and not in etcd"
        await release(world, successor, 7)


async def test_a_successor_s_lot_is_had_whole_or_not_at_all_when_its_connection_breaks_before(world: InMemory) -> None:
    client, other = await world.prefill(linger=30.0), await world.prefill(1)
    for room in range(100, 110):
        await world.registered(client, room)
    await world.registered(other, 8)
    world.clients.remove(client)
    client.detach()
    await until(lambda: world.agent.ranks.lingering, "it lingers")
    successor = await world.prefill(linger=30.0)
    next(one for one in world.agent.server.connections if one.rank and one.rank.rank.dp == 0).close("cut")
    await until(lambda: (successor.prefill.poll(), not world.agent.ranks.lingering)[1], "it is back")
    successor.prefill.register_lot([7, 8])
    for _ in range(2):
        await world.event(successor, Rejected)
    assert not world.room(7)


async def test_a_room_s_next_life_is_in_etcd_when_its_refusal_was_lost_with_the_connection(world: InMemory) -> None:
    client = await world.prefill(linger=30.0)
    await world.registered(client, 7)
    await release(world, client, 7)
    engine, limit = engine_of(world), world.agent.book._max_queue
    world.agent.book._max_queue = 0
    engine.push = lambda packets: None  # type: ignore[method-assign]
    client.prefill.register(7)
    await until(lambda: (client.prefill.poll(), engine.said == 3)[1], "it is refused")
    world.agent.book._max_queue = limit
    cut(world)
    await says_again(world, client)
    await settled(client)
    assert world.room(7) and 7 in client.prefill._intents.held


async def test_a_lot_is_answered_once_when_it_is_said_again_and_the_queue_is_full(world: InMemory) -> None:
    client, key = await world.prefill(linger=30.0), world.keys.room("p", 7)
    answered = delay_answer(world, key)
    client.prefill.register_lot([7, 8])
    await until(lambda: (client.prefill.poll(), world.room(7))[1], "it is written, which the agent does not know yet")
    cut(world)
    world.agent.book._max_queue = 1
    await says_again(world, client)
    answered.set()
    await settled(client)
    assert sorted(client.prefill._intents.held) == [7, 8]


async def test_a_process_takes_its_rank_over_when_it_is_back_before_its_end_was_noticed(world: InMemory) -> None:
    client = await world.prefill(linger=30.0)
    old = engine_of(world)
    asyncio.get_running_loop().remove_reader(old._socket)
    client.prefill._connection.lose()
    await until(
        lambda: (client.prefill.poll(), any(one is not old for one in world.agent.server.connections))[1], "new"
    )
    await until(lambda: (client.prefill.poll(), old.closed)[1], "its old connection is given up")
    await world.registered(client, 7)
    assert engine_of(world).rank is old.rank


@pytest.mark.parametrize("rooms", [[7], [7, 8]])
@pytest.mark.parametrize("cuts", [True, False])
async def test_a_room_is_held_when_it_was_asked_for_before_its_rank_drained_and_that_is_said_again(
    world: InMemory, rooms: list[int], cuts: bool
) -> None:
    client = await world.prefill(linger=30.0)
    answered = delay_answer(world, world.keys.room("p", 7))
    client.prefill.register_lot(rooms) if len(rooms) > 1 else client.prefill.register(7)
    await until(lambda: (client.prefill.poll(), world.room(7))[1], "it is written, which the agent does not know yet")
    world.agent.ranks.drain_node()
    if cuts:
        cut(world)
        await says_again(world, client)
    else:
        engine_of(world).send(messages.LOST_PUSHES)
        received = engine_of(world).received_bytes
        await until(
            lambda: (client.prefill.poll(), engine_of(world).received_bytes > received)[1], "it says that again"
        )
    answered.set()
    await settled(client)
    assert sorted(client.prefill._intents.held) == rooms
