"""What an agent does when it was stopped, superseded, out of descriptors or in error: nothing healthy is harmed."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from etcd_pd import Ended, PrefillLost, Rank
from etcd_pd.agent import server as agent_server
from etcd_pd.agent.connection import EngineConnection, Peer
from etcd_pd.core.book import RoomBook
from etcd_pd.core.records import Put
from etcd_pd.core.watch import WatchState
from etcd_pd.errors import LeaseNotFound
from etcd_pd.wire import messages
from etcd_pd.wire.limits import MAX_DEPTH
from etcd_pd.wire.values import ENDED, InstanceInfo, RankEndpoint, Topology
from tests.support.agent_in_memory import InMemory, running, until
from tests.support.raw_engine import HELLO, packets, raw

pytestmark = pytest.mark.asyncio


# --- heartbeats


class Beating:
    """An engine that is to be silent for 10 s at most, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.reasons, self.timers = 1000.0, list[str](), list[tuple[float, Any]]()
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: self.now)
        monkeypatch.setattr(loop, "call_at", lambda when, act: self.timers.append((when, act)))
        self.engine, agents = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        agents.setblocking(False)
        self.connection = EngineConnection(
            agents, Peer(agents), 1000, lambda *_: None, lambda _, reason: self.reasons.append(reason)
        )
        self.connection.expect_heartbeat(10.0)

    def sleep(self, seconds: float) -> None:
        """The agent is stopped for so long, or has nothing to do; then its timers run as they are due."""
        self.now += seconds
        due, self.timers = [timer for timer in self.timers if timer[0] <= self.now], []
        for _, act in due:
            act()

    def rest(self, seconds: float) -> None:
        """Time passes, and the agent runs."""
        end = self.now + seconds
        while self.timers and min(self.timers)[0] <= end:
            self.sleep(min(self.timers)[0] - self.now)
        self.now = end

    def close(self) -> None:
        self.connection.close("the test ends")
        self.engine.close()


async def test_an_engine_is_dead_when_it_says_nothing_for_its_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    beating = Beating(monkeypatch)
    beating.rest(9.0)
    assert not beating.reasons
    beating.rest(3.0)
    assert beating.reasons == ["no heartbeat for 10.0 s"]
    beating.close()


async def test_an_engine_lives_when_the_agent_was_stopped_and_its_pings_lie_in_the_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beating = Beating(monkeypatch)
    beating.rest(9.0)
    beating.engine.send(messages.PING)
    beating.sleep(60.0)
    assert not beating.reasons
    beating.rest(9.0)
    assert not beating.reasons, "and it has all its time again"
    beating.rest(3.0)
    assert beating.reasons
    beating.close()


async def test_time_that_the_agent_slept_is_not_held_against_engines_when_they_slept_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beating = Beating(monkeypatch)
    beating.rest(5.0)
    beating.sleep(60.0)
    assert not beating.reasons
    beating.rest(6.0)
    assert beating.reasons, "what it was silent before counts"
    beating.close()


async def test_engines_are_shown_that_the_agent_runs_when_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "SIGN_SECONDS", 0.01)
    async with running(tmp_path) as world:
        with raw(world.settings.socket_path) as sock:
            sock.send(HELLO)
            views = list[bytes]()

            def signs() -> bool:
                views.extend(packet for packet in packets(sock) if packet[:1] == messages.VIEW)
                return len(views) > 5

            await until(signs, "signs of life")


# --- two agents of one engine


async def test_a_rank_stays_when_an_agent_that_was_stopped_withdraws_what_another_has_taken_over(
    world: InMemory,
) -> None:
    prefill = await world.prefill()
    epoch, [local] = prefill.prefill.epoch, world.agent.announcer.ranks
    etcd, key = world.store.etcd, world.keys.rank("p", Rank(0))
    before = etcd.keys[key]
    successor = etcd.grant(60).lease_id
    etcd.txn([], [Put(key, before.value, successor)])  # re-attached: the key stands, under another lease
    world.store.publish()
    world.agent.announcer.withdraw(local)
    await until(lambda: not world.agent.announcer.background.tasks, "it has tried")
    assert etcd.keys[key].lease == successor and etcd.keys[key].create_revision == epoch


async def test_a_key_is_not_taken_back_when_another_agent_has_taken_it_over(world: InMemory) -> None:
    prefill = await world.prefill()
    etcd, key = world.store.etcd, world.keys.rank("p", Rank(0))
    successor = etcd.grant(60).lease_id
    etcd.txn([], [Put(key, etcd.keys[key].value, successor)])
    lists = world.store.calls.count("list")
    world.agent.announcer.new_lease(world.agent.session.lease_id)
    await until(lambda: world.store.calls.count("list") > lists + 1, "it has looked twice")
    assert etcd.keys[key].lease == successor
    prefill.close()


# --- etcd says strange things


async def test_a_key_is_written_under_the_new_lease_when_the_one_that_it_was_to_hang_on_has_expired(
    world: InMemory,
) -> None:
    key, etcd, session = world.keys.decode("d"), world.store.etcd, world.agent.session
    client, gate = world.client(), world.store.hold("txn")
    client.decode.announce("d", address="10.0.0.9:1")
    await until(lambda: (client.decode.poll(), world.agent.announcer.background.tasks)[1], "it is being written")
    dead = session.lease_id
    etcd.revoke(dead)
    await until(lambda: session.lease_id not in (0, dead), "the session is granted anew")
    gate.set()
    going_on = world.agent.announcer.background.tasks
    await until(lambda: key in etcd.keys and not going_on, "it is written, and nothing goes on")
    assert etcd.keys[key].lease == session.lease_id


async def test_the_pauses_grow_when_a_write_fails_again_and_again(
    world: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def act() -> None:
        if len(pauses) < 8:
            raise LeaseNotFound("txn")

    monkeypatch.setattr("etcd_pd.agent.background.asyncio.sleep", sleep)
    monkeypatch.setattr("etcd_pd.agent.background.random.uniform", lambda low, _: low)
    await world.agent.announcer.background.until_done(act)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 5000])
async def test_decode_is_served_when_an_instance_in_etcd_nests_too_deep(world: InMemory, depth: int) -> None:
    info = InstanceInfo("i1", "launch", ("host:9",), Topology(), "round_robin", extra={"x": 1}).to_json()
    deep = info.replace(b'{"x":1}', b'{"x":' * depth + b"1" + b"}" * depth)
    assert deep != info
    endpoint = RankEndpoint(Rank(0), "10.0.0.1", 1, "i1").to_json()
    world.store.etcd.txn([], [Put(world.keys.prefill("q"), deep, 0), Put(world.keys.rank("q", Rank(0)), endpoint, 0)])
    world.store.publish()
    prefill, decoder = await world.prefill(), world.client()
    decoder.decode.follow("q")
    decoder.decode.follow("p")
    decoder.decode.want("p", 7)
    await world.registered(prefill, 7)
    await until(lambda: decoder.decode.poll() is not None and decoder.decode.instance("p"), "the sane one is known")
    assert decoder.decode.instance("q") is None


# --- the agent's own troubles


async def test_a_bug_costs_its_request_alone_when_a_handler_fails(
    world: InMemory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prefill = await world.prefill()
    epoch, register = prefill.prefill.epoch, RoomBook.register

    def broken(self: RoomBook, owner: Any, ref: Any, room: int, *rest: Any) -> Any:
        if room == 7:
            raise KeyError("a bug")
        return register(self, owner, ref, room, *rest)

    monkeypatch.setattr(RoomBook, "register", broken)
    prefill.prefill.register(7)
    assert (await world.registered(prefill, 8)).epoch == epoch
    assert world.agent.stats.internal_errors == 1 and world.agent.stats.protocol_errors == 0
    assert "internal error" in caplog.text and "KeyError" in caplog.text
    assert prefill.state == "connected"


async def test_one_line_is_logged_and_engines_connect_later_when_descriptors_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(agent_server, "ACCEPT_PAUSE", 0.05)
    async with running(tmp_path) as world:
        listening, attempts = world.agent.server._socket, list[float]()
        assert listening is not None

        class Exhausted:
            def accept(self) -> Any:
                attempts.append(asyncio.get_running_loop().time())
                raise OSError(errno.EMFILE, "Too many open files")

            def fileno(self) -> int:
                assert listening is not None
                return listening.fileno()

        monkeypatch.setattr(world.agent.server, "_socket", Exhausted())
        with raw(world.settings.socket_path):
            await until(lambda: len(attempts) >= 4, "some attempts")
            assert attempts[3] - attempts[0] >= 0.14, "with pauses"
            assert caplog.text.count("Too many open files") == 1
        world.agent.server._socket = listening
        prefill = await world.prefill()
        assert prefill.prefill.epoch
        assert "engines can connect again" in caplog.text


# --- a stopped process


async def test_a_wait_is_not_answered_from_before_when_the_agent_was_stopped(
    world: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, decoder = await world.prefill(), world.client()
    decoder.decode.want("p", 7)
    await until(lambda: world.agent.view.waits._pending, "decode waits")
    now = time.monotonic
    monkeypatch.setattr("time.monotonic", lambda: now() + 60.0)  # the agent's heart beats no more until its watch does
    assert world.agent.watcher.state is WatchState.STALE
    opened = world.store.calls.count("watch")
    await world.registered(prefill, 8)
    await until(lambda: world.store.calls.count("watch") > opened, "the watch is opened anew")
    await until(lambda: world.agent.watcher.state is WatchState.SYNCED, "and synced")


def two_starts(world: InMemory) -> list[InstanceInfo]:
    """Of one instance; the first is written, and followed by nothing yet."""
    infos = [InstanceInfo(start, "l", ("host:1",), Topology(dp=4), "round_robin") for start in ("i1", "i2")]
    write(world, infos[0])
    return infos


def write(world: InMemory, info: InstanceInfo) -> None:
    world.store.etcd.txn([], [Put(world.keys.prefill("p"), info.to_json(), 0)])
    world.store.publish()


async def test_a_wait_is_not_lost_when_its_start_was_chosen_by_a_view_that_lagged(world: InMemory) -> None:
    """Asked when the instance that the agent knew had been replaced already."""
    infos, decoder = two_starts(world), world.client()
    await until(lambda: world.agent.view.find("p"), "the first start is known")
    decoder.decode.want("p", 7)
    await until(lambda: world.agent.view.waits._pending, "decode waits")
    write(world, infos[1])
    await until(lambda: (found := world.agent.view.instance("p")) and found.info.incarnation == "i2", "the second")
    [wait] = [wait for engine in world.agent.server.connections for wait in engine.wants.values()]
    await until(lambda: world.store.calls.count("list") > 1, "etcd is asked")
    assert not wait.ended and wait.start is None and wait.placed == "p"


async def test_a_wait_is_lost_at_once_when_its_start_has_ended_and_there_is_no_other(tmp_path: Path) -> None:
    async with running(tmp_path, instance_timeout_seconds=600.0) as world:
        infos, decoder = two_starts(world), world.client()
        await until(lambda: world.agent.view.find("p"), "it is known")
        decoder.decode.want("p", 7)
        await until(lambda: world.agent.view.waits._pending, "decode waits")
        write(world, replace(infos[0], state=ENDED))
        ended = await world.event(decoder, Ended)
        assert isinstance(ended.error, PrefillLost) and ended.error.dp_rank == -1


async def test_a_wait_is_lost_in_time_when_its_start_had_ended_and_nobody_registers_its_room(tmp_path: Path) -> None:
    async with running(tmp_path, instance_timeout_seconds=0.2) as world:
        infos, decoder = two_starts(world), world.client()
        await until(lambda: world.agent.view.find("p"), "the first start is known")
        decoder.decode.want("p", 7)
        await until(lambda: world.agent.view.waits._pending, "decode waits")
        write(world, infos[1])
        ended = await world.event(decoder, Ended)
        assert isinstance(ended.error, PrefillLost) and ended.error.dp_rank == -1


async def test_a_wait_is_for_the_start_that_stands_when_the_view_has_come_past_its_asking(world: InMemory) -> None:
    two_starts(world)
    decoder = world.client()
    await until(lambda: world.agent.view.find("p"), "it is known")
    decoder.decode.want("p", 7)
    await until(lambda: world.agent.view.waits._pending, "decode waits")
    [wait] = [wait for engine in world.agent.server.connections for wait in engine.wants.values()]
    world.agent.view.waits.pin(wait.asked_at - 0.001)
    assert wait.start is None
    world.agent.view.waits.pin(wait.asked_at)
    assert wait.start == ("p", "i1")


async def test_a_process_serves_when_it_takes_over_a_rank_that_lingers_and_was_draining(world: InMemory) -> None:
    first = await world.prefill(linger=60.0)
    epoch = first.prefill.epoch
    first.prefill.drain()
    key = world.keys.rank("p", Rank(0))
    await until(lambda: b"draining" in world.store.etcd.keys[key].value, "etcd knows")
    await world.linger(first)
    second = await world.prefill(linger=60.0)
    assert (await world.registered(second, 7)).epoch == epoch
    await until(lambda: b"serving" in world.store.etcd.keys[key].value, "etcd knows")
    second.close()
