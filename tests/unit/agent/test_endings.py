"""What an agent that ends writes, what it leaves to its successor, and what it removes."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

import etcd_pd
from etcd_pd import Announced, Client, Ended, Rank, Resolved
from etcd_pd.agent.main import _stop_when_idle
from etcd_pd.agent.session import Session
from etcd_pd.config import EtcdSettings
from etcd_pd.core.notices import Wait
from etcd_pd.core.records import Condition, Listing, Operation, Put, TxnResult
from etcd_pd.errors import ConfigError, StoreUnavailable
from etcd_pd.wire.values import FAILED, RoomValue, has_left
from tests.support.agent_in_memory import InMemory, running, until
from tests.support.memory_etcd import MemoryEtcd
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.asyncio

RANK = Rank(0)


async def _pass() -> None: ...


async def with_two_ended(world: InMemory) -> tuple[Client, asyncio.Event]:
    """A gateway that has released a room and failed another, which is not written before the event."""
    gateway = await world.prefill(linger=30.0)
    for room in (7, 8):
        await world.registered(gateway, room)
    held = world.store.hold("txn")
    gateway.prefill.release(7)
    gateway.prefill.fail(8, "why")
    await until(lambda: any(len(e.undurable) == 2 for e in world.agent.server.connections), "both were said")
    return gateway, held


def assert_both_are_written(world: InMemory) -> None:
    """What that gateway said."""
    assert world.room(7) is None, "it was released"
    value = world.room(8)
    assert value and value.state == FAILED


# --- what engines said


async def test_what_a_lingering_rank_ended_is_written_when_the_agent_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        gateway, held = await with_two_ended(world)
        await world.linger(gateway)
        world.stop.set()
        asyncio.get_running_loop().call_later(0.2, held.set)
    assert world.keys.rank("p", RANK) in world.store.etcd.keys, "it is left to its successor"
    assert_both_are_written(world)


async def test_what_a_gateway_ended_is_written_when_another_speaks_for_its_rank_as_the_agent_ends(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as world:
        gateway, held = await with_two_ended(world)
        await world.linger(gateway)
        successor = await world.prefill(linger=30.0)
        world.clients.clear()
        world.stop.set()
        asyncio.get_running_loop().call_later(0.2, held.set)
    successor.close()
    assert_both_are_written(world)


# --- what is left to a successor


async def test_the_session_is_renewed_when_what_the_agent_writes_last_takes_long(tmp_path: Path) -> None:
    quick = EtcdSettings(request_timeout_seconds=0.5)
    async with running(tmp_path, session_ttl_seconds=2, etcd=quick) as world:
        prefill = await world.prefill()
        world.clients.clear()
        world.store.hold("txn")
        world.stop.set()
        await until(lambda: world.agent._ending, "it ends")
        kept = world.store.calls.count("keep_alive")
        await until(lambda: world.store.calls.count("keep_alive") > kept, "its successor has that much longer")
    prefill.close()


@pytest.mark.parametrize("others", [0, 1])
async def test_a_rank_goes_when_its_engine_dies_while_the_agent_ends(tmp_path: Path, others: int) -> None:
    async with running(tmp_path) as world:
        prefill, *living = [await world.prefill(dp_rank) for dp_rank in range(1 + others)]
        held = world.store.hold("txn")
        world.stop.set()
        await until(lambda: world.agent._ending, "it ends")
        world.clients.clear()
        prefill.close()
        await until(lambda: len(world.agent.server.connections) == others, "it is dead, and the agent knows")
        held.set()
    for other in living:
        other.close()
    assert [world.keys.rank("p", Rank(dp)) in world.store.etcd.keys for dp in (0, 1)] == [False, bool(others)]


async def test_a_rank_lingers_when_its_engine_goes_while_the_agent_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        gateway = await world.prefill(linger=30.0)
        held = world.store.hold("txn")
        world.stop.set()
        await until(lambda: world.agent._ending, "it ends")
        await world.linger(gateway)
        held.set()
    assert world.keys.rank("p", RANK) in world.store.etcd.keys


@pytest.mark.parametrize("restored", [False, True])
async def test_rooms_stay_when_their_rank_hangs_on_the_session_of_the_agent_before(
    tmp_path: Path, restored: bool
) -> None:
    async with running(tmp_path) as first:
        prefill = await first.prefill()
        first.clients.clear()
    store, key = first.store, first.keys.rank("p", RANK)
    store.etcd.cluster_id += restored  # it is nobody's then
    async with running(tmp_path, store) as second:
        real = store.list
        if not restored:
            second.fail_reads(key)

        async def list_nothing(prefix: bytes, end: bytes = b"") -> Listing:
            if prefix == first.keys.prefill("p"):
                raise StoreUnavailable("list", "no leader")
            return await real(prefix, end)

        store.list = list_nothing  # type: ignore[method-assign]
        second.clients.append(prefill)
        await second.registered(prefill, 8)
        second.end(prefill)
        await until(lambda: not second.agent.announcer.ranks, "it is being withdrawn")
    assert key in store.etcd.keys and second.room(8), "a rank without its rooms would have its decodes wait"


async def test_no_rank_stands_without_its_rooms_when_a_restored_etcd_has_the_session(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        prefill = await world.prefill()
        await world.registered(prefill, 7)
        backup = copy.deepcopy(world.store.etcd)
        backup.cluster_id += 1
        world.store.fail("revoke", StoreUnavailable("revoke", "etcd is busy"))
        world.store.etcd = backup
        world.store.drop_watches()
        revokes = world.store.calls.count("revoke")
        await until(lambda: world.store.calls.count("revoke") > revokes, "it is restored")
        world.end(prefill)
        await until(lambda: not world.agent.announcer.ranks, "it has gone")
    assert world.keys.rank("p", RANK) not in backup.keys or world.room(7), "a rank has its rooms"


async def test_rooms_stay_when_their_rank_has_moved_to_another_agent(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    link = tmp_path / "agent.sock"
    async with running(tmp_path / "b", agent_id="b") as b:
        close = b.store.close
        async with running(tmp_path / "a", b.store, agent_id="a") as a:
            link.symlink_to(a.settings.socket_path)
            client = etcd_pd.connect(str(link))
            b.clients.append(client)
            a.announce(client, linger=0.5)
            await a.event(client, Announced)
            await a.registered(client, 7)
            link.unlink()
            link.symlink_to(b.settings.socket_path)
            client._connection.lose()
            key = b.keys.rank("p", RANK)

            def has_moved() -> bool:
                client.prefill.poll()
                return b.store.etcd.keys[key].lease == b.agent.session.lease_id

            await until(has_moved, "it has moved")
            await until(lambda: not a.agent.ranks.lingering and not a.agent.announcer.background.tasks, "a let go")
            b.store.close = _pass  # type: ignore[method-assign]  # it is b's
        b.store.close = close  # type: ignore[method-assign]
        assert client.prefill.epoch and b.room(7), "its rank lives"


async def test_no_wait_is_given_up_when_its_time_is_over_while_the_agent_ends(tmp_path: Path) -> None:
    """The agent reads nothing any more, and the room may be there."""
    async with running(tmp_path, instance_timeout_seconds=1.0) as world:
        prefill, decoder = await world.prefill(), world.client()
        decoder.decode.want("host:1", 7)
        await until(lambda: (decoder.decode.poll(), any(e.wants for e in world.agent.server.connections))[1], "asked")
        again = await world.prefill(instance="q", launch_id="another")
        doubts, judged = world.agent._wants._doubts, asyncio.Event()
        judge = doubts._judge_orphan

        def note(wait: Wait, stands: bool) -> None:
            judge(wait, stands)
            judged.set()

        doubts._judge_orphan = note  # type: ignore[method-assign]
        world.end(prefill)
        await judged.wait()  # its start has ended
        world.clients.clear()
        world.agent.announcer.background.start(asyncio.sleep(1.5))  # etcd is slow
        world.stop.set()
        value = RoomValue(0, again.prefill.epoch).to_json()
        world.store.etcd.txn([], [Put(world.keys.room("q", 7), value, 0)])  # by another agent
        events: list[object] = []
        while decoder.state == "connected":
            events += decoder.decode.poll()
            await asyncio.sleep(0.01)
    assert not [event for event in events if isinstance(event, Ended)], "the next agent will find it"
    async with running(tmp_path, world.store) as successor:
        successor.clients += [again, decoder]
        assert (await successor.event(decoder, Resolved)).assignment.room == 7


# --- what is said last


async def test_the_last_word_of_an_agent_stands_when_it_lists_anew_while_it_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        prefill = await world.prefill()
        await world.registered(prefill, 7)
        room, agent, real = world.keys.room("p", 7), world.keys.agent("agent"), world.store.txn

        async def write_rooms_late(compares: Sequence[Condition], operations: Sequence[Operation]) -> TxnResult:
            if any(operation.key == room for operation in operations):
                await asyncio.sleep(0.5)
            return await real(compares, operations)

        world.store.txn = write_rooms_late  # type: ignore[method-assign]
        prefill.prefill.release(7)
        await until(lambda: any(e.undurable for e in world.agent.server.connections), "it was said")
        world.clients.clear()
        world.stop.set()
        await until(lambda: has_left(world.store.etcd.keys[agent].value), "its last word")
        lists = world.store.calls.count("list")
        world.store.etcd.txn([], [Put(world.keys.decode("d"), b"{}", 0)])
        world.store.etcd.compact()
        world.store.drop_watches()
        await until(lambda: world.store.calls.count("list") > lists or world.agent._ending, "it lists anew")
        assert not world.agent._ending
    prefill.close()
    assert has_left(world.store.etcd.keys[agent].value)


async def test_a_decode_s_key_stays_when_another_agent_keeps_it_before_it_is_deleted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    async with running(tmp_path / "a", agent_id="a") as a, running(tmp_path / "b", a.store, agent_id="b") as b:
        key, old, new = a.keys.decode("d"), a.client(), b.client()
        old.decode.announce("d", address="10.0.0.9:1")
        await until(lambda: (old.decode.poll(), key in a.store.etcd.keys)[1], "it stands")
        a.store.fail("txn", StoreUnavailable("txn", "the answer is lost"), done=True)
        a.clients.remove(old)
        old.detach()
        await until(lambda: key not in a.store.etcd.keys, "it is gone")
        new.decode.announce("d", address="10.0.0.10:1")
        await until(lambda: (new.decode.poll(), key in a.store.etcd.keys)[1], "it stands again")
        await until(lambda: not a.agent.announcer.background.tasks, "all is written")
        assert key in a.store.etcd.keys, "its process lives"


# --- the socket, and the end itself


async def test_the_socket_of_a_successor_stays_when_it_starts_while_the_agent_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as world:
        successor, unlink = InMemory(tmp_path, world.store).agent.server, os.unlink

        def unlink_amid_starts(path: str) -> None:
            monkeypatch.undo()
            for act in (None, lambda: unlink(path)):
                if act:
                    act()
                if successor._socket is None:
                    with suppress(ConfigError):  # it is started again
                        successor.open()

        monkeypatch.setattr(os, "unlink", unlink_amid_starts)
        world.stop.set()
        await until(lambda: successor._socket, "it listens")
    assert os.path.exists(world.settings.socket_path), "its engines can reach it"
    successor.close()


async def test_the_socket_of_another_agent_stays_when_its_own_was_removed(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        os.unlink(world.settings.socket_path)
        another = InMemory(tmp_path, world.store).agent.server
        another.open()
    assert os.path.exists(world.settings.socket_path), "its engines can reach it"
    another.close()


async def test_an_agent_ends_when_its_socket_was_removed(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        os.unlink(world.settings.socket_path)
    assert not world.store.etcd.keys


async def test_an_agent_is_not_idle_when_a_rank_lingers(tmp_path: Path) -> None:
    async with running(tmp_path, idle_exit_seconds=0.3) as world:
        gateway = await world.prefill(linger=0.9)
        await world.linger(gateway)
        await asyncio.wait_for(_stop_when_idle(world.settings, world.agent, world.stop), 10.0)
        assert not world.agent.ranks.lingering


@pytest.mark.parametrize("turns", range(8))
async def test_a_session_ends_when_it_is_cancelled_as_its_lease_is_abandoned(turns: int) -> None:
    session = Session(MemoryStore(MemoryEtcd(time.monotonic)), 5, lambda _: None)
    task = asyncio.create_task(session.run())
    lease_id = await session.lease()
    await until(lambda: task.get_stack(limit=2) and session.lease_id == lease_id, "it waits")
    session.abandon()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=1.0)
    task.cancel()
    assert done, "whoever ends the agent waits for ever"
