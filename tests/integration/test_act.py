"""``etcd-pd drain`` and ``etcd-pd fail`` on a cell with an agent and engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from etcd_pd import Client, Drained, Ended, PrefillLost, RankEnded, Registered, Resolved, RoomFailed
from etcd_pd.cli.app import cli
from tests.support.agents import AgentProcess, announce, wait_for
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration
INSTANCE, ROOM = "prefill-0", 4711


@pytest.fixture
def agent(etcd: EtcdServer, root: str) -> Iterator[AgentProcess]:
    with AgentProcess(etcd.endpoint, root) as running:
        yield running


@pytest.fixture
def prefill(agent: AgentProcess) -> Iterator[Client]:
    with agent.client() as client:
        announce(client, INSTANCE, dp_rank=2)
        yield client


@pytest.fixture
def decode(agent: AgentProcess) -> Iterator[Client]:
    with agent.client() as client:
        yield client


def run(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(cli, arguments, input=answer)


def resolved(prefill: Client, decode: Client) -> None:
    """A room that decode knows the rank of."""
    prefill.prefill.register(ROOM)
    wait_for(prefill, Registered)
    decode.decode.want(INSTANCE, ROOM, timeout=60)
    wait_for(decode, Resolved)


def test_a_failed_room_ends_its_wait_with_the_reason(
    etcd: EtcdServer, root: str, prefill: Client, decode: Client
) -> None:
    resolved(prefill, decode)
    flags = ("--etcd", etcd.endpoint, "--root", root)
    done = run("fail", "room", str(ROOM), *flags, "--reason", "it hangs")
    assert done.exit_code == 0, done.output
    assert "dp_rank 2's" in done.output
    ended = wait_for(decode, Ended)
    assert isinstance(ended.error, RoomFailed) and ended.error.reason == "it hangs"
    assert "failed already: it hangs" in run("fail", "room", str(ROOM), *flags).output
    prefill.prefill.release(ROOM)  # its owner may still end it


def test_a_failed_rank_loses_its_rooms_and_comes_back_with_a_new_epoch(
    etcd: EtcdServer, root: str, prefill: Client, decode: Client
) -> None:
    resolved(prefill, decode)
    flags = ("--etcd", etcd.endpoint, "--root", root)
    refused = run("fail", "rank", INSTANCE, "2", *flags, answer="n\n")
    assert refused.exit_code == 1 and "1 rooms of dp_rank 2" in refused.output
    done = run("fail", "rank", INSTANCE, "2", *flags, "--yes")
    assert done.exit_code == 0, done.output
    ended = wait_for(decode, Ended)
    assert isinstance(ended.error, PrefillLost) and ended.error.dp_rank == 2
    old = wait_for(prefill, RankEnded).epoch
    assert f"epoch {old} ended" in done.output

    def epoch() -> int:
        prefill.prefill.poll()
        return prefill.prefill.epoch

    new = wait_until(epoch, "the rank is back")
    assert new > old
    told = json.loads(run("fail", "rank", INSTANCE, "2", *flags, "--yes", "--output", "json").output)
    assert (told["dp_rank"], told["epoch"]) == (2, new) and told["revision"] > new


def test_what_is_not_there_cannot_be_failed(etcd: EtcdServer, root: str) -> None:
    flags = ("--etcd", etcd.endpoint, "--root", root)
    for arguments, said in ((("room", "1"), "has no key"), (("rank", "nobody", "0"), "has no rank 0")):
        done = run("fail", *arguments, *flags)
        assert done.exit_code == 1
        assert said in done.output


def test_rooms_of_two_instances_need_a_name(etcd: EtcdServer, root: str) -> None:
    value = '{"dp_rank": 0, "epoch": 1, "state": "assigned"}'
    lease = etcd.ctl.grant(60)
    for instance in ("a", "b"):
        etcd.ctl.put(f"{root}/v1/rooms/{instance}/5", value, lease)
    flags = ("--etcd", etcd.endpoint, "--root", root)
    assert "a, b all hold room 5" in run("fail", "room", "5", *flags).output
    assert run("fail", "room", "5", *flags, "--instance", "b").exit_code == 0
    failed = etcd.ctl.get(f"{root}/v1/rooms/b/5")
    assert failed is not None and '"failed"' in failed.value and failed.lease == lease


def test_a_drained_node_lets_no_room_in(agent: AgentProcess, prefill: Client) -> None:
    done = run("drain", "--socket", agent.socket_path)
    assert done.exit_code == 0 and "drained in" in done.output
    wait_for(prefill, Drained)


def test_a_node_that_holds_a_room_is_not_drained_in_time(agent: AgentProcess, prefill: Client) -> None:
    prefill.prefill.register(ROOM)
    wait_for(prefill, Registered)
    done = run("drain", "--socket", agent.socket_path, "--drain-timeout-seconds", "0.3")
    assert done.exit_code == 1 and "Error: " in done.output


def test_without_an_agent_it_says_how_to_start_one(tmp_path: Path) -> None:
    done = run("drain", "--socket", str(tmp_path / "none.sock"))
    assert done.exit_code == 1
    assert "no agent answers" in done.output and "etcd-pd run" in done.output
