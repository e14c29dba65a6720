"""What a process says again, on another connection or to another agent: no room has it twice."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from etcd_pd import Announced, Client, Rank, Refused, Registered, RegistrationTimeout, Rejected, connect
from etcd_pd.agent.connection import Speaker
from etcd_pd.core.records import Delete, Listing, Put
from etcd_pd.errors import InstanceConflict, StoreUnavailable
from etcd_pd.wire import messages
from etcd_pd.wire.values import ASSIGNED, FAILED, RoomValue
from tests.support.agent_in_memory import InMemory, running, until
from tests.unit.agent.test_lingering import P0, cut, delay_answer, end_epoch_behind, end_session, engine_of, pair

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
    await world.linger(client)
    return await world.prefill(linger=30.0)


async def is_written_once(world: InMemory, client: Client, key: bytes, answered: asyncio.Event) -> None:
    """A connection breaks after a room was written: what is said again of it does not write it again."""
    cut(world)
    await says_again(world, client)
    written = world.store.etcd.keys[key].create_revision
    answered.set()
    await settled(client)
    assert world.store.etcd.keys[key].create_revision == written


@pytest.mark.parametrize("rooms", [[7], [7, 8]])
async def test_a_failed_room_is_written_once_when_its_process_says_it_again(world: InMemory, rooms: list[int]) -> None:
    client, key = await world.prefill(linger=30.0), world.keys.room("p", 7)
    answered = delay_answer(world, key)
    client.prefill.register_lot(rooms) if len(rooms) > 1 else client.prefill.register(7)
    client.prefill.fail(7, "why")
    await until(lambda: (client.prefill.poll(), world.room(7))[1], "it is written, which the agent does not know yet")
    await is_written_once(world, client, key, answered)


async def test_a_failed_room_is_written_once_when_its_process_had_not_been_announced(world: InMemory) -> None:
    client, key = world.client(), world.keys.room("p", 7)
    answered = delay_answer(world, key)
    world.announce(client, linger=30.0)
    client.prefill.register(7)
    client.prefill.fail(7, "why")
    await until(lambda: client.prefill._connection.receive() is None or world.room(7), "it is written")
    await is_written_once(world, client, key, answered)


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
    successor = await successor_of(world, client)
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


async def test_a_released_room_stays_gone_when_its_refused_registration_is_said_again(world: InMemory) -> None:
    """Its release is under way, and both are said again."""
    client = await world.prefill(linger=30.0)
    gate = delay_answer(world, world.keys.room("p", 7))
    limit, world.agent.book._max_queue = world.agent.book._max_queue, 0
    engine_of(world).push = lambda packets: None  # type: ignore[method-assign]
    client.prefill.register(7)
    client.prefill.release(7)
    await until(lambda: (client.prefill.poll(), engine_of(world).said == 2)[1], "said")
    world.agent.book._max_queue = limit
    cut(world)
    await says_again(world, client)
    gate.set()
    await settled(client)
    assert not world.room(7) and not world.agent.book.count(P0)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_room_stays_over_when_its_epoch_has_ended_and_all_is_said_again(world: InMemory, fails: bool) -> None:
    client, key = await world.prefill(linger=30.0), world.keys.room("p", 7)
    engine_of(world).push = lambda packets: None  # type: ignore[method-assign]
    client.prefill.register(7)
    await until(lambda: (client.prefill.poll(), world.room(7))[1], "written, not answered")
    gate = delay_answer(world, key)
    client.prefill.fail(7, "why") if fails else client.prefill.release(7)
    await until(lambda: (client.prefill.poll(), engine_of(world).said == 2)[1], "said")
    present = await end_epoch_behind(world, client)
    await says_again(world, client)
    gate.set()
    await settled(client)
    found = world.room(7)
    assert found is None or found.state == FAILED or found.epoch < present


async def test_a_room_that_timed_out_is_not_held_when_that_was_lost_with_the_connection(tmp_path: Path) -> None:
    """etcd has taken the registration, its answer is lost, and etcd answers nothing until it timed out."""
    async with running(tmp_path, registration_timeout_seconds=0.3) as world:
        client, real = await world.prefill(linger=30.0), world.store.read
        back = asyncio.Event()

        async def read(keys: Sequence[bytes]) -> Listing:
            if not back.is_set():
                await asyncio.sleep(0.01)
                raise StoreUnavailable("read", "frozen")
            return await real(keys)

        world.store.read = read  # type: ignore[method-assign]
        world.store.fail("txn", StoreUnavailable("txn", "lost"), done=True)
        client.prefill.register(7)
        await until(lambda: (client.prefill.poll(), engine_of(world).said == 1)[1], "said")
        cut(world)
        own = world.agent.book._rooms.find("p", 7)
        await until(lambda: own and own.reason, "it timed out while nobody spoke for the rank")
        await says_again(world, client)
        back.set()
        await settled(client)
        assert (found := world.room(7)) and found.state == FAILED
        assert 7 not in client.prefill._intents.held


async def test_an_answer_comes_after_the_end_of_the_epoch_before_when_it_is_there_before_the_announcement(
    world: InMemory,
) -> None:
    client, key = await world.prefill(linger=30.0), world.keys.room("p", 7)
    before = client.prefill.epoch
    gate = delay_answer(world, key)
    left = cut(world)
    end_session(world)
    await until(lambda: left.known_epoch > before, "the rank stands anew")
    speaker = Speaker(client._process, "p", Rank(0))
    world.agent.book.register(speaker, P0, 7, 1, time.monotonic())
    world.agent.registrar.kick()
    await until(lambda: world.room(7), "it is written in the next epoch")
    client.prefill._intents.sequence = client.prefill._intents.asked[7] = 1
    whole = client._connection._hello
    client._connection._hello = lambda: list(whole())[:1]
    await until(lambda: (client.prefill.poll(), client.state == "connected")[1], "it has connected")
    await until(lambda: any(one.greeted for one in world.agent.server.connections), "it has said hello")
    gate.set()
    await until(lambda: (own := world.agent.book._rooms.find("p", 7)) and own.token, "it is answered")
    for packet in client.prefill.hello():
        client._connection.send(packet)
    await until(lambda: (client.prefill.poll(), client.prefill.epoch > before)[1], "it knows of its epoch")
    await settled(client)
    assert client.prefill._intents.held[7].epoch == client.prefill.epoch


async def test_each_process_names_itself_when_a_client_is_forked_before_it_is_opened(tmp_path: Path) -> None:
    client, names = connect(str(tmp_path / "nothing")), set()
    for _ in range(2):
        reads, writes = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(writes, next(client._hello()))
            os._exit(0)
        os.waitpid(pid, 0)
        names.add(os.read(reads, 1000))
        os.close(reads)
        os.close(writes)
    assert len(names) == 2


async def test_a_room_that_failed_before_it_was_answered_is_registered_anew_when_it_is_used_again(
    world: InMemory,
) -> None:
    client = await world.prefill()
    client.prefill.register(7)
    client.prefill.fail(7, "why")
    await settled(client)
    await world.registered(client, 7)
    assert (found := world.room(7)) and found.state == ASSIGNED


async def in_two_lives(world: InMemory) -> Client:
    """A client that has a room in its second life, and whose first one's end is not durable: an earlier is not."""
    client = await world.prefill()
    await world.registered(client, 7)
    await world.registered(client, 8)
    delay_answer(world, world.keys.room("p", 8))
    client.prefill.fail(8, "why")  # whose answer never comes
    client.prefill.register(20)
    client.prefill.release(7)
    client.prefill.register(7)
    client.prefill.register(21)
    await until(lambda: (client.prefill.poll(), 7 in client.prefill._intents.held)[1], "it has it again")
    del world.store.txn  # for the agent after this one
    world.clients.clear()
    world.stop.set()
    await until(lambda: client.prefill.poll() == [] and client.state == "connecting", "the agent is gone")
    return client


async def test_a_room_is_in_etcd_at_another_agent_when_its_last_life_s_end_was_not_known_to_be_durable(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, batch_max_rooms=1) as world:
        client = await in_two_lives(world)
    async with running(tmp_path, world.store) as successor:
        successor.clients.append(client)
        await settled(client)
        assert 7 in client.prefill._intents.held and successor.room(7)


async def test_a_room_is_gone_at_another_agent_when_two_of_its_lives_end_there(tmp_path: Path) -> None:
    async with running(tmp_path, batch_max_rooms=1) as world:
        client = await in_two_lives(world)
        client.prefill.release(7)
    assert world.room(7)
    async with running(tmp_path, world.store) as successor:
        successor.clients.append(client)
        await settled(client)
        assert not successor.room(7)


async def test_a_room_is_gone_at_another_agent_when_it_had_been_written_again_unanswered(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        client = await world.prefill()
        first = await world.registered(client, 7)
        client.prefill.release(7)
        client.prefill.register(7)
        etcd, key = world.store.etcd, world.keys.room("p", 7)
        await until(lambda: key in etcd.keys and etcd.keys[key].create_revision > first.token, "it is written again")
        world.clients.clear()
    client.prefill.release(7)  # it has read nothing since
    assert world.room(7)
    async with running(tmp_path, world.store) as successor:
        successor.clients.append(client)
        await settled(client)
        assert not successor.room(7)


async def test_other_rooms_are_written_when_the_view_is_behind_who_holds_one(world: InMemory) -> None:
    client, etcd = await world.prefill(), world.store.etcd
    etcd.txn([], [Put(world.keys.room("p", 8), RoomValue(3, 2).to_json(), etcd.grant(60).lease_id)])
    world.agent.registrar._is_dead = lambda *_: None
    client.prefill.fail(8, "why")
    await world.registered(client, 7)
    assert world.room(7)


async def answer_to(client: Client) -> object:
    """What comes of a registration."""
    events: list[object] = []

    def found() -> object:
        events.extend(client.prefill.poll())
        return next((one for one in events if isinstance(one, (Registered, Rejected))), None)

    return await until(found, "it is answered")


async def test_a_room_is_gone_when_its_next_life_timed_out_and_its_end_is_said_again(tmp_path: Path) -> None:
    async with running(tmp_path, registration_timeout_seconds=0.5) as world:
        client = await world.prefill(linger=30.0)
        await world.registered(client, 7)
        gate = delay_answer(world, world.keys.room("p", 7))
        client.prefill.release(7)
        await until(lambda: (client.prefill.poll(), not world.room(7))[1], "gone, which the agent does not know yet")
        client.prefill.register(7)
        client.prefill.release(7)
        await until(lambda: (client.prefill.poll(), engine_of(world).said == 4)[1], "said")
        await until(lambda: world.agent.stats.rejected["RegistrationTimeout"], "it is given up")
        cut(world)
        await says_again(world, client)
        gate.set()
        await settled(client)
        assert not world.room(7) and not world.agent.book.count(P0)


async def test_a_sibling_that_knows_an_earlier_epoch_costs_no_room_when_it_comes_to_a_new_agent(tmp_path: Path) -> None:
    """It has not read yet that the epoch ended when the agent restarts; its own key stands."""
    async with running(tmp_path) as world:
        client, sibling = clients = await pair(world)
        before = client.prefill.epoch
        assert sibling.prefill.epoch == before
        key = world.keys.rank("p", Rank(0))
        world.store.etcd.txn([], [Delete(key)])
        world.store.publish()
        await until(lambda: (client.prefill.poll(), client.prefill.epoch > before)[1], "it stands anew")
        present = client.prefill.epoch
        world.clients.clear()
        store = world.store
    sibling.prefill._connection.lose()  # what it was sent it has not read
    async with running(tmp_path, store) as world:
        world.clients += clients
        connections = world.agent.server.connections
        await until(lambda: (client.prefill.poll(), any(e.rank and e.rank.lease_id for e in connections))[1], "back")
        answered = delay_answer(world, world.keys.room("p", 7))
        client.prefill.register(7)
        await until(lambda: (client.prefill.poll(), world.room(7))[1], "it is written")
        claim = world.store.hold("list")
        await until(lambda: (sibling.prefill.poll(), len(world.agent.announcer.ranks) == 2)[1], "it is back")
        answered.set()
        assert isinstance(await answer_to(client), Registered)
        claim.set()
        await until(lambda: (sibling.prefill.poll(), sibling.prefill.epoch > before)[1], "it knows")
        assert client.prefill.epoch == sibling.prefill.epoch == present


async def test_endings_are_durable_when_a_process_announces_another_rank_after_it_was_refused(world: InMemory) -> None:
    """A room of the rank that is refused is being released meanwhile."""
    client = await world.prefill()
    await world.registered(client, 7)
    answered = delay_answer(world, world.keys.room("p", 7))
    client.prefill.release(7)
    await until(lambda: (client.prefill.poll(), engine_of(world).said == 2)[1], "said")
    await until(lambda: not world.room(7), "deleted")
    local = engine_of(world).rank
    assert local
    world.agent.announcer._refuse(local, InstanceConflict("p", "somebody"))
    await world.event(client, Refused)
    world.announce(client, instance="q")
    await world.event(client, Announced)
    answered.set()
    await world.registered(client, 8)
    client.prefill.release(8)
    await settled(client)
