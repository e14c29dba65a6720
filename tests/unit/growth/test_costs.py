"""Costs are found again in rows that were made of them, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.growth.costs import fit
from benchmarks.growth.counters import parse
from benchmarks.growth.derived import costs_of
from tests.unit.growth.made import COSTS, derived, rows


@pytest.mark.parametrize("name", [name for name in asdict(COSTS) if name not in ("delay", "commits", "batches")])
def test_a_cost_is_found_again(name: str) -> None:
    found, _ = fit(rows())

    assert getattr(found, name) == pytest.approx(getattr(COSTS, name), rel=0.01)


def test_a_fit_of_what_fits_has_no_error() -> None:
    assert fit(rows())[1] == dict.fromkeys(
        ("etcd", "bytes", "agent", "prefill agent", "proxy"), pytest.approx(0, abs=0.002)
    )


def test_no_cost_is_below_zero() -> None:
    measured = rows()
    for row in measured:  # as if events cost nothing, and a little less
        if row.get("rooms"):
            row["bystander_cpu"] -= row["rooms"] * 2.1 * COSTS.agent_event if row["decodes"] > 1 else 0

    found, _ = fit(measured)

    assert found.agent_event == 0 and found.agent_message > 0


def test_curves_are_taken_as_they_were_measured() -> None:
    found, _ = fit(rows())

    assert [rate for rate, _ in found.commits] == [rate for rate, _ in COSTS.commits]
    assert [cpu for _, cpu in found.commits] == pytest.approx([cpu for _, cpu in COSTS.commits])
    assert [size for _, size in found.batches] == pytest.approx([1.0, 4.0, 40.0])


@pytest.mark.parametrize(("writes", "batch"), [(1, 1), (200, 1), (632.5, 2), (2000, 4), (20_000, 40), (1e6, 40)])
def test_writes_a_transaction_go_between_what_was_measured(writes: float, batch: float) -> None:
    assert COSTS.batch(writes) == pytest.approx(batch, rel=0.01)


@pytest.mark.parametrize(("txns", "cpu"), [(0, 0), (50, 0.015), (100, 0.03), (550, 0.09), (10_000, 0.6), (20_000, 1.2)])
def test_commits_go_between_what_was_measured_and_straight_on(txns: float, cpu: float) -> None:
    assert COSTS.commit(txns) == pytest.approx(cpu)


def test_costs_go_through_the_results() -> None:
    found, _ = fit(rows())
    kept = costs_of(json.loads(json.dumps(derived())))

    assert kept == replace(found, delay=kept.delay)
    assert all(row["derived"] for row in derived())


def test_etcds_counters_are_summed_over_their_labels() -> None:
    found = parse(
        "# TYPE grpc_server_msg_sent_total counter\n"
        'grpc_server_msg_sent_total{grpc_method="Watch",grpc_type="bidi_stream"} 12\n'
        'grpc_server_msg_sent_total{grpc_method="Txn",grpc_type="unary"} 5\n'
        'grpc_server_handled_total{grpc_code="OK",grpc_method="Txn"} 3\n'
        'grpc_server_handled_total{grpc_code="Unavailable",grpc_method="Txn"} 1\n'
        "etcd_mvcc_put_total 1.2e+06\n"
        "etcd_mvcc_put_total_of_another 7\n"
    )

    assert (found["messages"], found["txns"], found["puts"], found["deletes"]) == (12, 4, 1.2e6, 0)
