"""A scrape of a running agent: what it shows, and that it shows what happened."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

import etcd_pd
from etcd_pd import Rejected, Resolved
from tests.support.agents import AgentProcess, announce, wait_for
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration
ROOMS = 50


@pytest.fixture
def agent(etcd: EtcdServer, root: str) -> Iterator[AgentProcess]:
    with AgentProcess(etcd.endpoint, root, "agent", "--metrics-listen=127.0.0.1:0") as running:
        yield running


def scrape(agent: AgentProcess) -> list[Metric]:
    """What the agent shows."""
    found = re.search(r"metrics at (http://\S+)", agent.log)
    assert found, agent.log
    with urllib.request.urlopen(found[1], timeout=5) as answer:
        return list(text_string_to_metric_families(answer.read().decode()))


def value(families: list[Metric], name: str, **labels: str) -> float:
    """A sample's value."""
    found = [s for family in families for s in family.samples if s.name == name and labels.items() <= s.labels.items()]
    assert len(found) == 1, (name, labels, found)
    return found[0].value


def test_what_happens_is_counted(agent: AgentProcess, etcd: EtcdServer) -> None:
    with agent.client() as prefill, agent.client() as other, agent.client() as decode:
        announce(prefill, dp_rank=1)
        announce(other, dp_rank=2)
        for room in range(ROOMS):
            prefill.prefill.register(room)
        seen: list[object] = []

        def all_registered() -> bool:
            seen.extend(prefill.prefill.poll())
            return len(seen) >= ROOMS

        wait_until(all_registered, "all are registered")
        other.prefill.register(0)
        wait_for(other, Rejected)
        decode.decode.want("prefill-0", 7, timeout=60)
        wait_for(decode, Resolved)
        found = scrape(agent)
        assert value(found, "etcd_pd_registrations_total", outcome="Registered") == ROOMS
        assert value(found, "etcd_pd_registrations_total", outcome="RoomConflict") == 1
        assert value(found, "etcd_pd_resolutions_total", outcome="Resolved") == 1
        assert value(found, "etcd_pd_register_seconds_count") == ROOMS
        assert value(found, "etcd_pd_resolve_seconds_count") == 1
        assert value(found, "etcd_pd_batch_rooms_sum") == ROOMS
        assert value(found, "etcd_pd_rank_rooms", instance="prefill-0", dp_rank="1") == ROOMS
        assert value(found, "etcd_pd_rank_rooms", instance="prefill-0", dp_rank="2") == 0
        assert value(found, "etcd_pd_cell_rooms") == ROOMS
        assert value(found, "etcd_pd_session_state", state="live") == 1
        assert value(found, "etcd_pd_watch_state", state="synced") == 1
        assert 0 < value(found, "etcd_pd_session_lease_remaining_seconds") <= 5
        assert value(found, "etcd_pd_watch_revision") == etcd.ctl.revision()
        assert value(found, "etcd_pd_watch_silence_seconds") < 2
        assert value(found, "etcd_pd_watch_stale_seconds") == 0
        assert value(found, "etcd_pd_watch_lag_revisions") == 0
        assert value(found, "etcd_pd_etcd_endpoint", endpoint=etcd.endpoint) == 1
        assert value(found, "etcd_pd_etcd_connections_total") == 1
        assert value(found, "etcd_pd_etcd_authentications_total") == 0
        assert value(found, "etcd_pd_engines") == 3 and value(found, "etcd_pd_waits") == 1
        assert value(found, "etcd_pd_queue_rooms") == 0
        assert value(found, "etcd_pd_build_info", version=etcd_pd.__version__) == 1
        assert value(found, "etcd_pd_room_leases") >= 1
        assert value(found, "etcd_pd_socket_received_bytes_total") > 0 < value(found, "etcd_pd_socket_sent_bytes_total")


def test_an_etcd_that_is_gone_is_seen(agent: AgentProcess, etcd: EtcdServer) -> None:
    wait_until(lambda: value(scrape(agent), "etcd_pd_watch_state", state="synced"), "synced")
    etcd.kill()
    wait_until(lambda: value(scrape(agent), "etcd_pd_watch_state", state="stale"), "stale")
    wait_until(lambda: value(scrape(agent), "etcd_pd_session_lease_remaining_seconds") == 0, "no time left", timeout=20)
    assert value(scrape(agent), "etcd_pd_session_state", state="live") == 0
    found = scrape(agent)
    assert value(found, "etcd_pd_watch_stale_seconds") > 0
    assert value(found, "etcd_pd_watch_stale_total", cause="StoreUnavailable") == 1
    assert value(found, "etcd_pd_etcd_errors_total", op="keepalive", error="StoreUnavailable") > 0
    assert value(scrape(agent), "etcd_pd_session_losses_total") == 0  # what became of it, only etcd can say


def test_a_lost_session_is_counted(agent: AgentProcess, etcd: EtcdServer) -> None:
    found = wait_until(lambda: re.search(r"session lease granted lease=(\w+)", agent.log), "a lease")
    etcd.ctl.revoke(int(found[1], 16))
    wait_until(lambda: value(scrape(agent), "etcd_pd_session_losses_total") == 1, "the loss is noticed")
    wait_until(lambda: value(scrape(agent), "etcd_pd_session_state", state="live"), "there is another lease")


def test_an_alarm_of_etcd_is_shown_and_so_is_its_size(fresh_etcd: EtcdServer, root: str) -> None:
    fresh_etcd.ctl.alarm("NOSPACE", active=True)
    with AgentProcess(fresh_etcd.endpoint, root, "agent", "--metrics-listen=127.0.0.1:0") as agent:
        name = "etcd_pd_etcd_alarms"
        wait_until(lambda: any(f.samples for f in scrape(agent) if f.name == name), "etcd was asked")
        found = scrape(agent)
        assert value(found, name, alarm="NOSPACE") == 1 and value(found, name, alarm="CORRUPT") == 0
        status = fresh_etcd.ctl.status()
        assert value(found, "etcd_pd_etcd_database_bytes") == status.db_size
        assert 0 < value(found, "etcd_pd_etcd_database_in_use_bytes") <= status.db_size
        assert "etcd raised its alarm NOSPACE" in agent.log


def test_names_follow_the_conventions(agent: AgentProcess) -> None:
    ours = [family for family in scrape(agent) if family.name.startswith("etcd_pd_")]
    assert len(ours) > 20
    for family in ours:
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"(_ms|_millis|_kb|_mb|_minutes|_percent)", family.name), family.name
        names = {label for sample in family.samples for label in sample.labels}
        known = {"outcome", "state", "instance", "dp_rank", "alarm", "le", "version"}
        assert names <= known | {"cause", "op", "error", "endpoint"}, family.name
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_rooms", "_bytes")), family.name


def test_two_agents_on_one_machine_do_not_stop_each_other(agent: AgentProcess, etcd: EtcdServer, root: str) -> None:
    found = re.search(r"metrics at http://(\S+)/metrics", agent.log)
    assert found
    with AgentProcess(etcd.endpoint, root, "second", f"--metrics-listen={found[1]}") as second:
        with second.client() as client:
            announce(client)
        assert f"no metrics at {found[1]}" in second.log
