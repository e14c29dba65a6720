"""Compares the agents' views with etcd, asking each agent as a decode would."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import etcd_pd

from .epochs import Epochs
from .workload import INSTANCE

if TYPE_CHECKING:
    from .rig import Rig

_CATCH_UP_SECONDS = 15.0
_ANSWER_SECONDS = 3.0
#: Rooms asked of each agent: those that stand in etcd, and those that do not any more.
_STANDING, _GONE = 200, 50


def catch_up(rig: Rig, number: int) -> None:
    """Record how long each agent takes until its view is synced and has everything that is in etcd now."""
    started = time.monotonic()
    revision = rig.last_revision()
    with ExitStack() as stack:
        # the heartbeat asks the agent again and again how far it is
        clients = {
            name: stack.enter_context(etcd_pd.connect(rig.socket_path(name), heartbeat=0.15)) for name in rig.readers
        }
        while clients and time.monotonic() < started + _CATCH_UP_SECONDS:
            for name, client in list(clients.items()):
                client.decode.poll()
                if client.decode.view == "synced" and client.decode.revision >= revision:
                    seconds = time.monotonic() - started
                    rig.record("caught_up", agent=name, healed=number, seconds=round(seconds, 3))
                    clients.pop(name)
            time.sleep(0.01)


def compare(rig: Rig) -> None:
    """Record what etcd and what each agent says of a sample of rooms that do not change meanwhile."""
    standing = _standing(rig)
    last = rig.timetable.number_at(time.monotonic())
    recent = [rig.timetable.room(number) for number in range(max(0, last - 20 * _GONE), last)]
    gone = [room for room in recent if room not in standing][:_GONE]
    # those that are gone come first: when the others are answered, they were looked at
    without = _computed(rig)
    expected = {**{room: without(room) for room in gone}, **dict(list(standing.items())[:_STANDING])}
    for name in rig.readers:
        with etcd_pd.connect(rig.socket_path(name)) as client:
            for room in expected:
                client.decode.want(INSTANCE, room, timeout=60.0)
            answers = _answers(client, expected)
        # the load has ended, but what it released last may be deleted a moment later
        still = _standing(rig)
        for room, etcd in expected.items():
            if etcd == still.get(room, without(room)):
                rig.record("audited", agent=name, instance=INSTANCE, room=room, etcd=etcd, view=answers[room])


def _standing(rig: Rig) -> dict[int, str]:
    """What a decode must learn of every room in etcd."""
    epochs = _epochs(rig)
    expected: dict[int, str] = {}
    for kv in rig.ctl.get_prefix(f"{rig.root}/v1/rooms/{INSTANCE}/"):
        value = json.loads(kv.value)
        answer = f"{value['dp_rank']}@{value['epoch']}"
        if value["state"] == "failed":
            answer = "RoomFailed"
        elif epochs.get(value["dp_rank"]) != value["epoch"]:
            answer = "PrefillLost"
        expected[int(kv.key.rpartition("/")[2])] = answer
    return expected


def _computed(rig: Rig) -> Callable[[int], str]:
    """What a decode must learn of rooms that are not in etcd: a rank that is computed is known all the same."""
    if rig.shape.ranks > 1 and rig.shape.policy == "round_robin":
        return lambda room: "nothing"
    epochs = _epochs(rig)
    return lambda room: f"{room % rig.shape.ranks}@{epochs[room % rig.shape.ranks]}"


def _epochs(rig: Rig) -> dict[int, int]:
    """The live epoch of each rank in etcd."""
    epochs = Epochs(rig.shape.tp)
    for kv in rig.ctl.get_prefix(f"{rig.root}/v1/prefill/{INSTANCE}/ranks/"):
        epochs.change(INSTANCE, int(kv.key.rpartition("/")[2].split(".")[0]), kv.key, kv.create_revision)
    return {dp_rank: epoch for (_, dp_rank), epoch in epochs.live().items()}


def _answers(client: etcd_pd.Client, expected: dict[int, str]) -> dict[int, str]:
    answers = dict.fromkeys(expected, "nothing")
    missing = {room for room, etcd in expected.items() if etcd != "nothing"}
    end = time.monotonic() + _ANSWER_SECONDS
    while missing and time.monotonic() < end:
        for event in client.decode.poll():
            if isinstance(event, etcd_pd.Resolved):
                room, answer = event.assignment.room, f"{event.assignment.dp_rank}@{event.assignment.epoch}"
            elif isinstance(event, etcd_pd.Ended):
                room, answer = event.error.room, type(event.error).__name__
            else:
                continue
            answers[room] = answer
            missing.discard(room)
        time.sleep(0.01)
    return answers
