"""The summary line, and what a scrape of an agent shows."""

from __future__ import annotations

import re

from etcd_pd.agent.stats import Stats
from etcd_pd.core.batch import Batch
from etcd_pd.core.own_room import OwnRoom, RankRef, State


def room(asked_at: float, state: State = State.CREATING) -> OwnRoom:
    return OwnRoom(RankRef("p", 0), 1, b"k", 0.0, state, asked_at=asked_at)


def words(summary: str) -> dict[str, str]:
    return dict(word.split("=") for word in summary.split())


def test_a_summary_counts_what_was_added_when_another_came_before() -> None:
    stats = Stats()
    stats.registered, stats.resolved, stats.wanted = 5, 4, 6
    stats.rejected.update(["RoomConflict", "RoomConflict", "RankLost"])
    stats.ended["PrefillLost"] += 2
    first = words(stats.summary())
    assert (first["registered"], first["conflicts"], first["rejected"]) == ("5", "2", "3")
    assert (first["wanted"], first["resolved"], first["failed"]) == ("6", "4", "2")
    stats.registered += 1
    second = words(stats.summary())
    assert (second["registered"], second["conflicts"], second["failed"]) == ("1", "0", "0")


def test_a_summary_has_the_quantiles_of_its_own_interval_when_another_came_before() -> None:
    stats = Stats()
    assert words(stats.summary())["register_p50_ms"] == "-"
    stats.register_seconds.observe(1.0, times=1000)
    stats.summary()
    stats.register_seconds.observe(0.002, times=98)
    stats.register_seconds.observe(0.1, times=2)
    stats.resolve_seconds.observe(0.004)
    found = words(stats.summary())
    assert 2.0 <= float(found["register_p50_ms"]) < 2.2
    assert 100 <= float(found["register_p99_ms"]) < 110
    assert 4.0 <= float(found["resolve_p50_ms"]) < 4.4
    assert re.fullmatch(r"[a-z_0-9]+=[0-9.-]+( [a-z_0-9]+=[0-9.-]+)*", stats.summary())


def test_a_transaction_counts_what_its_new_rooms_waited() -> None:
    stats = Stats()
    stats.wrote(Batch([room(9.0), room(9.5), room(0.0, State.RELEASING)], {}, 2), sent_at=9.9, now=10.0)
    assert (stats.register_seconds.count, stats.register_seconds.sum) == (2, 1.5)
    assert (stats.batch_rooms.count, stats.batch_rooms.sum) == (1, 3)
    assert round(stats.transaction_seconds.sum, 6) == 0.1
