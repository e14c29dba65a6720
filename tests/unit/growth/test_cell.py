"""Messages and CPU by part of a simulated cell, and what its tables say."""

from __future__ import annotations

import pytest

from benchmarks.growth.cell import DECODES, RATES, by_part, cell_rows, engine_seconds, parts_table, waits_table
from benchmarks.growth.model import Cell, Hardware, utilisation
from tests.unit.growth.made import COSTS, derived, row, rows

HARDWARE = Hardware()
TXNS = 50.0


def cell(*, relayed: bool) -> Cell:
    return Cell(100.0, DECODES, 250.0, relayed, prefills_watch=False)


def test_every_watching_agent_hears_of_every_transaction_when_there_is_no_relay() -> None:
    parts = by_part(cell(relayed=False), COSTS, HARDWARE, TXNS, None)

    assert parts["etcd"]["received"] == TXNS and parts["etcd"]["sent"] == TXNS * DECODES
    assert parts["watching agents"]["received"] == TXNS * DECODES + 2 * 100.0  # and each room is wanted, and done
    assert parts["prefill agents"]["sent"] == TXNS + 100.0 and "relays" not in parts
    assert parts["engines"]["sent"] == 400.0 and parts["engines"]["cores"] is None


def test_etcd_sends_to_relays_alone_when_there_are_some() -> None:
    straight, relayed = (by_part(cell(relayed=relays), COSTS, HARDWARE, TXNS, 2e-4) for relays in (False, True))

    assert relayed["relays"]["count"] == DECODES / HARDWARE.agents_per_node
    assert relayed["etcd"]["sent"] == relayed["relays"]["received"] == TXNS * relayed["relays"]["count"]
    assert relayed["relays"]["sent"] == straight["etcd"]["sent"]
    assert relayed["watching agents"] == straight["watching agents"], "each hears of every room all the same"
    assert relayed["etcd"]["cores"] < straight["etcd"]["cores"]
    assert relayed["engines"]["cores"] == pytest.approx(2e-4 * 100.0)


def test_cores_are_those_of_all_processes_of_a_part_when_a_share_is_that_of_one() -> None:
    at = cell(relayed=True)
    shares, parts = utilisation(at, COSTS, HARDWARE, TXNS), by_part(at, COSTS, HARDWARE, TXNS, None)

    assert parts["etcd"]["cores"] == pytest.approx(shares["etcd"] * HARDWARE.etcd_cores)
    assert parts["relays"]["cores"] == pytest.approx(shares["proxy"] * HARDWARE.proxy_cores * 125)
    assert parts["watching agents"]["cores"] == pytest.approx(shares["decode agent"] * DECODES)
    assert parts["prefill agents"]["cores"] == pytest.approx(shares["prefill agent"] * 250)


def test_an_engine_s_cost_is_that_of_quiet_rounds_when_some_were_full() -> None:
    quiet, full = row("rates", 100.0), row("rates", 300.0) | {"saturated": True, "prefill_engine_cpu": 9.0}
    before = {name: value for name, value in quiet.items() if not name.endswith("_engine_cpu")}

    assert engine_seconds([quiet, full, before]) == pytest.approx(150e-6)
    assert engine_seconds([before, full, row("rates", 0.0)]) is None


def test_tables_have_every_rate_with_and_without_relays_when_the_cell_was_simulated() -> None:
    found = cell_rows(rows(), COSTS, HARDWARE)

    assert [(each["rooms"], each["relayed"]) for each in found] == [
        (rate, with_) for rate in RATES for with_ in (False, True)
    ]
    assert waits_table(derived()).count("\n") == 1 + len(found)
    assert parts_table(derived()).count("\n") == 1 + len(RATES) * (4 + 5)
    assert parts_table(found).count(" 1,000 watching agents |") == len(found)


def test_an_engine_s_cells_are_empty_when_engines_were_not_measured() -> None:
    unknown = cell_rows([], COSTS, HARDWARE)

    assert parts_table(unknown).count("1,250 engines | 20 | 40 | - | - |") == 2
