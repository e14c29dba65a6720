"""Changes of keys told as what happened to the cell."""

from __future__ import annotations

import json
from typing import Any

from etcd_pd.cli.changes import Change, Chronicle
from etcd_pd.core.records import Event, KeyValue

RANK = {"incarnation": "i1", "ip": "10.0.0.1", "port": 7000, "state": "serving"}
RANK_KEY = "prefill/p/ranks/1.0.0.0"


def kv(key: str, value: Any, revision: int, created: int = 0, lease: int = 0) -> KeyValue:
    return KeyValue(f"/cell/v1/{key}".encode(), json.dumps(value).encode(), created or revision, revision, lease)


def put(key: str, value: Any, revision: int, created: int = 0, lease: int = 0) -> Event:
    found = kv(key, value, revision, created, lease)
    return Event(found.key, revision, found)


def delete(key: str, revision: int) -> Event:
    return Event(f"/cell/v1/{key}".encode(), revision, None)


def assigned(dp_rank: int = 1, **more: Any) -> dict[str, Any]:
    return {"dp_rank": dp_rank, "epoch": 5, "state": "assigned", **more}


def test_a_room_is_registered_failed_and_gone() -> None:
    told = Chronicle("/cell").describe(
        [
            put("rooms/p/7", assigned(), 10, lease=0x2A),
            put("rooms/p/7", assigned(state="failed", reason="no memory"), 11, created=10, lease=0x2A),
            delete("rooms/p/7", 12),
        ]
    )
    assert told == [
        Change(10, "registered", "room", "p", 7, 1, 5, "lease 2a"),
        Change(11, "failed", "room", "p", 7, 1, 5, "no memory"),
        Change(12, "gone", "room", "p", 7, 1, 5, "no memory"),
    ]


def test_a_rank_comes_drains_and_goes() -> None:
    told = Chronicle("/cell").describe(
        [
            put(RANK_KEY, RANK, 10),
            put(RANK_KEY, {**RANK, "state": "draining"}, 11, created=10),
            delete(RANK_KEY, 12),
        ]
    )
    assert [(event.what, event.dp_rank, event.epoch) for event in told] == [
        ("up", 1, 10),
        ("draining", 1, 10),
        ("gone", 1, 10),
    ]
    assert told[0].text == "10.0.0.1:7000"


def test_instances_and_agents_come_and_go() -> None:
    told = Chronicle("/cell").describe(
        [put("prefill/p", {}, 1), put("decode/d", {}, 2), put("agents/a", {}, 3), delete("agents/a", 4)]
    )
    assert [(event.kind, event.what, event.name) for event in told] == [
        ("prefill", "up", "p"),
        ("decode", "up", "d"),
        ("agent", "up", "a"),
        ("agent", "gone", "a"),
    ]


def test_the_next_snapshot_shows_changes_when_nobody_looked_meanwhile() -> None:
    chronicle = Chronicle("/cell")
    chronicle.snapshot(10, [kv("rooms/p/1", assigned(), 3), kv("rooms/p/2", assigned(), 4), kv(RANK_KEY, RANK, 5)])
    told = chronicle.snapshot(
        20, [kv("rooms/p/2", assigned(), 4), kv("rooms/p/3", assigned(), 15), kv(RANK_KEY, RANK, 16)]
    )
    assert [(event.what, event.kind, event.room, event.epoch) for event in told] == [
        ("gone", "room", 1, 5),
        ("registered", "room", 3, 5),
        ("gone", "rank", None, 5),
        ("up", "rank", None, 16),
    ]


def test_garbage_and_strangers_break_nothing() -> None:
    told = Chronicle("/cell").describe(
        [
            put("rooms/p/7", "garbage", 1),
            put("rooms/p/not-a-room", {}, 2),
            put(RANK_KEY, "garbage", 3),
            delete("rooms/p/9", 4),
            delete("rooms/p/7", 5),
        ]
    )
    assert [(event.what, event.kind, event.text) for event in told] == [
        ("up", "room", "unreadable"),
        ("up", "rank", ""),
        ("gone", "room", "unreadable"),
    ]
