"""Rooms said to SGLang's own bootstrap server in the background."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from etcd_pd.sglang.copies import Copies
from tests.support.ports import free_port
from tests.support.waiting import wait_until


class Server:
    """Takes what SGLang's server takes; ``gate`` holds its answers back."""

    def __init__(self) -> None:
        self.taken: list[dict[str, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.status, self.closes = 200, False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.gate.wait(20)
                assert self.path == "/register_dp_rank"
                outer.taken.append(body)
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                self.close_connection = outer.closes

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def said() -> Iterator[Copies]:
    made = Copies(limit=4)
    yield made
    made.close()


def test_a_room_reaches_sglangs_server_when_a_rank_took_it(server: Server, said: Copies) -> None:
    for room in (7, 2**64 - 1):
        said.say(server.address, room, 3)
    wait_until(lambda: len(server.taken) == 2, "both are there")
    assert server.taken == [{"bootstrap_room": 7, "dp_rank": 3}, {"bootstrap_room": 2**64 - 1, "dp_rank": 3}]


def test_rooms_are_dropped_and_counted_when_the_server_is_slow(
    server: Server, said: Copies, caplog: pytest.LogCaptureFixture
) -> None:
    server.gate.clear()
    for room in range(20):
        said.say(server.address, room, 0)
    assert said.dropped >= 15 - 1  # one may be on its way
    assert caplog.text.count("dropped") == 1
    server.gate.set()
    wait_until(lambda: len(server.taken) == 20 - said.dropped, "the others are there")


def test_a_server_that_is_away_is_logged_once_and_the_rooms_after_it_arrive(
    server: Server, said: Copies, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    with caplog.at_level(logging.WARNING):
        for room in (1, 2):
            said.say(nobody, room, 0)
        said.say(server.address, 3, 0)
        wait_until(lambda: server.taken, "the third is there")
    assert said.failed == 2
    assert caplog.text.count("takes no rooms") == 1


def test_a_room_arrives_when_the_server_has_closed_an_idle_connection(server: Server, said: Copies) -> None:
    server.closes = True
    said.say(server.address, 1, 0)
    wait_until(lambda: len(server.taken) == 1, "the first is there")
    said.say(server.address, 2, 0)
    wait_until(lambda: len(server.taken) == 2, "the second is there")
    assert said.failed == 0


@pytest.mark.parametrize("address", ["no port:here", "[::1", "host:99999"])
def test_an_address_that_makes_no_sense_costs_its_room_alone(server: Server, said: Copies, address: str) -> None:
    said.say(address, 1, 0)
    said.say(server.address, 2, 0)
    wait_until(lambda: server.taken, "the second is there")
    assert said.failed == 1


def test_a_room_that_the_server_refuses_is_counted(server: Server, said: Copies) -> None:
    server.status = 500
    said.say(server.address, 1, 0)
    wait_until(lambda: said.failed == 1, "it is counted")
