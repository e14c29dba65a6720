"""SGLang's /route as values, without SGLang."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from etcd_pd import ConfigError, InstanceInfo, PrefillInstance, Rank, RankEndpoint, Topology
from etcd_pd.sglang.route import contradiction, is_complete, parse_row, rank_info, registered, server_info
from tests.sglang.rows import all_rows, row


def instance(rows: list[dict[str, Any]]) -> PrefillInstance:
    """The instance that these rows describe, as the registry would have it."""
    parsed = [parse_row(body) for body in rows]
    first = parsed[0]
    info = InstanceInfo("i", "l", (), first.topology, first.policy, extra=first.extra)
    return PrefillInstance("p", info, tuple(RankEndpoint(found.rank, found.ip, found.port, "i") for found in parsed))


@pytest.mark.parametrize(("plain_dp", "why"), [(False, "attention"), (True, "replicas")])
def test_the_dp_rank_is_the_attentions_or_the_replicas(plain_dp: bool, why: str) -> None:
    found = parse_row(row(3, 4, plain_dp=plain_dp))
    assert (found.rank, found.topology) == (Rank(3), Topology(dp=4)), why


def test_the_registry_never_computes_a_rank_from_the_room() -> None:
    assert parse_row(row(load_balance_method="follow_bootstrap_room")).policy != "follow_bootstrap_room"


def test_decode_gets_what_prefill_said_when_it_asks_for_the_route() -> None:
    rows = all_rows(2, tp=2, load_balance_method="follow_bootstrap_room", kv_layout="token", prefill_http_port=30000)
    info = server_info(instance(rows))
    assert (info["dp_size"], info["attn_tp_size"], info["follow_bootstrap_room"]) == (2, 2, True)
    assert (info["kv_layout"], info["prefill_http_port"], info["page_size"]) == ("token", 30000, 64)
    assert "dsv41_spec_layout" not in info


def test_an_instance_of_another_kind_is_described_with_sglangs_defaults() -> None:
    plain = PrefillInstance("p", InstanceInfo("i", "l", (), Topology(dp=2), "round_robin"), ())
    assert server_info(plain)["page_size"] is None


def test_completeness_counts_distinct_ranks() -> None:
    rows = all_rows(2, pp=2)
    assert not is_complete(None) and registered(None) == 0
    assert [is_complete(instance(rows[:count])) for count in range(1, 5)] == [False, False, False, True]


def test_a_ranks_address() -> None:
    found = instance(all_rows(2))
    assert rank_info(found, Rank(1)) == {"rank_ip": "127.0.0.1", "rank_port": 1100}
    assert rank_info(found, Rank(2)) is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, None),
        ({"attn_tp_size": 2}, "tp size"),
        ({"page_size": 1}, "page_size"),
        ({"load_balance_method": "total_tokens"}, "load_balance_method"),
        ({"prefill_http_port": 5}, None),
    ],
)
def test_contradictions(changes: dict[str, Any], field: str | None) -> None:
    assert contradiction(parse_row(row(1, 2, **changes)), parse_row(row(0, 2))) == field


@pytest.mark.parametrize(
    "name", [name for name in row() if name in ("rank_ip", "pp_rank", "system_dp_size", "page_size")]
)
def test_a_missing_field_is_named(name: str) -> None:
    body = row()
    del body[name]
    with pytest.raises(ConfigError, match=f"{name}: is missing"):
        parse_row(body)


@pytest.mark.parametrize("body", [None, [], 7, "x"])
def test_a_body_that_is_no_object(body: object) -> None:
    with pytest.raises(ConfigError, match="body"):
        parse_row(body)


def test_extra_survives_etcd() -> None:
    info = instance(all_rows()).info
    assert InstanceInfo.from_json(info.to_json()) == info
    assert InstanceInfo.from_json(replace(info, extra={}).to_json().replace(b',"extra":{}', b"")) == replace(
        info, extra={}
    )
