"""Who is in a cell, from lists and events."""

from __future__ import annotations

from etcd_pd.core.keys import Keys
from etcd_pd.core.records import Event, KeyValue
from etcd_pd.core.roster import Roster

KEYS = Keys("/cell")
AGENT, DECODE, ROOM = KEYS.agent("a"), KEYS.decode("d"), KEYS.room("p", 1)


def kv(key: bytes, revision: int = 1, value: bytes = b"{}") -> KeyValue:
    return KeyValue(key, value, revision, revision, 7)


def written(key: bytes, revision: int = 2, value: bytes = b"{}") -> Event:
    return Event(key, revision, kv(key, revision, value))


def test_keys_come_and_go_when_events_say_so() -> None:
    roster = Roster(KEYS)
    roster.apply([written(AGENT), written(DECODE), written(ROOM)])
    assert set(roster.present) == {AGENT, DECODE}
    roster.apply([Event(AGENT, 3, None), Event(ROOM, 3, None), Event(b"never", 3, None)])
    assert set(roster.present) == {DECODE}


def test_only_what_is_listed_is_present_when_a_list_came() -> None:
    roster = Roster(KEYS)
    roster.apply([written(AGENT)])
    roster.replace([kv(DECODE), kv(ROOM)])
    assert set(roster.present) == {DECODE}
