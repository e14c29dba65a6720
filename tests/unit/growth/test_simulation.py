"""The simulation: nothing waits where nothing is busy, all waits where something is, and it is the same twice."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks.growth import page
from benchmarks.growth.model import Cell, Hardware, cell
from benchmarks.growth.simulation import Simulation, simulate
from tests.unit.growth.made import COSTS, derived, rows

HARDWARE = Hardware()


def test_where_nothing_is_busy_a_room_takes_its_own_work_and_the_delay() -> None:
    found = Simulation(cell(0.1, 1, HARDWARE), COSTS, HARDWARE).run(200)

    work = COSTS.writer_txn + COSTS.writer_room / 2 + 1 / COSTS.most_commits + COSTS.etcd_message + COSTS.etcd_event
    work += COSTS.agent_message + COSTS.agent_event
    assert min(found) == pytest.approx(COSTS.delay + work, rel=0.01)
    assert statistics.median(found) == pytest.approx(COSTS.delay + work, rel=0.01)


def test_every_room_is_resolved() -> None:
    simulation = Simulation(cell(500, 10, HARDWARE), COSTS, HARDWARE)

    assert len(simulation.run(1000)) == 900  # without the first tenth
    assert sum(simulation.batches) == 2000  # each is registered and released


def test_more_watchers_take_longer() -> None:
    few, many = (Simulation(cell(20, count, HARDWARE), COSTS, HARDWARE).run(500) for count in (10, 2000))

    assert statistics.median(many) > statistics.median(few)


def test_one_writer_fills_its_transactions_where_rooms_come_faster() -> None:
    slow, fast = (Simulation(cell(rate, 1, HARDWARE), COSTS, HARDWARE) for rate in (0.1, 5000))
    slow.run(300)
    fast.run(3000)

    assert statistics.mean(slow.batches) == pytest.approx(1, abs=0.05)
    assert statistics.mean(fast.batches) > 3


def test_releases_ride_with_registrations_when_these_come_soon_enough() -> None:
    busy, scattered = (Simulation(Cell(100.0, 10, prefills), COSTS, HARDWARE) for prefills in (1, 1000))
    busy.run(1000)
    scattered.run(1000)

    assert len(busy.batches) == pytest.approx(1000, rel=0.05), "about one transaction a room"
    assert len(scattered.batches) == pytest.approx(2000, rel=0.05), "nothing comes in time to ride with"
    assert sum(busy.batches) == sum(scattered.batches) == 2000


def test_what_cannot_keep_up_has_no_latency() -> None:
    assert simulate(cell(1000, 10_000, HARDWARE), COSTS, HARDWARE, 100).latencies is None


def test_it_is_the_same_twice() -> None:
    first, again = (simulate(cell(100, 100, HARDWARE), COSTS, HARDWARE, 300) for _ in range(2))

    assert first == again


def test_the_page_is_made_of_the_results_alone(tmp_path: Path) -> None:
    machine = {"cores": 2, "cpu": "a CPU", "memory_gib": 8, "etcd_data": "a disk"}
    results = {"rows": rows() + derived(), "machine": machine, "versions": {"etcd": "3", "python": "3"}}

    text = page.write(results, tmp_path).read_text()

    plots = {path.name for path in (tmp_path / "scaling").iterdir()}
    assert plots == {
        f"{name}.svg" for name in ["rates", "ranks", "instances", "decodes", "fan-out", "ttl", "size", "simulated"]
    }
    assert all(f"](scaling/{name})" in text for name in plots)
    assert "{" not in text and "10,000" in text
