"""What SGLang's users report of its bootstrap server, reproduced there, and harmless at the gateway.

Each test does the same to both; first it shows the report, then what happens here.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pytest
import requests

from tests.sglang.conftest import GatewayProcess, MakeGateway, Peer, Sglang, healthy, resolved
from tests.sglang.rows import all_rows, row
from tests.sglang.test_gateway import Http
from tests.support.ports import free_port
from tests.support.waiting import wait_until

T = TypeVar("T")


class TheirServer:
    """SGLang's own bootstrap server: the process, and its endpoints."""

    def __init__(self, sglang: Sglang) -> None:
        self._sglang = sglang
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.peer: Peer = sglang.server(self.port)

    def restart(self) -> None:
        self.peer.kill()
        self.peer = self._sglang.server(self.port)


@pytest.fixture
def theirs(sglang: Sglang) -> TheirServer:
    return TheirServer(sglang)


@pytest.fixture
def ours(make_gateway: MakeGateway) -> GatewayProcess:
    return make_gateway("prefill-0")


def endpoint(server: TheirServer | GatewayProcess, dp_rank: int = 0) -> requests.Response:
    """Where the server says that a rank is."""
    place = {"prefill_dp_rank": dp_rank, "prefill_cp_rank": 0, "target_tp_rank": 0, "target_pp_rank": 0}
    return requests.get(f"{server.url}/route", params=place, timeout=5)


def unchanged_for(seconds: float, look: Callable[[], T]) -> T:
    """What `look` says at the start and at every moment until the end."""
    first, end = look(), time.monotonic() + seconds
    while time.monotonic() < end:
        assert look() == first
        time.sleep(0.02)
    return first


@dataclass
class Server:
    url: str


def ask(server: TheirServer | GatewayProcess) -> Http:
    return Http(server)


def test_duplicate_room(theirs: TheirServer, ours: GatewayProcess) -> None:
    """sgl-project/sglang#40125, #28003: two ranks take the same room, and decode fetches from the wrong one."""
    for server in (theirs, ours):
        for body in all_rows(4):
            ask(server).put(body)
        assert ask(server).register(7, 1).status_code == 200
    assert ask(theirs).register(7, 2).status_code == 200
    assert ask(theirs).query(7) == {"7": 2}, "the last writer won, and the first does not know"

    refusal = ask(ours).register(7, 2)
    assert (refusal.status_code, "prefill-0/1@" in refusal.text) == (409, True)
    assert ask(ours).query(7) == {"7": 1}


def test_a_restart_loses_everything(theirs: TheirServer, ours: GatewayProcess) -> None:
    """sgl-project/sglang#6215, #10365: ranks register once, so that only restarting the prefill helps."""
    for server in (theirs, ours):
        for body in all_rows(2):
            ask(server).put(body)
        ask(server).register(7, 1)
    theirs.restart()
    assert ask(theirs).route().status_code == 503
    assert ask(theirs).query(7) == {}

    ours.stop(signal.SIGKILL)
    ours.start()
    wait_until(lambda: ask(ours).route().status_code == 200, "the topology is back")
    assert ask(ours).query(7) == {"7": 1}
    assert endpoint(ours, 1).json() == {"rank_ip": "127.0.0.1", "rank_port": 1100}


def test_route_poisoning(theirs: TheirServer, ours: GatewayProcess, living_port: Callable[[], int]) -> None:
    """sgl-project/sglang#39400: anybody redirects a rank's KV cache requests."""
    real = row(rank_port=living_port())
    for server in (theirs, ours):
        ask(server).put(real)
    poison = row(rank_ip="6.6.6.6", rank_port=666)
    assert ask(theirs).put(poison).status_code == 200
    assert endpoint(theirs).json() == {"rank_ip": "6.6.6.6", "rank_port": 666}

    refusal = ask(ours).put(poison)
    assert (refusal.status_code, "living process" in refusal.text) == (409, True)
    assert endpoint(ours).json() == {"rank_ip": "127.0.0.1", "rank_port": real["rank_port"]}


def test_a_repeated_registration_counts_as_another_rank(theirs: TheirServer, ours: GatewayProcess) -> None:
    """A rank whose answer was lost registers again: the server says that it is ready, and is not."""
    for server in (theirs, ours):
        for _ in range(2):
            assert ask(server).put(row(0, 2)).status_code == 200
    assert ask(theirs).route().status_code == 200
    assert endpoint(theirs, 1).status_code == 404

    assert ask(ours).route().status_code == 503
    ask(ours).put(row(1, 2))
    assert ask(ours).route().status_code == 200


def test_a_rank_that_does_not_exist(theirs: TheirServer, ours: GatewayProcess) -> None:
    """Out-of-range ranks are accepted, and decode asks for a rank that nobody is."""
    for server in (theirs, ours):
        for body in all_rows(4):
            ask(server).put(body)
    assert ask(theirs).register(7, 99).status_code == 200
    assert ask(theirs).query(7) == {"7": 99}

    refusal = ask(ours).register(7, 99)
    assert (refusal.status_code, "dp_rank" in refusal.text) == (400, True)
    assert ask(ours).query(7) == {}


def test_a_topology_that_contradicts(theirs: TheirServer, ours: GatewayProcess, living_port: Callable[[], int]) -> None:
    """The first rank's sizes stand, and a rank of another topology is accepted into them."""
    for server in (theirs, ours):
        ask(server).put(row(0, 2, rank_port=living_port()))
    stranger = row(1, 8)
    assert ask(theirs).put(stranger).status_code == 200
    assert ask(theirs).route().json()["dp_size"] == 2

    refusal = ask(ours).put(stranger)
    assert (refusal.status_code, "dp size" in refusal.text) == (400, True)
    assert ask(ours).put(row(1, 2)).status_code == 200
    assert ask(ours).route().json()["dp_size"] == 2


def test_a_malformed_registration(theirs: TheirServer, ours: GatewayProcess) -> None:
    """A field that is missing is an internal error, without a word of which."""
    incomplete = {name: value for name, value in row().items() if name != "rank_ip"}
    assert ask(theirs).put(incomplete).status_code == 500

    refusal = ask(ours).put(incomplete)
    assert (refusal.status_code, "rank_ip" in refusal.text) == (400, True)


def test_a_dead_rank_behind_a_living_server(sglang: Sglang, theirs: TheirServer) -> None:
    """sgl-project/sglang#12779, #16903: the heartbeat asks a server that lives, so nobody sees the rank end.

    What happens here: test_plugin.py, test_the_death_of_a_rank_fails_its_rooms_at_once_and_no_others.
    """
    ranks = [sglang.prefill(theirs.port, dp, 2) for dp in range(2)]
    decode = sglang.decode()
    decode("arrive", host="127.0.0.1", port=theirs.port, room=7)
    ranks[1]("take", room=7, address=f"127.0.0.1:{theirs.port}")
    assert resolved(decode, 7) == ("WaitingForInput", 1)
    decode("start_heartbeat", interval=0.1)
    ranks[1].kill()
    assert unchanged_for(2.0, lambda: decode("step")["7"]) == ["WaitingForInput", 1]


def test_a_room_that_nobody_registers(sglang: Sglang, theirs: TheirServer) -> None:
    """Decode waits without an end of its own.

    What happens here: test_plugin.py, test_a_room_that_nobody_registers_ends.
    """
    for dp in range(2):
        sglang.prefill(theirs.port, dp, 2)
    decode = sglang.decode(environment={"SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "1"})
    decode("arrive", host="127.0.0.1", port=theirs.port, room=7)
    assert unchanged_for(2.0, lambda: decode("step")["7"]) == ["Bootstrapping", None]


def test_a_room_is_forgotten_by_the_clock(sglang: Sglang, ours: GatewayProcess) -> None:
    """Entries live for one to two clean-up intervals (120 s), requests for 300 s."""
    port = free_port()
    peer = sglang.start(SGLANG_DISAGGREGATION_BOOTSTRAP_ENTRY_CLEANUP_INTERVAL="1")
    peer("serve", host="127.0.0.1", port=port)
    wait_until(lambda: healthy(port), "SGLang's bootstrap server answers")
    both = [Http(Server(f"http://127.0.0.1:{port}")), ask(ours)]
    for server in both:
        server.put(row(0, 2))
        server.put(row(1, 2))
        server.register(7, 1)
    wait_until(lambda: both[0].query(7) == {}, "SGLang's server forgot the room")
    assert both[1].query(7) == {"7": 1}


def test_an_abort_on_the_prefill_side(sglang: Sglang, theirs: TheirServer) -> None:
    """The registry goes on saying that the rank has the room.

    What happens here: test_plugin.py, test_an_abort_on_the_prefill_side_reaches_decode.
    """
    ranks = [sglang.prefill(theirs.port, dp, 2) for dp in range(2)]
    ranks[1]("take", room=7, address=f"127.0.0.1:{theirs.port}")
    ranks[1]("abort", room=7)
    decode = sglang.decode()
    decode("arrive", host="127.0.0.1", port=theirs.port, room=7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
