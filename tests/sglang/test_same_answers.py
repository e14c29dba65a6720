"""Gateway and SGLang's own bootstrap server, side by side: what SGLang sends gets the same answer, field by field."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import requests

from tests.sglang.conftest import MakeGateway, Sglang
from tests.sglang.rows import all_rows, row
from tests.support.ports import free_port

ALL = {"prefill_dp_rank": -1, "prefill_cp_rank": -1, "target_tp_rank": -1, "target_pp_rank": -1}


class Answer(NamedTuple):
    status: int
    content_type: str
    body: Any


class Both:
    """Asks both servers; fails where they differ."""

    def __init__(self, theirs: int, ours: int) -> None:
        self._ports = {"SGLang": theirs, "gateway": ours}

    def __call__(self, method: str, path: str, **arguments: Any) -> Answer:
        found = {name: self._ask(port, method, path, **arguments) for name, port in self._ports.items()}
        assert found["gateway"] == found["SGLang"], (method, path, arguments)
        return found["gateway"]

    def put(self, body: dict[str, Any]) -> Answer:
        return self("PUT", "/route", json=body)

    def get(self, dp: int = -1, cp: int = -1, tp: int = -1, pp: int = -1) -> Answer:
        place = {"prefill_dp_rank": dp, "prefill_cp_rank": cp, "target_tp_rank": tp, "target_pp_rank": pp}
        return self("GET", "/route", params=place)

    def register(self, room: int | str, dp_rank: int | str) -> Answer:
        return self("POST", "/register_dp_rank", json={"bootstrap_room": room, "dp_rank": dp_rank})

    def query(self, rooms: list[int]) -> Answer:
        return self("POST", "/query_dp_ranks", json={"bootstrap_rooms": rooms})

    def _ask(self, port: int, method: str, path: str, **arguments: Any) -> Answer:
        response = requests.request(method, f"http://127.0.0.1:{port}{path}", timeout=10, **arguments)
        kind = response.headers["Content-Type"]
        return Answer(
            response.status_code,
            kind,
            list(response.json().items()) if "json" in kind and response.ok else response.text,
        )


@pytest.fixture
def both(sglang: Sglang, make_gateway: MakeGateway) -> Both:
    port = free_port()
    sglang.server(port)
    return Both(port, make_gateway("prefill-0").port)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(all_rows(), id="one rank"),
        pytest.param(all_rows(4), id="DP attention"),
        pytest.param(all_rows(2, plain_dp=True), id="plain DP"),
        pytest.param(all_rows(2, tp=2), id="DP with TP"),
        pytest.param(all_rows(cp=2, pp=2), id="CP with PP"),
        pytest.param(all_rows(2, load_balance_method="follow_bootstrap_room"), id="follow_bootstrap_room"),
        pytest.param(all_rows(kv_layout="token", kv_cache_dtype="fp8_e4m3", page_size=1), id="KV layout"),
        pytest.param(all_rows(2, enable_kv_cache_sharding=True, enable_dsa_cache_layer_split=True), id="flags"),
        pytest.param(all_rows(prefill_http_port=1, decode_allocation_policy="prefill_complete"), id="policy"),
        pytest.param(all_rows(dsv41_spec_layout={"num_draft_tokens": 3, "kv_layer_ids": [0, 1]}), id="DSpark"),
    ],
)
def test_topology_from_the_first_rank_to_the_last(both: Both, rows: list[dict[str, Any]]) -> None:
    assert both.get().status == 503
    assert both.get(0, 0, 0, 0).status == 503
    for number, body in enumerate(rows, start=1):
        assert both.put(body).status == 200
        assert both.get().status == (200 if number == len(rows) else 503)
    sizes = (
        len({(r["attn_dp_rank"], r["system_dp_rank"]) for r in rows}),
        *(rows[0][f"{n}_size"] for n in ("attn_cp", "attn_tp", "pp")),
    )
    for place in itertools.product(*(range(size + 1) for size in sizes)):
        inside = all(index < size for index, size in zip(place, sizes, strict=True))
        assert both.get(*place).status == (200 if inside else 404)


def test_rooms(both: Both) -> None:
    for body in all_rows(4):
        both.put(body)
    room = 9193475737872407803
    assert both.query([]).body == []
    assert both.query([room, 5]).body == []
    assert both.register(room, 3).status == 200
    assert both.query([5, room, room]).body == [(str(room), 3)]
    assert both.register(room, 3).status == 200
    assert both.register("6", "0").status == 200
    assert both.register(0, 1).status == 200
    assert both.query([6, 0, room]).body == [("6", 0), ("0", 1), (str(room), 3)]


def test_a_rank_that_registers_again_at_the_same_place(both: Both) -> None:
    both.put(row(rank_port=1))
    assert both.put(row(rank_port=1)).status == 200
    assert both.get(0, 0, 0, 0).body == [("rank_ip", "127.0.0.1"), ("rank_port", 1)]


def test_a_rank_that_restarted_elsewhere(both: Both) -> None:
    both.put(row(rank_port=1))
    assert both.put(row(rank_port=2)).status == 200
    assert both.get(0, 0, 0, 0).body == [("rank_ip", "127.0.0.1"), ("rank_port", 2)]


@pytest.mark.parametrize(
    ("field", "value"),
    [("dsv41_spec_layout", {"num_draft_tokens": 2}), ("decode_allocation_policy", "prefill_complete")],
)
def test_what_sglang_refuses_itself(both: Both, field: str, value: Any, living_port: Callable[[], int]) -> None:
    both.put(row(0, 2, rank_port=living_port()))
    assert both.put(row(1, 2, **{field: value})).status == 400


@pytest.mark.parametrize("missing", ["prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank"])
def test_a_question_with_a_part_missing(both: Both, missing: str) -> None:
    left = {name: value for name, value in ALL.items() if name != missing}
    assert both("GET", "/route", params=left) == (
        400,
        "text/plain; charset=utf-8",
        "Missing inputs for bootstrap server.",
    )


def test_health_and_other_methods(both: Both) -> None:
    assert both("GET", "/health").body == "OK"
    assert both("POST", "/route", json={}).status == 405
    assert both("GET", "/query_dp_ranks").status == 405
    assert both("GET", "/nothing").status == 404
