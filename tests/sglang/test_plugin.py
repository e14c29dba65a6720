"""The plug-in, applied by SGLang's own HookRegistry to SGLang's own classes, in processes of SGLang's environment."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from etcd_pd.sglang import plugin as plugin
from tests.sglang.conftest import Peer, PeerError, Sglang, resolved
from tests.sglang.rows import row
from tests.support.agents import AgentProcess
from tests.support.etcd_server import EtcdServer
from tests.support.ports import free_port
from tests.support.waiting import wait_until

METHODS = ["round_robin", "follow_bootstrap_room", "total_requests", "total_tokens"]
ROOMS = [9193475737872407803 - 3 * number for number in range(12)]


class Cell:
    """One prefill instance with its agent, and decodes with theirs."""

    def __init__(self, sglang: Sglang, agent: AgentProcess, decode_agent: AgentProcess) -> None:
        self.sglang, self.agent, self.decode_agent = sglang, agent, decode_agent
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.server = sglang.server(self.port)  # SGLang's own, which its prefill starts
        self.ranks: list[Peer] = []

    def start(self, dp_size: int, launch_id: str = "launch-1", **options: Any) -> list[Peer]:
        """The prefill's scheduler processes; SGLang's own server has them all."""
        self.ranks = []
        for dp in range(dp_size):
            self.start_rank(dp, dp_size, launch_id, **options)
        return self.ranks

    def start_rank(self, dp: int, dp_size: int, launch_id: str = "launch-1", **options: Any) -> Peer:
        """One of them."""
        environment = {
            "ETCD_PD_SOCKET": self.agent.socket_path,
            "ETCD_PD_INSTANCE": "prefill-0",
            "ETCD_PD_ADDRESSES": self.address,
            "ETCD_PD_LAUNCH_ID": launch_id,
            **options.pop("environment", {}),
        }
        rank = self.sglang.prefill(self.port, dp, dp_size, plugin=True, environment=environment, **options)
        self.ranks.append(rank)
        return rank

    def restart(self, dp_size: int) -> None:
        """All of the prefill's processes end, SGLang's own server too, and another start of it begins."""
        for process in (*self.ranks, self.server):
            process.kill()
        self.server = self.sglang.server(self.port)
        self.start(dp_size, launch_id="launch-2")

    def decode(self, **options: Any) -> Peer:
        """A decode scheduler process."""
        environment = {"ETCD_PD_SOCKET": self.decode_agent.socket_path, **options.pop("environment", {})}
        return self.sglang.decode(plugin=True, environment=environment, **options)

    def take(self, dp_rank: int, room: int) -> str:
        """A rank takes a room; the status at once, that is before etcd has it."""
        return str(self.ranks[dp_rank]("take", room=room, address=self.address))

    def arrive(self, decode: Peer, room: int, named: int | None = None) -> None:
        """The request arrives at decode."""
        decode("arrive", host="127.0.0.1", port=self.port, room=room, named=named)


@pytest.fixture
def cell(sglang: Sglang, agent: AgentProcess, decode_agent: AgentProcess) -> Cell:
    return Cell(sglang, agent, decode_agent)


def rooms_in_etcd(etcd: EtcdServer, root: str) -> dict[int, dict[str, Any]]:
    """Every room's key."""
    return {int(kv.key.rpartition("/")[2]): json.loads(kv.value) for kv in etcd.ctl.get_prefix(f"{root}/v1/rooms/")}


# --- loading


def test_without_the_variable_nothing_is_touched(sglang: Sglang) -> None:
    peer = sglang.start()
    assert peer("load_plugins") == []
    assert not [line for line in peer("log") if line.startswith("WARNING")]


def test_with_the_variable_every_hook_is_applied_and_only_the_client_is_imported(sglang: Sglang) -> None:
    peer = sglang.start(ETCD_PD_ENABLE="1")
    assert peer("load_plugins") == sorted(point.target for point in plugin.HOOK_POINTS)
    assert peer("loaded", prefixes=["etcd3", "grpc", "google", "tenacity", "rich"]) == []
    assert not [name for name in peer("loaded", prefixes=["etcd_pd"]) if name.split(".")[1:2] in (["agent"], ["store"])]


@pytest.mark.parametrize("target", [point.target for point in plugin.HOOK_POINTS if "__init__" not in point.target])
def test_a_release_is_left_alone_and_logged_once_when_it_lacks_a_hook_point(sglang: Sglang, target: str) -> None:
    peer = sglang.start(ETCD_PD_ENABLE="1")
    peer("remove", name=target)
    assert peer("load_plugins") == []
    warnings = [line for line in peer("log") if line.startswith("WARNING")]
    assert len(warnings) == 1 and target in warnings[0]


@pytest.mark.parametrize("wrong", [{"ETCD_PD_HEARTBEAT_SECONDS": "soon"}, {"ETCD_PD_HEARTBEAT_SECONDS": "-1"}])
def test_a_setting_that_makes_no_sense_leaves_sglang_alone(sglang: Sglang, wrong: dict[str, str]) -> None:
    peer = sglang.start(ETCD_PD_ENABLE="1", **wrong)
    assert peer("load_plugins") == []
    assert len([line for line in peer("log") if line.startswith("ERROR etcd_pd: not used")]) == 1


def test_an_address_that_makes_no_sense_leaves_the_rank_to_sglangs_own_server(cell: Cell) -> None:
    cell.start(2, environment={"ETCD_PD_ADDRESSES": "not an address"})
    assert [line for line in cell.ranks[0]("log") if "not announced: addresses" in line]
    decode = cell.decode()
    cell.arrive(decode, 7)
    cell.take(1, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)


def test_a_manager_that_is_made_again_in_the_same_process_replaces_the_first(cell: Cell) -> None:
    (rank,) = cell.start(1)
    decode = cell.decode()
    cell.arrive(decode, 6)
    assert resolved(decode, 6) == ("WaitingForInput", 0)
    rank("prefill")
    wait_until(lambda: decode("step")["6"][0] == "Failed", "the first one's room failed")
    wait_until(lambda: (rank("step"), cell.agent.log.count("rank announced"))[1] == 2, "the second is announced")
    there = [rank("endpoint")]
    wait_until(lambda: (decode("step"), decode("known_ranks", address=cell.address))[1] == there, "decode knows it")
    cell.arrive(decode, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 0)
    assert decode("endpoints", room=7) == [[*rank("endpoint"), 0]]


# --- rooms


@pytest.mark.parametrize(
    ("method", "plain_dp"),
    [*((method, False) for method in METHODS), *((method, True) for method in METHODS if method != METHODS[1])],
)
def test_a_full_dispatch(cell: Cell, etcd: EtcdServer, root: str, method: str, plain_dp: bool) -> None:
    """SGLang's DP controller chooses; decode learns the same rank through two agents and etcd."""
    cell.start(4, method=method, plain_dp=plain_dp)
    chosen = cell.sglang.start()("dispatch", method=method, dp_size=4, rooms=ROOMS)
    decode = cell.decode()
    for room, rank in zip(ROOMS, chosen, strict=True):
        cell.arrive(decode, room)
        assert cell.take(rank, room) == "Bootstrapping"
    assert [resolved(decode, room) for room in ROOMS] == [("WaitingForInput", rank) for rank in chosen]
    found = {room: value["dp_rank"] for room, value in rooms_in_etcd(etcd, root).items()}
    assert found == ({} if method == "follow_bootstrap_room" else dict(zip(ROOMS, chosen, strict=True)))
    copied = {str(room): rank for room, rank in found.items()}
    wait_until(
        lambda: cell.server("query", address=cell.address, rooms=ROOMS) == copied, "SGLang's server knows the same"
    )


def test_rooms_are_said_to_the_registry_alone_when_the_switch_says_so(cell: Cell) -> None:
    cell.start(2, environment={"ETCD_PD_COPY_ROOMS": "0"})
    decode = cell.decode()
    cell.arrive(decode, 7)
    cell.take(1, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
    assert cell.server("query", address=cell.address, rooms=[7]) == {}


def test_followed_rooms_with_plain_dp_stay_what_sglang_makes_of_them(cell: Cell) -> None:
    """sgl-project/sglang#29725: the sender compares the room with the attention rank, which is 0 on every replica."""
    cell.start(2, method="follow_bootstrap_room", plain_dp=True)
    assert (cell.take(0, 6), cell.take(1, 7)) == ("Bootstrapping", "Failed")


def test_endpoints_come_from_the_registry(cell: Cell) -> None:
    ranks = cell.start(2)
    decode = cell.decode()
    cell.arrive(decode, 7)
    cell.take(1, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
    assert decode("endpoints", room=7) == [[*ranks[1]("endpoint"), 0]]


def test_the_rank_named_on_the_request_comes_first(cell: Cell) -> None:
    cell.start(4)
    decode = cell.decode()
    cell.arrive(decode, 7, named=3)
    assert resolved(decode, 7) == ("WaitingForInput", 3)


def test_a_single_rank_needs_no_room(cell: Cell) -> None:
    cell.start(1)
    decode = cell.decode()
    cell.arrive(decode, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 0)


def test_follow_bootstrap_room_overruled_on_the_prefill_side_fails_there(cell: Cell) -> None:
    """SGLang's own rule: a request dispatched elsewhere than its room says fails, with its reason."""
    cell.start(2, method="follow_bootstrap_room")
    assert cell.take(1, 6) == "Failed"
    assert "follow_bootstrap_room conflict" in cell.ranks[1]("sent_failure", room=6)


def test_follow_bootstrap_room_overruled_with_a_registered_rank(cell: Cell) -> None:
    """With SGLang's switch for mixed routing on both sides, the registered rank counts and not the room."""
    force = {"SGLANG_DISAGGREGATION_FORCE_QUERY_PREFILL_DP_RANK": "1"}
    cell.start(2, method="follow_bootstrap_room", environment=force)
    decode = cell.decode(environment=force)
    cell.arrive(decode, 6)
    cell.take(1, 6)
    assert resolved(decode, 6) == ("WaitingForInput", 1)


@pytest.mark.parametrize(("room", "prompts"), [(70, 1), ([70, 80], 2)], ids=["one prompt", "a batch"])
def test_parallel_samples(cell: Cell, room: Any, prompts: int, etcd: EtcdServer, root: str) -> None:
    """n > 1: SGLang gives samples rooms of their own, or the same one twice (a list of rooms); both resolve and end."""
    cell.start(2)
    rooms = cell.sglang.start()("rooms_of", room=room, prompts=prompts, n=2)
    decode = cell.decode()
    for sample in rooms:
        cell.take(1, sample)
    for sample in set(rooms):
        cell.arrive(decode, sample)
        assert resolved(decode, sample) == ("WaitingForInput", 1)
    for sample in rooms[:-1]:
        cell.ranks[1]("finish", room=sample)
    assert rooms[-1] in rooms_in_etcd(etcd, root), "a sample still uses it"
    cell.ranks[1]("finish", room=rooms[-1])
    wait_until(lambda: not rooms_in_etcd(etcd, root), "every room was released")


def test_a_room_that_another_rank_owns_fails_at_the_one_that_came_later(cell: Cell) -> None:
    cell.start(2)
    decode = cell.decode()
    cell.arrive(decode, 7)
    cell.take(0, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 0)
    cell.take(1, 7)
    wait_until(lambda: (cell.ranks[1]("step"), cell.ranks[1]("sent", room=7))[1] == "Failed", "the second fails")
    assert "owned by prefill-0/0@" in cell.ranks[1]("sent_failure", room=7)
    assert decode("step")["7"] == ["WaitingForInput", 0]


def test_an_abort_on_the_prefill_side_reaches_decode(cell: Cell) -> None:
    cell.start(2)
    decode = cell.decode()
    cell.arrive(decode, 7)
    cell.take(1, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
    cell.ranks[1]("abort", room=7)
    wait_until(lambda: decode("step")["7"][0] == "Failed", "decode fails the room")
    assert "Aborted" in decode("received_failure", room=7)


def test_a_room_that_nobody_registers_ends(cell: Cell) -> None:
    cell.start(2)
    decode = cell.decode(environment={"SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "1"})
    cell.arrive(decode, 7)
    wait_until(lambda: decode("step")["7"][0] == "Failed", "decode fails the room")
    assert "before the deadline" in decode("received_failure", room=7)


def test_a_request_is_refused_with_what_differs_when_the_prefill_does_not_fit(cell: Cell) -> None:
    """SGLang's own check ends the whole decode process (RuntimeError: Page size mismatch)."""
    cell.start(2, page_size=16)
    decode = cell.decode(page_size=64)
    cell.arrive(decode, 7)
    wait_until(lambda: decode("step")["7"][0] == "Failed", "decode fails the room")
    assert "does not fit: page_size is 16 there and 64 here" in decode("received_failure", room=7)
    with pytest.raises(PeerError, match="Page size mismatch"):
        cell.sglang.decode(page_size=64)("ensure", address=cell.address)


def test_a_pair_that_does_not_fit_is_left_to_sglangs_own_check_when_the_switch_says_warn(cell: Cell) -> None:
    cell.start(2, page_size=16)
    decode = cell.decode(page_size=64, environment={"ETCD_PD_FINGERPRINT": "warn"})
    with pytest.raises(PeerError, match="Page size mismatch"):
        wait_until(lambda: decode("ensure", address=cell.address), "the topology is there")
    assert any("page_size is 16 there and 64 here" in line for line in decode("log"))


# --- what SGLang's own server would have let through


def test_sglangs_own_server_is_not_needed(cell: Cell) -> None:
    cell.start(2)
    cell.server.kill()
    decode = cell.decode()
    cell.arrive(decode, 7)
    cell.take(1, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)


def test_a_poisoned_route_is_not_looked_at(cell: Cell) -> None:
    cell.start(2)
    for dp in range(2):
        requests.put(f"http://{cell.address}/route", json=row(dp, 2, rank_ip="6.6.6.6", rank_port=666), timeout=5)
    decode = cell.decode()
    cell.arrive(decode, 7)
    cell.take(1, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
    assert decode("endpoints", room=7) == [[*cell.ranks[1]("endpoint"), 0]]


def test_a_topology_is_used_when_all_ranks_are_there(cell: Cell) -> None:
    first = cell.start_rank(0, 2)
    decode = cell.decode()
    cell.arrive(decode, 7)
    wait_until(lambda: (first("step"), "rank announced" in cell.agent.log)[1], "the first rank is announced")
    assert not decode("ensure", address=cell.address)
    cell.start_rank(1, 2)
    cell.take(1, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)


def test_a_rank_of_another_topology_is_refused(cell: Cell) -> None:
    cell.start(2)
    stranger = cell.start_rank(3, 8)
    wait_until(lambda: (stranger("step"), [line for line in stranger("log") if "refused" in line])[1], "it is refused")
    decode = cell.decode()
    assert wait_until(lambda: decode("ensure", address=cell.address), "the topology is there")
    assert decode("known_topology", address=cell.address)["dp_size"] == 2


# --- deaths


def test_the_death_of_a_rank_fails_its_rooms_at_once_and_no_others(cell: Cell) -> None:
    """Long before SGLang's heartbeat, which asks a server that is still alive here."""
    cell.start(2)
    decode = cell.decode()
    decode("start_heartbeat", interval=0.2)
    for room, rank in ((6, 0), (7, 1)):
        cell.arrive(decode, room)
        cell.take(rank, room)
        assert resolved(decode, room) == ("WaitingForInput", rank)
    cell.ranks[1].kill()
    wait_until(lambda: decode("step")["7"][0] == "Failed", "the room of the dead rank failed")
    assert "is gone" in decode("received_failure", room=7)
    assert decode("step")["6"] == ["WaitingForInput", 0]


def test_the_death_of_a_rank_that_the_request_named_is_seen_too(cell: Cell) -> None:
    cell.start(2, method="follow_bootstrap_room")
    decode = cell.decode()
    cell.arrive(decode, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
    cell.ranks[1].kill()
    wait_until(lambda: decode("step")["7"][0] == "Failed", "the room of the dead rank failed")


def test_a_new_topology_is_used_when_a_prefill_restarts_with_another(cell: Cell) -> None:
    cell.start(4)
    decode = cell.decode()
    cell.arrive(decode, 7)
    cell.take(3, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 3)
    cell.restart(2)
    wait_until(lambda: decode("step")["7"][0] == "Failed", "the old start's room failed")
    decode("received_failure", room=7)
    wait_until(lambda: (decode("step"), decode("known_topology", address=cell.address))[1] is None, "it was forgotten")
    cell.arrive(decode, 8)
    cell.take(1, 8)
    assert resolved(decode, 8) == ("WaitingForInput", 1)
    assert decode("known_topology", address=cell.address)["dp_size"] == 2
    assert decode("endpoints", room=8) == [[*cell.ranks[1]("endpoint"), 0]]


def test_a_topology_that_sglangs_own_server_gave_is_forgotten_when_the_prefill_restarts_with_another(
    cell: Cell,
) -> None:
    cell.start_rank(0, 2)
    cell.start_rank(1, 2, environment={"ETCD_PD_ADDRESSES": "not an address"})  # so the registry has half of it
    decode = cell.decode()
    cell.arrive(decode, 6)
    cell.take(0, 6)
    assert resolved(decode, 6) == ("WaitingForInput", 0)
    assert decode("known_topology", address=cell.address)["dp_size"] == 2
    cell.restart(4)
    wait_until(lambda: (decode("step"), decode("known_topology", address=cell.address))[1] is None, "it was forgotten")


def test_a_rank_is_asked_where_it_is_now_when_it_alone_begins_anew(cell: Cell) -> None:
    cell.start(2)
    decode = cell.decode()
    cell.arrive(decode, 7)
    cell.take(1, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
    before = decode("endpoints", room=7)
    cell.ranks[1]("prefill")
    wait_until(lambda: decode("step")["7"][0] == "Failed", "the room of its former manager failed")
    decode("received_failure", room=7)
    wait_until(lambda: (cell.ranks[1]("step"), cell.agent.log.count("rank announced"))[1] == 3, "it is back")
    cell.arrive(decode, 8)
    cell.take(1, 8)
    assert resolved(decode, 8) == ("WaitingForInput", 1)
    assert decode("endpoints", room=8) == [[*cell.ranks[1]("endpoint"), 0]] != before


def test_a_wedged_scheduler_is_dead_after_its_heartbeat(cell: Cell) -> None:
    cell.start(2, environment={"ETCD_PD_HEARTBEAT_SECONDS": "0.5"})
    decode = cell.decode()
    cell.arrive(decode, 7)
    cell.take(1, 7)

    def at_decode() -> str:
        cell.ranks[0]("step")  # this one goes on turning, rank 1 does not
        return str(decode("step")["7"][0])

    wait_until(lambda: at_decode() == "Failed", "the wedged rank's room failed")
    assert "no heartbeat" in cell.agent.log


def test_an_agent_restart_loses_nothing(cell: Cell, etcd: EtcdServer, root: str) -> None:
    cell.start(2)
    decode = cell.decode()
    cell.take(1, 7)
    wait_until(lambda: rooms_in_etcd(etcd, root), "the room is in etcd")
    for process in (cell.agent, cell.decode_agent):
        process.stop()
        process.start()

    def turn() -> list[Any]:
        for rank in cell.ranks:
            rank("step")
        return list(decode("step").get("7", []))

    turn()
    cell.arrive(decode, 7)
    wait_until(lambda: turn() == ["WaitingForInput", 1], "the room is resolved")


# --- an agent that comes late


def test_an_agent_that_comes_later_is_used(cell: Cell, etcd: EtcdServer, root: str) -> None:
    cell.agent.stop()
    cell.start(2)
    decode = cell.decode()
    cell.take(1, 7)
    cell.agent.start()
    wait_until(lambda: ([rank("step") for rank in cell.ranks], rooms_in_etcd(etcd, root))[1], "the room is in etcd")
    cell.arrive(decode, 7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
