"""Who is in a cell and who is gone, from lists and events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from etcd_pd.core.keys import Keys
from etcd_pd.core.records import Event, KeyValue
from etcd_pd.core.roster import MEMORY_SECONDS, MOST_GONE, Gone, Roster
from etcd_pd.wire.values import Rank, leaving

KEYS = Keys("/cell")
AGENT, DECODE, ROOM, PREFILL = KEYS.agent("a"), KEYS.decode("d"), KEYS.room("p", 1), KEYS.prefill("p")
RANKS = [KEYS.rank("p", Rank(dp)) for dp in range(2)]


def written(key: bytes, value: bytes = b"{}", lease: int = 7) -> Event:
    return Event(key, 2, KeyValue(key, value, 2, 2, lease))


def deleted(*keys: bytes) -> list[Event]:
    return [Event(key, 3, None) for key in keys]


def kvs(*keys: bytes) -> list[KeyValue]:
    return [KeyValue(key, b"{}", 1, 1, 7) for key in keys]


@pytest.fixture
def roster() -> Roster:
    roster = Roster(KEYS)
    roster.replace([], 0.0)
    roster.apply([written(AGENT), written(DECODE), written(PREFILL), *map(written, RANKS), written(ROOM)], 0.0)
    return roster


def gone(roster: Roster, now: float = 10.0) -> list[tuple[bytes, bool]]:
    return [(one.key, one.left) for one in roster.gone(now)]


def test_keys_come_and_go_when_events_say_so(roster: Roster) -> None:
    assert set(roster.present) == {AGENT, DECODE, PREFILL, *RANKS}
    assert gone(roster) == []
    roster.apply(deleted(AGENT, ROOM, b"/cell/v1/never"), 5.0)
    assert AGENT not in roster.present
    assert roster.gone(10.0) == [Gone(AGENT, 5.0, False)]


def test_only_what_is_listed_is_present_when_a_list_came(roster: Roster) -> None:
    roster.replace(kvs(DECODE, ROOM), 4.0)
    assert set(roster.present) == {DECODE}
    assert gone(roster) == [(AGENT, False), (PREFILL, False)]
    assert roster.since == 0.0


def test_nobody_is_gone_when_the_first_list_came() -> None:
    roster = Roster(KEYS)
    roster.replace(kvs(DECODE), 4.0)
    assert gone(roster) == [] and roster.since == 4.0


def test_a_name_is_not_gone_any_more_when_it_returns(roster: Roster) -> None:
    roster.apply(deleted(AGENT, DECODE), 1.0)
    roster.apply([written(DECODE)], 2.0)
    assert gone(roster) == [(AGENT, False)]


@pytest.mark.parametrize("word", [leaving(b'{"version": 1}'), b'{"state": "draining"}'])
def test_who_said_that_it_leaves_has_left(roster: Roster, word: bytes) -> None:
    roster.apply([written(DECODE, word), *deleted(DECODE)], 1.0)
    assert gone(roster) == [(DECODE, True)]


@pytest.mark.parametrize("value", [b"[]", b'"left"', b"\xff", b'{"left": 1}', b"[" * 100_000])
def test_garbage_says_nothing_of_leaving(roster: Roster, value: bytes) -> None:
    roster.apply([written(DECODE, value), written(AGENT, value), *deleted(DECODE)], 1.0)
    assert gone(roster) == [(DECODE, False)]


def test_what_hangs_on_an_agent_s_lease_left_when_the_agent_did(roster: Roster) -> None:
    roster.apply([written(AGENT, leaving(b"{}")), written(KEYS.decode("other"), lease=8)], 1.0)
    roster.apply(deleted(AGENT, DECODE, KEYS.decode("other"), PREFILL, *RANKS), 6.0)
    assert gone(roster) == [(AGENT, True), (DECODE, True), (KEYS.decode("other"), False), (PREFILL, True)]


def test_an_instance_stands_for_its_ranks_when_all_are_gone(roster: Roster) -> None:
    roster.apply(deleted(RANKS[0]), 1.0)
    assert gone(roster) == [(RANKS[0], False)]
    roster.apply(deleted(PREFILL, RANKS[1]), 2.0)
    assert gone(roster) == [(PREFILL, False)]


def agent_at(place: str, **more: Any) -> bytes:
    return json.dumps({"version": 1, "socket": place, **more}).encode()


@pytest.mark.parametrize("first", ["the new one comes", "the old one goes"])
def test_an_agent_is_not_missed_when_another_has_its_socket(roster: Roster, first: str) -> None:
    new = KEYS.agent("new")
    roster.apply([written(AGENT, agent_at("host:/run/a.sock"))], 1.0)
    comes, goes = [written(new, agent_at("host:/run/a.sock"))], deleted(AGENT)
    for events in (comes, goes) if first == "the new one comes" else (goes, comes):
        roster.apply(events, 2.0)
    assert gone(roster) == []
    roster.apply(deleted(new), 3.0)
    assert gone(roster) == [(new, False)]


def test_who_is_gone_is_forgotten_after_an_hour(roster: Roster) -> None:
    roster.apply(deleted(AGENT), 5.0)
    roster.apply(deleted(DECODE), 50.0)
    assert gone(roster, 5.0 + MEMORY_SECONDS) == [(AGENT, False), (DECODE, False)]
    assert gone(roster, 50.0 + MEMORY_SECONDS) == [(DECODE, False)]


def test_the_oldest_are_forgotten_when_too_many_are_gone(roster: Roster) -> None:
    names = [KEYS.decode(f"d{n}") for n in range(MOST_GONE + 5)]
    roster.apply([*map(written, names), *deleted(*names)], 1.0)
    assert [key for key, _ in gone(roster)] == names[5:]
