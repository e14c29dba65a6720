"""The gateway beside a prefill: restarts, dead engines, and what it refuses."""

from __future__ import annotations

import http.server
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Protocol

import pytest
import requests

from etcd_pd.kubernetes.authority import Identity, issue, make_authority
from tests.sglang.conftest import GatewayProcess, MakeGateway, healthy
from tests.sglang.rows import all_rows, row
from tests.support.agents import AgentProcess
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

ALL = {"prefill_dp_rank": -1, "prefill_cp_rank": -1, "target_tp_rank": -1, "target_pp_rank": -1}


class Serves(Protocol):
    """A bootstrap server, ours or theirs."""

    url: str


class Http:
    """A bootstrap server's endpoints."""

    def __init__(self, server: Serves) -> None:
        self._url = server.url
        self.session = requests.Session()

    def put(self, body: Any) -> requests.Response:
        return self.session.put(f"{self._url}/route", json=body, timeout=10)

    def route(self) -> requests.Response:
        return self.session.get(f"{self._url}/route", params=ALL, timeout=10)

    def register(self, room: Any, dp_rank: Any) -> requests.Response:
        body = {"bootstrap_room": room, "dp_rank": dp_rank}
        return self.session.post(f"{self._url}/register_dp_rank", json=body, timeout=10)

    def query(self, *rooms: int, wait: float = 0) -> dict[str, int]:
        body = {"bootstrap_rooms": list(rooms)}
        response = self.session.post(f"{self._url}/query_dp_ranks", json=body, params={"wait": wait}, timeout=10)
        assert response.status_code == 200, response.text
        found: dict[str, int] = response.json()
        return found


def rank_keys(etcd: EtcdServer, root: str) -> dict[str, int]:
    """Every rank's key in etcd, with its create_revision."""
    return {kv.key: kv.create_revision for kv in etcd.ctl.get_prefix(f"{root}/v1/prefill/") if "/ranks/" in kv.key}


def start(
    make_gateway: MakeGateway, rows: list[dict[str, Any]], *options: str, **more: Any
) -> tuple[GatewayProcess, Http]:
    """A gateway with these ranks."""
    gateway = make_gateway("prefill-0", *options, **more)
    ask = Http(gateway)
    for body in rows:
        assert ask.put(body).status_code == 200
    return gateway, ask


# --- a gateway that ends


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_restarted_gateway_has_topology_and_rooms_as_before(
    make_gateway: MakeGateway, etcd: EtcdServer, root: str, number: int, living_port: Callable[[], int]
) -> None:
    gateway, ask = start(make_gateway, [row(dp, 4, rank_port=living_port()) for dp in range(4)])
    ask.register(7, 2)
    before, keys = ask.route().text, rank_keys(etcd, root)
    gateway.stop(number)
    assert rank_keys(etcd, root) == keys
    gateway.start()
    ask = Http(gateway)
    wait_until(lambda: ask.route().status_code == 200, "the topology is back")
    assert ask.route().text == before
    assert ask.query(7) == {"7": 2}
    assert ask.register(7, 1).status_code == 409
    wait_until(lambda: ask.register(8, 3).status_code == 200, "ranks register again")
    assert ask.query(8) == {"8": 3}
    assert rank_keys(etcd, root) == keys, "the epochs outlived the restart"


def test_ranks_of_a_gateway_that_does_not_come_back_vanish(
    make_gateway: MakeGateway, etcd: EtcdServer, root: str
) -> None:
    gateway, _ = start(make_gateway, all_rows(2), "--linger-seconds=1")
    assert len(rank_keys(etcd, root)) == 2
    gateway.stop(signal.SIGKILL)
    wait_until(lambda: not rank_keys(etcd, root), "the ranks are gone")


def test_a_gateway_that_ends_with_its_engine_leaves_nothing(
    make_gateway: MakeGateway, etcd: EtcdServer, root: str
) -> None:
    gateway, _ = start(make_gateway, all_rows(2))
    gateway.stop(signal.SIGTERM)
    wait_until(lambda: not rank_keys(etcd, root), "the ranks are gone")


def test_a_restarted_agent_finds_the_ranks_again(
    make_gateway: MakeGateway, agent: AgentProcess, etcd: EtcdServer, root: str
) -> None:
    _, ask = start(make_gateway, all_rows(2))
    keys = rank_keys(etcd, root)
    agent.stop()
    agent.start()
    wait_until(lambda: ask.register(7, 1).status_code == 200, "a rank registers", timeout=20)
    assert rank_keys(etcd, root) == keys


# --- an engine that ends


class Engine:
    """An engine's own HTTP server, as far as /health goes."""

    def __init__(self) -> None:
        engine = self
        self.status = 200

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(engine.status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._handler = Handler
        self.port = 0
        self.listen()

    def listen(self) -> None:
        self._server = http.server.HTTPServer(("127.0.0.1", self.port), self._handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


QUICK = ("--engine-health-interval-seconds=0.1", "--engine-health-failures=3")


def test_ranks_of_a_dead_engine_are_withdrawn_and_of_one_that_was_not_dead_come_back(
    make_gateway: MakeGateway, engine: Engine, etcd: EtcdServer, root: str
) -> None:
    gateway, ask = start(make_gateway, all_rows(2, prefill_http_port=engine.port), *QUICK)
    wait_until(lambda: "it answers" in gateway.log, "the gateway has seen the engine's health")
    engine.close()
    wait_until(lambda: not rank_keys(etcd, root), "its ranks are gone")
    assert not healthy(gateway.port)
    assert ask.route().status_code == 503
    assert ask.register(7, 1).status_code == 503
    engine.listen()
    wait_until(lambda: len(rank_keys(etcd, root)) == 2, "its ranks are back")
    assert healthy(gateway.port)
    wait_until(lambda: ask.register(7, 1).status_code == 200, "its ranks register")


def test_an_engine_that_says_that_it_is_unhealthy_is_dead(
    make_gateway: MakeGateway, engine: Engine, etcd: EtcdServer, root: str
) -> None:
    gateway, _ = start(make_gateway, all_rows(2, prefill_http_port=engine.port), *QUICK)
    wait_until(lambda: "it answers" in gateway.log, "the gateway has seen the engine's health")
    engine.status = 503
    wait_until(lambda: not rank_keys(etcd, root), "its ranks are gone")


def test_an_engine_that_still_starts_is_left_alone_while_its_ranks_live(
    make_gateway: MakeGateway, engine: Engine, etcd: EtcdServer, root: str, living_port: Callable[[], int]
) -> None:
    engine.status = 503
    living = [row(dp, 2, prefill_http_port=engine.port, rank_port=living_port()) for dp in range(2)]
    gateway, ask = start(make_gateway, living, *QUICK)
    time.sleep(1)  # ten questions, all of them answered with "not yet"
    assert len(rank_keys(etcd, root)) == 2
    engine.status = 200
    wait_until(lambda: "it answers" in gateway.log, "the gateway has seen the engine's health")


def test_an_engine_that_died_while_it_started_is_found_dead(
    make_gateway: MakeGateway, engine: Engine, etcd: EtcdServer, root: str
) -> None:
    engine.status = 503
    start(make_gateway, all_rows(2, prefill_http_port=engine.port), *QUICK)
    wait_until(lambda: not rank_keys(etcd, root), "its ranks are gone")


def test_an_engine_that_restarted_with_another_topology_replaces_the_old(
    make_gateway: MakeGateway, etcd: EtcdServer, root: str
) -> None:
    _, ask = start(make_gateway, all_rows(4))
    ask.register(7, 3)
    for body in all_rows(2, tp=2, load_balance_method="total_tokens", page_size=16):
        assert ask.put({**body, "rank_port": body["rank_port"] + 5000}).status_code == 200
    info = ask.route().json()
    assert (info["dp_size"], info["attn_tp_size"], info["page_size"]) == (2, 2, 16)
    assert len(rank_keys(etcd, root)) == 4
    wait_until(lambda: ask.query(7) == {}, "the old start's room is dead")


# --- rooms


def test_another_rank_can_take_a_room_over_where_that_is_allowed(make_gateway: MakeGateway) -> None:
    _, ask = start(make_gateway, all_rows(4), "--last-writer-wins")
    ask.register(7, 2)
    assert ask.register(7, 1).status_code == 200
    assert ask.query(7) == {"7": 1}


def test_a_query_can_wait(make_gateway: MakeGateway) -> None:
    _, ask = start(make_gateway, all_rows(4))
    found: list[dict[str, int]] = []
    waiting = threading.Thread(target=lambda: found.append(Http.query(ask, 7, 8, wait=10)))
    waiting.start()
    ask.session.close()
    assert ask.register(7, 2).status_code == 200
    assert waiting.is_alive()
    ask.register(8, 0)
    waiting.join()
    assert found == [{"7": 2, "8": 0}]
    assert ask.query(7, 9, wait=0.05) == {"7": 2}


def test_any_gateway_answers_queries(make_gateway: MakeGateway, decode_agent: AgentProcess) -> None:
    _, ask = start(make_gateway, all_rows(4))
    elsewhere = Http(make_gateway("prefill-0", at=decode_agent))
    ask.register(7, 2)
    wait_until(lambda: elsewhere.query(7) == {"7": 2}, "the other gateway knows the room")
    assert elsewhere.route().text == ask.route().text


def test_a_room_is_forgotten_after_the_engines_bootstrap_timeout(
    make_gateway: MakeGateway, etcd: EtcdServer, root: str
) -> None:
    _, ask = start(make_gateway, all_rows(4), "--bootstrap-timeout-seconds=0.5")
    ask.register(7, 2)
    wait_until(lambda: (ask.query(8), etcd.ctl.get_prefix(f"{root}/v1/rooms/"))[1] == [], "the room's key is deleted")


# --- what it refuses

BAD_ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("dp_rank", {"attn_dp_rank": 2}),
    ("attn_tp_rank", {"attn_tp_rank": 1}),
    ("attn_dp_size", {"attn_dp_size": 0}),
    ("attn_dp_size", {"attn_dp_size": "2"}),
    ("rank_port", {"rank_port": "many"}),
    ("port", {"rank_port": 70000}),
    ("ip", {"rank_ip": ""}),
    ("page_size", {"page_size": None}),
    ("extra", {"kv_layout": "x" * 10_000}),
]


@pytest.mark.parametrize(("field", "wrong"), BAD_ROUTES)
def test_a_rank_that_makes_no_sense_is_refused_with_a_reason(
    make_gateway: MakeGateway, field: str, wrong: dict[str, Any]
) -> None:
    _, ask = start(make_gateway, [])
    answer = ask.put({**row(0, 2), **wrong})
    assert (answer.status_code, field in answer.text) == (400, True), answer.text


def test_malformed_bodies_are_refused_with_a_reason(make_gateway: MakeGateway) -> None:
    gateway, ask = start(make_gateway, all_rows(2))
    for path in ("/register_dp_rank", "/query_dp_ranks"):
        for body in (
            "",
            "{",
            "[]",
            "7",
            '"x"',
            "{}",
            '{"bootstrap_room": null, "dp_rank": 0}',
            '{"bootstrap_rooms": {}}',
        ):
            answer = requests.post(gateway.url + path, data=body, timeout=5)
            assert answer.status_code == 400 and answer.text, (path, body)
    for room in (-1, 2**64, "x", 1.5, True, [7]):
        assert ask.register(room, 0).status_code == 400, room
    for dp_rank in (-1, 2, 99, "x", None):
        assert ask.register(7, dp_rank).status_code == 400, dp_rank
    assert (
        requests.post(gateway.url + "/query_dp_ranks?wait=soon", json={"bootstrap_rooms": []}, timeout=5).status_code
        == 400
    )
    odd: dict[str, str | int] = {**ALL, "target_pp_rank": "x"}
    assert requests.get(gateway.url + "/route", params=odd, timeout=5).status_code == 400
    assert ask.query(7) == {}


def test_a_room_without_its_rank_is_refused(make_gateway: MakeGateway) -> None:
    _, ask = start(make_gateway, [])
    answer = ask.register(7, 1)
    assert (answer.status_code, "no rank" in answer.text) == (503, True)


def test_with_a_token_only_those_who_have_it_are_served(make_gateway: MakeGateway) -> None:
    gateway, ask = start(make_gateway, [], "--gateway-token=secret")
    assert ask.put(row()).status_code == ask.route().status_code == ask.register(7, 0).status_code == 401
    assert healthy(gateway.port), "decode's heartbeat has no token"
    ask.session.headers["Authorization"] = b"Bearer \xff"
    assert ask.route().status_code == 401
    assert "Traceback" not in gateway.log
    ask.session.headers["Authorization"] = "Bearer secret"
    assert ask.put(row()).status_code == 200
    assert "secret" not in gateway.log


def test_reads_need_no_token_when_the_switch_opens_them(
    make_gateway: MakeGateway, living_port: Callable[[], int]
) -> None:
    _, ask = start(make_gateway, [], "--gateway-token=secret", "--gateway-open-reads")
    assert ask.put(row()).status_code == ask.register(7, 0).status_code == 401
    assert ask.query(7) == {}
    assert ask.route().status_code == 503, "no rank is there yet"
    ask.session.headers["Authorization"] = "Bearer secret"
    assert ask.put(row(rank_port=living_port())).status_code == 200
    del ask.session.headers["Authorization"]
    assert ask.route().status_code == 200


def test_with_a_certificate_it_serves_tls(make_gateway: MakeGateway, tmp_path: Path) -> None:
    now, valid = datetime.now(timezone.utc), timedelta(hours=1)
    authority = make_authority("authority", now, valid)
    pair = issue(authority, Identity("gateway", ("127.0.0.1",)), now, valid)
    cert, key, trusted = tmp_path / "cert", tmp_path / "key", tmp_path / "ca"
    cert.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    trusted.write_bytes(authority.certificate)
    gateway = make_gateway("prefill-0", f"--gateway-cert-file={cert}", f"--gateway-key-file={key}")
    assert requests.get(f"https://127.0.0.1:{gateway.port}/health", verify=str(trusted), timeout=5).text == "OK"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{gateway.port}/health", timeout=5)
