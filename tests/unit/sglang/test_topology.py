"""What becomes of a topology that SGLang holds, as the registry's events come: with a manager that counts its failures.

tests/sglang has the same with SGLang's own classes; here are orders of events that a test cannot make there.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from etcd_pd.client import Described
from etcd_pd.sglang.decode import DecodeSide
from etcd_pd.sglang.guard import Original
from etcd_pd.wire.values import InstanceInfo, PrefillInstance, Rank, RankEndpoint, Topology

ADDRESS = "host:1"


class Manager:
    """What the plug-in touches of SGLang's."""

    def __init__(self) -> None:
        self.prefill_info_table: dict[str, Any] = {}
        self.connection_pool: dict[str, list[dict[str, Any]]] = {}
        self.connection_lock = threading.Lock()
        self.failures = 0

    def _handle_node_failure(self, address: str) -> None:
        self.failures += 1
        self.prefill_info_table.pop(address, None)


class Desk:
    """A decode side, and what the registry says to it."""

    def __init__(self) -> None:
        self.manager = Manager()
        self.found: PrefillInstance | None = None
        client: Any = SimpleNamespace(decode=SimpleNamespace(instance=lambda _: self.found, follow=lambda _: None))
        session: Any = SimpleNamespace(lock=nullcontext(), client=client, synced=True, connected=False)
        self.session, self.side = session, DecodeSide(session)

    def describe(self, instance: PrefillInstance | None) -> None:
        self.found = instance
        self.side.on_event(Described(ADDRESS, instance))

    def fetch(self, dp: int) -> None:
        """SGLang's own server is asked, and describes a start of that size."""

        def fetch(manager: Manager, address: str) -> bool:
            sizes = {"attn_tp_size": 1, "attn_cp_size": 1, "dp_size": dp, "pp_size": 1}
            manager.prefill_info_table[address] = SimpleNamespace(**sizes)
            return True

        assert self.side.topology(Original(fetch), self.manager, ADDRESS)


def start(incarnation: str, dp: int, ranks: int | None = None) -> PrefillInstance:
    info = InstanceInfo(incarnation, incarnation, (ADDRESS,), Topology(dp=dp), "sglang:round_robin")
    there = range(dp if ranks is None else ranks)
    endpoints = (RankEndpoint(Rank(dp), "10.0.0.1", 5000 + dp, incarnation=incarnation) for dp in there)
    return PrefillInstance("p", info, tuple(endpoints))


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize("dp", [2, 4])
def test_nothing_fails_when_the_registry_catches_up_with_what_sglangs_own_server_described(desk: Desk, dp: int) -> None:
    desk.session.synced, desk.found = False, start("old", 2)
    desk.fetch(dp)
    desk.describe(start("old", 2))
    desk.session.synced = True
    for instance in (start("old", 2, ranks=1), None, start("new", dp, ranks=1), start("new", dp)):
        desk.describe(instance)
    assert desk.manager.failures == 0
    assert ADDRESS in desk.manager.prefill_info_table


def test_the_start_after_it_is_noticed_when_sglangs_own_server_had_described_one(desk: Desk) -> None:
    desk.fetch(2)
    desk.describe(start("one", 2))
    desk.describe(start("two", 2, ranks=1))
    assert desk.manager.failures == 1


def test_a_topology_is_dropped_when_the_registry_has_another_whole_one(desk: Desk) -> None:
    desk.fetch(2)
    desk.describe(start("new", 4, ranks=3))
    assert desk.manager.failures == 0, "it may be what the start before has left"
    desk.describe(start("new", 4))
    assert desk.manager.failures == 1


def test_nothing_fails_when_sglangs_heartbeat_dropped_the_topology_first(desk: Desk) -> None:
    desk.fetch(2)
    desk.describe(start("one", 2))
    desk.manager.prefill_info_table.clear()
    desk.describe(start("two", 2))
    assert desk.manager.failures == 0, "what waits for the new start goes on"


def test_endpoints_are_forgotten_when_ranks_are_elsewhere_and_no_others(desk: Desk) -> None:
    desk.fetch(2)
    desk.describe(start("one", 2))
    pool = desk.manager.connection_pool
    pool[f"{ADDRESS}_0_0_0"] = [{"rank_ip": "10.0.0.1", "rank_port": 5000}]
    pool[f"{ADDRESS}_1_0_0"] = [{"rank_ip": "10.0.0.1", "rank_port": "5001"}]
    pool[f"{ADDRESS}0_0_0_0"] = [{"rank_ip": "10.0.0.9", "rank_port": 1}]
    there = start("one", 2)
    moved = PrefillInstance("p", there.info, (there.ranks[0], RankEndpoint(Rank(1), "10.0.0.1", 9, incarnation="one")))
    desk.describe(moved)
    assert sorted(pool) == [f"{ADDRESS}0_0_0_0", f"{ADDRESS}_0_0_0"]
    assert desk.manager.failures == 0
