"""Which resource is how busy, and what the planning rule makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.growth.model import (
    Advice,
    Cell,
    Hardware,
    advise,
    busiest,
    cell,
    cells_needed,
    fits,
    largest,
    load,
    patient,
    settled,
    utilisation,
)
from tests.unit.growth.made import COSTS, row

HARDWARE = Hardware()


@pytest.mark.parametrize("decodes", [1, 8, 32])
def test_the_model_says_what_would_be_measured(decodes: int) -> None:
    measured = row("decodes", 300.0, decodes=decodes)
    one_core = replace(HARDWARE, etcd_cores=1, agent_cores=1)

    shares = utilisation(Cell(300.0, decodes, 1), COSTS, one_core)

    assert shares["etcd"] == pytest.approx(measured["etcd_cpu"])
    assert shares["prefill agent"] == pytest.approx(measured["prefill_cpu"])
    assert shares["network"] * HARDWARE.gigabits * 1e9 / 8 == pytest.approx(measured["sent_bytes"])


def test_a_proxy_says_what_would_be_measured() -> None:
    measured = row("proxied", 100.0, decodes=8, proxies=1)

    shares = utilisation(Cell(100.0, 8, 1, proxies=True), COSTS, replace(HARDWARE, etcd_cores=1, proxy_cores=1))

    assert shares["proxy"] == pytest.approx(measured["proxy_cpu"])
    assert shares["etcd"] == pytest.approx(measured["etcd_cpu"])


def test_a_proxy_takes_watchers_from_etcd_and_none_from_an_agents_work() -> None:
    direct, proxied = (utilisation(cell(100, 1000, HARDWARE, at), COSTS, HARDWARE) for at in (False, True))

    assert proxied["etcd"] < direct["etcd"]
    assert proxied["decode agent"] == direct["decode agent"]


def test_prefill_agents_hear_of_nothing_when_they_are_prefill_only() -> None:
    watching, deaf = (Cell(100, 1000, 250, prefills_watch=watch) for watch in (True, False))

    assert load(watching, COSTS, HARDWARE).watchers == 1250
    assert load(deaf, COSTS, HARDWARE).watchers == 1000
    heard = utilisation(watching, COSTS, HARDWARE), utilisation(deaf, COSTS, HARDWARE)
    assert heard[1]["prefill agent"] < heard[0]["prefill agent"] and heard[1]["etcd"] < heard[0]["etcd"]
    assert heard[1]["decode agent"] == heard[0]["decode agent"]


def test_agents_fill_their_transactions_where_etcd_commits_no_more() -> None:
    doing = load(Cell(100_000, 10, 1000), COSTS, HARDWARE)

    assert doing.txns == pytest.approx(HARDWARE.planned * COSTS.most_commits)
    assert doing.batch == pytest.approx(200_000 / doing.txns)


def test_no_transaction_holds_more_than_etcd_takes() -> None:
    assert load(Cell(10_000_000, 10, 10), COSTS, HARDWARE).batch == pytest.approx(120)


@pytest.mark.parametrize("proxies", [False, True])
def test_the_largest_cell_is_the_one_beyond_which_something_is_full(proxies: bool) -> None:
    found = largest(100, proxies, COSTS, HARDWARE, share=1.0)

    assert busiest(settled(cell(100, found, HARDWARE, proxies), COSTS, HARDWARE, 1.0))[1] <= 1
    assert busiest(settled(cell(100, found * 1.05, HARDWARE, proxies), COSTS, HARDWARE, 1.0))[1] > 1


def test_a_busy_cell_fills_its_transactions_as_far_as_patience_lasts() -> None:
    at = Cell(10_000, 10, 8)
    quiet, busy = utilisation(at, COSTS, HARDWARE), settled(at, COSTS, HARDWARE)

    assert quiet["decode agent"] > HARDWARE.planned > busy["decode agent"]
    assert patient(at, HARDWARE) == pytest.approx(8 / HARDWARE.patience)


def test_many_writers_with_few_rooms_each_have_nothing_to_fill_a_transaction_with() -> None:
    assert patient(Cell(100, 1000, 1000), HARDWARE) == 200


def test_cells_are_the_fewest_that_carry_it() -> None:
    found = cells_needed(1000, 3200, False, COSTS, HARDWARE)

    assert found and found > 1
    assert fits(cell(1000 / found, 3200 / found, HARDWARE), COSTS, HARDWARE)
    assert not fits(cell(1000 / (found - 1), 3200 / (found - 1), HARDWARE), COSTS, HARDWARE)


def test_rooms_that_one_agent_cannot_take_no_number_of_cells_carries() -> None:
    assert cells_needed(1e6, 2, False, COSTS, HARDWARE) is None


def test_few_rooms_and_agents_want_one_etcd() -> None:
    assert advise(10, 10, COSTS, HARDWARE).rule == "one etcd"


@pytest.mark.parametrize(
    ("direct", "proxied", "rule"),
    [
        (1, 1, "one etcd"),
        (3, 1, "proxies"),
        (3, 2, "3 cells"),
        (4, 2, "2 cells with proxies"),
        (None, 2, "2 cells with proxies"),
        (4, None, "4 cells"),
        (None, None, "neither"),
    ],
)
def test_the_rule_is_the_least_work(direct: int | None, proxied: int | None, rule: str) -> None:
    assert Advice(100, 100, "etcd", 2.0, direct, proxied).rule == rule
