"""What a run at a rate comes to."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.rounds import at_rate_row, measured


def run(sent: list[float], found: list[float | None]) -> dict[str, Any]:
    """A run of 10 rooms a second from second 100 on, with these times of register() and of finding."""
    times = {"sent_at": sent, "acknowledged_at": found, "wall_us": [], "cpu_us": [], "clock_us": []}
    message = {"count": len(sent), "start": 100.0, "rate": 10.0}
    written, read = {**times, "process_cpu_seconds": 0.0}, {"resolved_at": found, "look_us": []}
    return measured(message, written, {**read, "process_cpu_seconds": 0.0}, {})


def test_a_room_waits_from_when_it_was_due_when_register_was_called_late() -> None:
    found = run([100.1, 100.4, 100.5], [100.2, 100.5, 100.7])
    assert found["late_ms"] == pytest.approx([100.0, 300.0, 300.0])
    assert found["wait_ms"] == pytest.approx([100.0, 100.0, 200.0])
    assert found["due_ms"] == pytest.approx([200.0, 400.0, 500.0])
    assert found["reached"] == pytest.approx(4.0), "counted from when the first was due, however late it was"


def test_a_room_is_missing_and_not_fast_when_it_was_never_found() -> None:
    found = run([100.0, 100.1, 100.2], [100.2, None, 100.4])
    assert found["missing"] == 1
    assert found["due_ms"] == pytest.approx([200.0, 200.0])
    row = at_rate_row([found, found], case="x")
    assert row["missing"] == 2 and row["due_ms"]["n"] == 4 and row["due_ms"]["p50_by_round"] == [200.0, 200.0]


def test_a_row_has_no_wait_when_no_room_of_a_round_was_found() -> None:
    row = at_rate_row([run([100.0, 100.1], [None, None]), run([100.0, 100.1], [100.2, 100.3])], case="x")
    assert row["missing"] == 2 and "due_ms" not in row and row["late_ms"]["n"] == 4
