"""What this project relies on in SGLang. A release that moves something fails here, with its name."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any

import pytest

from etcd_pd.sglang import plugin as plugin
from tests.sglang.conftest import Peer, Sglang
from tests.sglang.rows import row


@pytest.fixture
def peer(sglang: Sglang) -> Peer:
    return sglang.start()


def test_every_hook_point_is_where_it_is_expected(peer: Peer) -> None:
    assert peer("moved_names") == []


@pytest.mark.parametrize("name", plugin.USED_NAMES)
def test_a_name_that_moved_is_reported(peer: Peer, name: str) -> None:
    peer("remove", name=name)
    assert name in peer("moved_names")


def test_the_installed_release_is_said_to_be_tested(peer: Peer) -> None:
    assert peer("version") in plugin.TESTED_VERSIONS


def test_sglang_finds_the_plug_in_by_its_entry_point(peer: Peer) -> None:
    assert peer("entry_points") == ["etcd_pd.sglang.plugin:register"]


def test_no_transfer_backend_defines_a_hooked_method_itself(peer: Peer) -> None:
    """But for one that takes a lock around the inherited one, and those whose constructors call it."""
    methods = {point.target.rpartition(".")[2] for point in plugin.HOOK_POINTS} - {"__init__"}
    assert peer("redefined", methods=sorted(methods)) == ["MoriKVSender.clear"]


def test_a_rank_registers_with_the_fields_that_the_tests_use(sglang: Sglang) -> None:
    bodies: list[dict[str, Any]] = []

    class Record(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Record) as server:
        threading.Thread(target=server.handle_request).start()
        rank = sglang.prefill(server.server_port, 1, 2)
    ip, port = rank("endpoint")
    assert bodies == [row(1, 2, rank_ip=ip, rank_port=port, prefill_http_port=30000)]
