"""etcd restarts, freezes, forgets and comes back older: what is known goes on, what is not is said."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

import etcd_pd
from etcd_pd import Announced, Client, Ended, PrefillLost, Registered, Rejected, Resolved, RoomTimeout
from tests.support.agents import AgentProcess, announce, wait_for
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.every_etcd]

ID = "prefill-0"


@pytest.fixture
def agent(etcd: EtcdServer, root: str) -> Iterator[AgentProcess]:
    with AgentProcess(etcd.endpoint, root, "agent", "--session-ttl-seconds=10", "--watch-silence-seconds=1") as agent:
        yield agent


@pytest.fixture
def prefill(agent: AgentProcess) -> Iterator[Client]:
    with agent.client() as client:
        announce(client)
        yield client


@pytest.fixture
def decode(agent: AgentProcess) -> Iterator[Client]:
    with agent.client() as client:
        yield client


def view(client: Client, state: str) -> None:
    def look() -> bool:
        client.decode.poll()
        return client.decode.view == state

    wait_until(look, f"the view is {state}", timeout=30)


def registered(client: Client, room: int) -> None:
    client.prefill.register(room)
    assert wait_for(client, Registered, timeout=30).room == room


def resolved(client: Client, room: int) -> etcd_pd.Assignment:
    client.decode.want(ID, room)
    return wait_for(client, Resolved, timeout=30).assignment


@pytest.mark.parametrize("how", ["killed", "stopped", "frozen"])
def test_while_etcd_is_away_known_rooms_resolve_and_new_ones_wait(
    etcd: EtcdServer, agent: AgentProcess, prefill: Client, decode: Client, how: str
) -> None:
    registered(prefill, 7)
    resolved(decode, 7)
    decode.decode.want(ID, 8)
    {"killed": etcd.kill, "stopped": etcd.stop, "frozen": etcd.pause}[how]()
    view(decode, "stale")
    known = decode.decode.resolve_nowait(ID, 7)
    assert known is not None and known.stale
    with pytest.raises(etcd_pd.ViewStale):
        decode.decode.resolve_nowait(ID, 8)
    prefill.prefill.register(8)
    etcd.restore()
    assert wait_for(prefill, Registered, timeout=30).room == 8
    assert wait_for(decode, Resolved, timeout=30).assignment.room == 8
    view(decode, "synced")
    assert agent.process.poll() is None


def test_registrations_and_waits_end_while_etcd_stays_away(etcd: EtcdServer, root: str) -> None:
    options = ("--registration-timeout-seconds=1", "--session-ttl-seconds=10")
    with AgentProcess(etcd.endpoint, root, "agent", *options) as agent, agent.client() as client:
        announce(client)
        etcd.pause()
        client.prefill.register(7)
        client.decode.want(ID, 7, timeout=1.0)
        seen: list[object] = []

        def both() -> bool:
            seen.extend([*client.prefill.poll(), *client.decode.poll()])
            return {type(event) for event in seen} >= {Ended, Rejected}

        wait_until(both, "both end", timeout=30)
        with pytest.raises(RoomTimeout):
            client.decode.resolve_nowait(ID, 7)
        etcd.unpause()
        wait_until(lambda: _registers(client, 9), "it takes rooms again", timeout=30)


def _registers(client: Client, room: int) -> bool:
    client.prefill.register(room)
    return any(isinstance(event, Registered) and event.room == room for event in client.prefill.poll())


def test_compaction_while_it_was_away(etcd: EtcdServer, root: str, agent: AgentProcess) -> None:
    """The gap cannot be replayed: a list shows what is, and what is no more."""
    options = ("--session-ttl-seconds=60",)
    with AgentProcess(etcd.endpoint, root, "other", *options) as other, other.client() as prefill:
        epoch = announce(prefill).epoch
        with agent.client() as decode:
            registered(prefill, 7)
            resolved(decode, 7)
            decode.decode.want(ID, 8)
            agent.pause()
            registered(prefill, 8)
            etcd.stop()
            etcd.start()
            for _ in range(3):
                etcd.ctl.put(f"{root}/elsewhere", "x")
            etcd.ctl.compact()
            agent.resume()
            found = wait_for(decode, Resolved, timeout=30).assignment
            assert (found.room, found.epoch) == (8, epoch)
            assert decode.decode.resolve_nowait(ID, 7) is not None
            prefill.close()
            assert isinstance(wait_for(decode, Ended).error, PrefillLost)
    assert "another history" not in agent.log


def test_a_restored_backup_starts_everything_anew(fresh_etcd: EtcdServer, root: str) -> None:
    """A member that lost its data answers like an older store: tokens and epochs from before prove nothing."""
    with AgentProcess(fresh_etcd.endpoint, root, "agent", "--session-ttl-seconds=5") as agent, agent.client() as client:
        before = announce(client)
        for room in range(20):
            client.prefill.register(room)
        for _ in range(20):
            fresh_etcd.ctl.put("/elsewhere", "x")
        resolved(client, 7)
        fresh_etcd.lose_everything()
        ended = wait_for(client, Ended, timeout=30)
        assert isinstance(ended.error, PrefillLost) and ended.error.epoch == before.epoch
        wait_for(client, Announced, timeout=30)
        registered(client, 100)
        assert "another history" in agent.log


def test_nothing_that_was_acknowledged_is_lost_over_a_restart(
    etcd: EtcdServer, root: str, agent: AgentProcess, prefill: Client
) -> None:
    acknowledged: set[int] = set()
    asked = 0

    def work() -> int:
        nonlocal asked
        for _ in range(20):
            prefill.prefill.register(asked)
            asked += 1
        acknowledged.update(e.room for e in prefill.prefill.poll() if isinstance(e, Registered))
        return len(acknowledged)

    wait_until(lambda: work() > 200, "some are registered")
    etcd.kill()
    for _ in range(50):
        work()
    etcd.start()
    wait_until(lambda: work() > 1000, "more are registered", timeout=30)

    def all_answered() -> bool:
        acknowledged.update(e.room for e in prefill.prefill.poll() if isinstance(e, Registered))
        return len(acknowledged) == asked

    wait_until(all_answered, "all are registered", timeout=30)
    keys = {int(kv.key.rpartition("/")[2]) for kv in etcd.ctl.get_prefix(f"{root}/v1/rooms/{ID}/")}
    assert keys == acknowledged
    assert agent.stop(signal.SIGTERM) == 0
