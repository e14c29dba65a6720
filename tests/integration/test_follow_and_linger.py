"""What a gateway needs of client and agent: following an instance, and ranks that outlive a broken connection."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from etcd_pd import Announced, Client, Described, PrefillInstance, Rank, Registered, Topology
from tests.support.agents import AgentProcess, wait_for
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

ADDRESS = "prefill-0.test:8998"
INFO = {"page_size": 64, "layout": {"layers": [1, 2]}}


def announce(client: Client, dp: int = 0, *, linger: float = 0.0, port: int = 9000, launch_id: str = "l1") -> Announced:
    client.prefill.announce(
        "prefill-0",
        rank=Rank(dp),
        topology=Topology(dp=2),
        launch_id=launch_id,
        addresses=[ADDRESS],
        ip="127.0.0.1",
        port=port,
        extra=INFO,
        linger=linger,
    )
    return wait_for(client, Announced)


@pytest.fixture
def agent(etcd: EtcdServer, root: str) -> Iterator[AgentProcess]:
    with AgentProcess(etcd.endpoint, root, "agent", "--session-ttl-seconds=5") as process:
        yield process


def keys(etcd: EtcdServer, root: str) -> dict[str, Any]:
    return {kv.key: kv.create_revision for kv in etcd.ctl.get_prefix(f"{root}/v1/prefill/prefill-0/ranks/")}


class TestFollow:
    def follower(self, client: Client) -> Callable[[], PrefillInstance | None]:
        def look() -> PrefillInstance | None:
            client.decode.poll()
            return client.decode.instance(ADDRESS)

        return look

    def test_an_unknown_instance_is_answered_at_once(self, agent: AgentProcess) -> None:
        with agent.client() as client:
            client.decode.follow(ADDRESS)
            assert wait_for(client, Described) == Described(ADDRESS, None)

    def test_an_event_arrives_when_anything_of_the_instance_changes(self, agent: AgentProcess) -> None:
        with agent.client() as follower, agent.client() as engine, agent.client() as other:
            look = self.follower(follower)
            follower.decode.follow(ADDRESS)
            assert wait_for(follower, Described).instance is None
            announce(engine, 0)
            found = wait_until(look, "the instance is told")
            assert (found.id, found.info.extra, found.info.topology) == ("prefill-0", INFO, Topology(dp=2))
            announce(other, 1, port=9001)
            wait_until(lambda: len((look() or found).ranks) == 2, "the second rank is told")
            other.close()
            wait_until(lambda: len((look() or found).ranks) == 1, "its end is told")
            engine.close()
            wait_until(lambda: look() is None, "the instance's end is told")

    def test_the_answer_comes_after_those_to_earlier_wants(self, agent: AgentProcess) -> None:
        with agent.client() as follower, agent.client() as engine:
            announce(engine)
            engine.prefill.register(7)
            wait_for(engine, Registered)
            with agent.client() as first:
                assert first.decode.resolve("prefill-0", 7).dp_rank == 0, "the agent has seen it"
            follower.decode.want("prefill-0", 7)
            follower.decode.follow("prefill-0")
            wait_for(follower, Described)
            found = follower.decode.peek("prefill-0", 7)
            assert found and found.dp_rank == 0

    def test_a_new_agent_is_asked_again(self, agent: AgentProcess) -> None:
        with agent.client() as follower, agent.client() as engine:
            announce(engine)
            follower.decode.follow(ADDRESS)
            wait_until(self.follower(follower), "the instance is told")
            agent.stop()
            agent.start()
            assert wait_for(follower, Described).name == ADDRESS


class TestLinger:
    def test_a_rank_stays_and_is_taken_over_with_its_epoch_and_rooms(
        self, agent: AgentProcess, etcd: EtcdServer, root: str
    ) -> None:
        first, second = agent.client(), agent.client()
        epoch = announce(first, linger=30).epoch
        first.prefill.register(7)
        token = wait_for(first, Registered).token
        first.detach()
        wait_until(lambda: "lingering" in agent.log, "the agent has seen the connection's end")
        assert announce(second, linger=30).epoch == epoch
        second.prefill.register(7)
        assert wait_for(second, Registered).token == token
        second.close()
        wait_until(lambda: not keys(etcd, root), "closing ends it, linger or not")

    def test_it_vanishes_after_a_while(self, agent: AgentProcess, etcd: EtcdServer, root: str) -> None:
        client = agent.client()
        announce(client, linger=0.5)
        client.detach()
        wait_until(lambda: not keys(etcd, root), "it is gone")

    def test_another_process_at_its_place_replaces_it(self, agent: AgentProcess, etcd: EtcdServer, root: str) -> None:
        first = agent.client()
        epoch = announce(first, linger=30).epoch
        first.detach()
        wait_until(lambda: "lingering" in agent.log, "the agent has seen the connection's end")
        with agent.client() as second:
            assert announce(second, port=9999, launch_id="l2").epoch > epoch
            value = json.loads(etcd.ctl.get_prefix(f"{root}/v1/prefill/prefill-0/ranks/")[0].value)
            assert value["port"] == 9999

    def test_the_successor_is_notified_when_the_rank_ended_meanwhile(
        self, agent: AgentProcess, etcd: EtcdServer, root: str
    ) -> None:
        first = agent.client()
        epoch = announce(first, linger=30).epoch
        first.detach()
        wait_until(lambda: "lingering" in agent.log, "the agent has seen the connection's end")
        etcd.ctl.delete_prefix(f"{root}/v1/prefill/prefill-0/ranks/")
        wait_until(lambda: keys(etcd, root), "the agent wrote it again")
        with agent.client() as second:
            assert announce(second, linger=30).epoch > epoch
            second.prefill.register(7)
            wait_for(second, Registered)

    def test_without_it_a_broken_connection_is_the_end(self, agent: AgentProcess, etcd: EtcdServer, root: str) -> None:
        client = agent.client()
        announce(client)
        client.detach()
        wait_until(lambda: not keys(etcd, root), "it is gone")
