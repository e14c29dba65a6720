"""How busy ranks are, from what happens."""

from __future__ import annotations

from typing import Any

import pytest

from etcd_pd.cli.board import Board, quantile
from etcd_pd.cli.changes import Change


def room(what: str, number: int, dp_rank: int = 0) -> Change:
    return Change(1, what, "room", "p", number, dp_rank, 5)


def rank(what: str, dp_rank: int = 0) -> Change:
    return Change(1, what, "rank", "p", None, dp_rank, 5)


def row(board: Board, now: float, dp_rank: int = 0) -> dict[str, Any]:
    return next(row for row in board.rows(now) if row["dp_rank"] == dp_rank)


def test_rooms_in_flight_their_rate_and_how_long_they_are_held() -> None:
    board = Board()
    board.apply([rank("up"), room("registered", 1)], 0.0, counts=False)
    assert row(board, 0.0)["rooms"] == 1
    board.apply([room("registered", number) for number in range(2, 12)], 1.0)
    board.apply([room("gone", number) for number in range(2, 12)], 1.5)
    found = row(board, 2.0)
    assert (found["rooms"], found["state"], found["registered"], found["epoch"]) == (1, "serving", 10, 5)
    assert found["rooms_per_second"] == pytest.approx(5.0)
    assert found["held_seconds_p50"] == found["held_seconds_p99"] == pytest.approx(0.5)


def test_a_rate_is_of_the_last_seconds_alone() -> None:
    board = Board()
    board.apply([rank("up")], 0.0)
    board.rows(0.0)
    board.apply([room("registered", number) for number in range(100)], 0.5)
    assert row(board, 1.0)["rooms_per_second"] == pytest.approx(100.0)
    for second in range(2, 12):
        found = row(board, float(second))
    assert found["rooms_per_second"] == 0.0


def test_load_is_relative_to_the_busiest() -> None:
    board = Board()
    board.apply([room("registered", 1), room("registered", 2), room("registered", 3, dp_rank=1)], 0.0)
    assert (row(board, 0.0)["load"], row(board, 0.0, 1)["load"]) == (1.0, 0.5)


def test_a_rank_that_goes_takes_its_rooms_along() -> None:
    board = Board()
    board.apply([rank("up"), room("registered", 1), rank("gone")], 0.0)
    found = row(board, 0.0)
    assert (found["state"], found["rooms"]) == ("gone", 0)
    board.apply([room("gone", 1)], 9.0)  # its key ends with its lease, long after: that is no time it was held
    assert row(board, 9.0)["held_seconds_p50"] is None


def test_failed_rooms_are_counted_and_not_in_flight() -> None:
    board = Board()
    board.apply([room("registered", 1), room("failed", 1), rank("draining")], 0.0)
    found = row(board, 0.0)
    assert (found["failed"], found["rooms"], found["state"]) == (1, 0, "draining")


def test_rooms_are_counted_as_lost_when_their_rank_goes() -> None:
    board = Board()
    board.apply([rank("up"), room("registered", 1), room("registered", 2), room("gone", 1), rank("gone")], 0.0)
    assert (row(board, 1.0)["lost"], row(board, 1.0)["failed"]) == (1, 0)
    board.apply([room("gone", 2)], 2.0)
    assert row(board, 2.0)["lost"] == 1


def test_a_rank_that_went_is_forgotten_when_agents_forget_it() -> None:
    board = Board()
    board.apply([rank("up"), rank("gone"), rank("up", 1)], 0.0)
    assert [row["dp_rank"] for row in board.rows(3599.0)] == [0, 1]
    assert [row["dp_rank"] for row in board.rows(3600.0)] == [1]


def test_rooms_of_a_rank_that_was_never_seen_have_a_row_for_a_while() -> None:
    board = Board()
    board.apply([room("registered", 1)], 9000.0, counts=False)
    assert len(board.rows(9001.0)) == 1 and board.rows(13000.0) == []


def test_a_doctor_s_rank_has_no_row_when_it_went() -> None:
    board = Board()
    board.apply([Change(1, "up", "rank", "not-an-engine-host-1", None, 1, 5)], 0.0)
    assert len(board.rows(0.0)) == 1
    board.apply([Change(2, "gone", "rank", "not-an-engine-host-1", None, 1, 5)], 1.0)
    assert board.rows(1.0) == []


def test_the_watch_s_own_state_is_kept() -> None:
    board = Board()
    board.apply([Change(0, "synced", "watch", "http://etcd")], 0.0)
    assert board.watch == "synced" and board.rows(0.0) == []


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_quantiles(q: float, expected: int) -> None:
    assert quantile(range(1, 101), q) == expected
    assert quantile([], q) is None
