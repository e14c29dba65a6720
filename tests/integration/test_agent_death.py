"""Engines and agents die, are replaced, or sleep: who is notified of it, and what stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from etcd_pd import Announced, Client, Ended, PrefillLost, Rank, RankEnded, Refused, Registered, Resolved, Topology
from tests.support.agents import AgentProcess, announce, wait_for
from tests.support.engine_process import EngineProcess
from tests.support.etcd_server import EtcdServer
from tests.support.etcdctl import EtcdCtl
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

ID = "prefill-0"
#: Short enough to wait for, and as short as etcd grants.
QUICK = ("--session-ttl-seconds=2", "--etcd-request-timeout-seconds=0.5")


@pytest.fixture
def near(etcd: EtcdServer, root: str) -> Iterator[AgentProcess]:
    """The prefill side's agent."""
    with AgentProcess(etcd.endpoint, root, "near", *QUICK) as agent:
        yield agent


@pytest.fixture
def far(etcd: EtcdServer, root: str) -> Iterator[AgentProcess]:
    """The decode side's agent."""
    with AgentProcess(etcd.endpoint, root, "far", *QUICK) as agent:
        yield agent


@pytest.fixture
def decode(far: AgentProcess) -> Iterator[Client]:
    with far.client() as client:
        yield client


@pytest.fixture
def ctl(etcd: EtcdServer) -> EtcdCtl:
    return etcd.ctl


def resolved(client: Client, room: int) -> None:
    client.decode.want(ID, room)
    assert wait_for(client, Resolved).assignment.room == room


def registered(client: Client, room: int) -> Registered:
    client.prefill.register(room)
    return wait_for(client, Registered)


class TestEngines:
    def test_one_that_is_killed_loses_its_rooms_at_once_and_no_others(self, near: AgentProcess, decode: Client) -> None:
        with EngineProcess(near.socket_path, dp_rank=0) as killed, EngineProcess(near.socket_path, dp_rank=1) as other:
            killed.register(7)
            other.register(8)
            resolved(decode, 7)
            resolved(decode, 8)
            killed.kill()
            ended = wait_for(decode, Ended)
            assert isinstance(ended.error, PrefillLost)
            assert (ended.error.room, ended.error.dp_rank) == (7, 0)
            assert decode.decode.resolve_nowait(ID, 8) is not None

    def test_a_child_that_keeps_the_socket_does_not_hide_it(self, near: AgentProcess, decode: Client) -> None:
        with EngineProcess(near.socket_path) as engine:
            engine.register(7)
            resolved(decode, 7)
            child = engine.fork()
            try:
                engine.kill()
                assert isinstance(wait_for(decode, Ended).error, PrefillLost)
                os.kill(child, 0)
            finally:
                os.kill(child, signal.SIGKILL)
        assert "its process ended" in near.log

    def test_a_restarted_one_is_another_epoch(self, near: AgentProcess, ctl: EtcdCtl, root: str) -> None:
        with EngineProcess(near.socket_path, launch="first") as engine:
            engine.register(7)
            before = ctl.get(f"{root}/v1/prefill/{ID}/ranks/0.0.0.0")
        with EngineProcess(near.socket_path, launch="second"):
            after = ctl.get(f"{root}/v1/prefill/{ID}/ranks/0.0.0.0")
            assert before is not None and after is not None
            assert after.create_revision > before.create_revision


class TestStarts:
    """Whose is an instance's name?"""

    def test_another_launch_is_refused_while_the_first_lives(self, near: AgentProcess, far: AgentProcess) -> None:
        with near.client() as first, far.client() as second:
            announce(first, launch_id="first")
            _say(second, launch_id="second")
            refused = wait_for(second, Refused)
            assert "launch first" in str(refused.error)
            assert registered(first, 7).room == 7

    def test_another_topology_is_refused_at_once(self, near: AgentProcess, far: AgentProcess) -> None:
        with near.client() as first, far.client() as second:
            announce(first, topology=Topology(dp=4))
            _say(second, topology=Topology(dp=2))
            assert "topology" in str(wait_for(second, Refused).error)

    def test_a_second_process_of_a_rank_is_refused_and_harms_nobody(
        self, near: AgentProcess, ctl: EtcdCtl, root: str
    ) -> None:
        with near.client() as first, near.client() as second:
            announce(first)
            registered(first, 7)
            _say(second, dp_rank=0)
            assert "another process" in str(wait_for(second, Refused).error)
            first.prefill.release(7)
            wait_until(lambda: not ctl.count_prefix(f"{root}/v1/rooms/"), "the first one's room is still its own")

    def test_another_launch_takes_over_when_the_first_is_gone(
        self, near: AgentProcess, far: AgentProcess, ctl: EtcdCtl
    ) -> None:
        with near.client() as first, far.client() as second:
            before = announce(first, launch_id="first")
            _say(second, launch_id="second")
            looks = ctl.calls("Range")
            wait_until(lambda: ctl.calls("Range") > looks + 2, "it looks, and looks again")
            assert second.prefill.poll() == []
            first.close()
            after = wait_for(second, Announced)
            assert after.incarnation != before.incarnation
            assert after.epoch > before.epoch

    def test_also_when_its_whole_node_is_gone(self, etcd: EtcdServer, root: str, far: AgentProcess) -> None:
        with AgentProcess(etcd.endpoint, root, "node", *QUICK) as node, node.client() as first:
            announce(first, launch_id="first")
            node.stop(signal.SIGKILL)
            with far.client() as second:
                announce(second, launch_id="second")


def _say(client: Client, dp_rank: int = 1, launch_id: str = "launch-1", topology: Topology | None = None) -> None:
    """Announce a rank without waiting for the outcome."""
    client.prefill.announce(
        ID,
        rank=Rank(dp_rank),
        topology=topology or Topology(dp=4),
        launch_id=launch_id,
        addresses=[f"{ID}.test:8998"],
        ip="127.0.0.1",
        port=9900,
    )


class TestAgents:
    def test_one_that_is_killed_and_back_in_time_keeps_epochs_and_rooms(
        self, etcd: EtcdServer, root: str, decode: Client, ctl: EtcdCtl
    ) -> None:
        with AgentProcess(etcd.endpoint, root, "near", "--session-ttl-seconds=10") as near, near.client() as prefill:
            epoch = announce(prefill).epoch
            found = registered(prefill, 7)
            resolved(decode, 7)
            near.stop(signal.SIGKILL)
            prefill.prefill.register(8)
            near.start()
            assert wait_for(prefill, Registered).room == 8
            kv = ctl.get(f"{root}/v1/prefill/{ID}/ranks/0.0.0.0")
            assert kv is not None and kv.create_revision == epoch == prefill.prefill.epoch
            room = ctl.get(f"{root}/v1/rooms/{ID}/7")
            assert room is not None and room.create_revision == found.token
            resolved(decode, 8)
            assert decode.decode.resolve_nowait(ID, 7) is not None
            prefill.prefill.release(7)
            wait_until(lambda: ctl.get(f"{root}/v1/rooms/{ID}/7") is None, "what its predecessor wrote is released")

    def test_one_that_is_back_too_late_has_lost_them(
        self, near: AgentProcess, decode: Client, ctl: EtcdCtl, root: str
    ) -> None:
        with near.client() as prefill:
            before = announce(prefill)
            registered(prefill, 7)
            resolved(decode, 7)
            near.stop(signal.SIGKILL)
            ended = wait_for(decode, Ended)
            assert isinstance(ended.error, PrefillLost) and ended.error.epoch == before.epoch
            near.start()
            after = wait_for(prefill, Announced)
            assert after.epoch > before.epoch
            assert registered(prefill, 8).token > after.epoch
            decode.decode.want(ID, 8)
            assert wait_for(decode, Resolved).assignment.epoch == after.epoch

    def test_one_that_sleeps_past_its_session_writes_nothing_when_it_wakes(
        self, near: AgentProcess, decode: Client, ctl: EtcdCtl, root: str
    ) -> None:
        with near.client() as prefill:
            before = announce(prefill)
            registered(prefill, 7)
            near.pause()
            for room in range(100, 200):
                prefill.prefill.register(room)
            key = f"{root}/v1/prefill/{ID}/ranks/0.0.0.0"
            wait_until(lambda: not ctl.get(key), "its session has ended", timeout=20)
            near.resume()
            ended = wait_for(prefill, RankEnded)
            assert ended.epoch == before.epoch
            after = wait_for(prefill, Announced)
            for kv in ctl.get_prefix(f"{root}/v1/rooms/{ID}/"):
                if not kv.key.endswith("/7"):
                    assert f'"epoch":{after.epoch}' in kv.value

    def test_a_client_without_an_agent_finds_the_next_one(self, near: AgentProcess, decode: Client) -> None:
        near.stop()
        with near.client() as prefill:
            _say(prefill, dp_rank=0)
            prefill.prefill.register(7)
            near.start()
            assert wait_for(prefill, Registered).room == 7
            resolved(decode, 7)

    def test_a_session_revoked_by_hand_means_new_epochs(
        self, near: AgentProcess, decode: Client, ctl: EtcdCtl, root: str
    ) -> None:
        with near.client() as prefill:
            before = announce(prefill)
            registered(prefill, 7)
            resolved(decode, 7)
            key = ctl.get(f"{root}/v1/prefill/{ID}/ranks/0.0.0.0")
            assert key is not None
            ctl.revoke(key.lease)
            assert isinstance(wait_for(decode, Ended).error, PrefillLost)
            after = wait_for(prefill, Announced)
            assert after.epoch > before.epoch
            assert registered(prefill, 7).token > after.epoch, "its own dead room may be taken over"

    def test_a_bucket_revoked_by_hand_costs_its_rooms_and_no_others(
        self, near: AgentProcess, ctl: EtcdCtl, root: str
    ) -> None:
        with near.client() as prefill:
            announce(prefill)
            first = registered(prefill, 7)
            ctl.revoke(first.lease_id)
            second = registered(prefill, 8)
            assert second.lease_id != first.lease_id
            assert [kv.key for kv in ctl.get_prefix(f"{root}/v1/rooms/")] == [f"{root}/v1/rooms/{ID}/8"]

    def test_terminated_without_engines_it_leaves_nothing(self, near: AgentProcess, ctl: EtcdCtl, root: str) -> None:
        before = set(ctl.leases())
        with near.client() as prefill:
            announce(prefill)
            registered(prefill, 7)
        wait_until(lambda: not ctl.count_prefix(f"{root}/v1/prefill/"), "the rank left")
        assert near.stop() == 0
        assert ctl.count_prefix(root) == 0
        assert not os.path.exists(near.socket_path)
        assert not {lease for lease in set(ctl.leases()) - before if ctl.lease(lease).keys}

    def test_terminated_with_engines_it_leaves_all_to_a_successor(
        self, etcd: EtcdServer, root: str, ctl: EtcdCtl
    ) -> None:
        with AgentProcess(etcd.endpoint, root, "near", "--session-ttl-seconds=10") as near, near.client() as prefill:
            epoch = announce(prefill).epoch
            registered(prefill, 7)
            assert near.stop() == 0
            assert ctl.get(f"{root}/v1/rooms/{ID}/7")
            near.start()
            registered(prefill, 8)
            assert prefill.prefill.epoch == epoch
