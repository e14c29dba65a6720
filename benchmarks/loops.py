"""The loops of a prefill and a decode engine that are measured: the same for every system.

A spinning loop keeps its interpreter busy, as SGLang's scheduler does; an idle one naps between turns. Rooms are
``first``, ``first + 1``, ...; room i is due at ``start + i / rate``.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .peers import Reader, Writer

#: Length of a turn of a prefill engine's loop, seconds.
TURN_SECONDS = 0.00025
#: Longest nap of an idle loop, seconds.
NAP_SECONDS = 0.001
#: How long before it is registered a room is wanted: what prefill's dispatcher and scheduler take.
LEAD_SECONDS = 0.01
#: How long a room lives before its KV cache has been handed over.
HOLD_SECONDS = 0.5
#: How long a prefill engine's loop goes on after the last room was due.
TAIL_SECONDS = 0.7
#: How long a decode engine waits for stragglers: of a system that cannot register as fast as rooms come.
STRAGGLER_SECONDS = 5.0

Message = dict[str, Any]


def write_at_rate(side: Writer, message: Message) -> Message:
    """Register each room when it is due; when each was, and how long the loop was held up by it.

    ``sent_at``, ``acknowledged_at`` (seconds, None where never); ``wall_us``, ``cpu_us`` of register(); ``clock_us``:
    what ``cpu_us`` shows of nothing at all, which is what reading the clocks costs.
    """
    start, first, count, rate = message["start"], message["first"], message["count"], message["rate"]
    spin, sent_at = message["spin"], [0.0] * count
    acknowledged_at: list[float | None] = [None] * count
    walls, cpus, clocks, number, next_turn = [], [], [], 0, 0.0
    releases: deque[int] = deque()
    end = start + count / rate + TAIL_SECONDS
    while (now := time.monotonic()) < end or releases or number < count:
        if number < count and now >= start + number / rate:
            sent_at[number] = now
            wall, cpu = _timed(side.register, first + number)
            walls.append(wall)
            cpus.append(cpu)
            if side.blocking:
                acknowledged_at[number] = time.monotonic()
            releases.append(number)
            number += 1
            continue
        if releases and now >= sent_at[releases[0]] + HOLD_SECONDS:
            clocks.append(_timed(int, 0)[1])
            side.release(first + releases.popleft())
            continue
        if not spin:
            due = start + number / rate if number < count else end
            time.sleep(min(max(due - now, 0.0), NAP_SECONDS))
        if now >= next_turn:
            rooms, now = side.turn(), time.monotonic()
            next_turn = now + TURN_SECONDS
            for room in rooms:
                if 0 <= room - first < count:
                    acknowledged_at[room - first] = now
    times = {"wall_us": walls, "cpu_us": cpus, "clock_us": clocks}
    return {"sent_at": sent_at, "acknowledged_at": acknowledged_at, **times}


def _timed(call: Callable[[int], object], number: int) -> tuple[float, float]:
    """Wall time and this thread's CPU time of a call, microseconds."""
    cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
    call(number)
    took = time.perf_counter_ns() - wall
    return took / 1e3, (time.thread_time_ns() - cpu) / 1e3


def read_at_rate(side: Reader, message: Message) -> Message:
    """Want each room a moment before it is due, and look for it; when each was found.

    ``resolved_at`` (seconds, None where never), ``look_us`` (of one more look at a room that is there).
    """
    start, first, count, rate = message["start"], message["first"], message["count"], message["rate"]
    nap = None if message["spin"] else message["nap_ms"] / 1e3
    resolved_at: list[float | None] = [None] * count
    looks, number, found = [], 0, 0
    end = start + count / rate + STRAGGLER_SECONDS
    while (now := time.monotonic()) < end and found < count:
        while number < count and now >= start - LEAD_SECONDS + number / rate:
            side.want(first + number)
            number += 1
        rooms = [room for room in side.turn(now) if 0 <= room - first < count]
        if rooms:
            now = time.monotonic()
            for room in rooms:
                resolved_at[room - first] = now
            found += len(rooms)
            looks += [took for room in rooms if (took := side.done(room)) is not None]
        elif nap is not None:
            due = start - LEAD_SECONDS + number / rate if number < count else end
            _nap(side, nap, due - now, waits=number > found)
    for missing in [index for index, at in enumerate(resolved_at[:number]) if at is None]:
        side.forget(first + missing)
    return {"resolved_at": resolved_at, "look_us": looks}


def _nap(side: Reader, nap: float, until_due: float, *, waits: bool) -> None:
    """Sleep for as long as an idle engine would: until its next look, or until something is there where it can tell.

    ``waits``: rooms are missing, so that one that polls without a pause must look again at once.
    """
    if nap == 0 and (readable := side.filenos()):
        select.select(readable, [], [], max(until_due, 0.0))
    elif nap or not waits:
        time.sleep(min(nap or NAP_SECONDS, max(until_due, 0.0)))


def write_flat_out(side: Writer, message: Message) -> Message:
    """Register rooms as fast as they are acknowledged, so many in flight; when it began and ended.

    ``began``, ``ended``, ``count`` and, where ``release`` is set, rooms are released as soon as they are acknowledged.
    """
    first, count, window, release = message["first"], message["count"], message["window"], message["release"]
    while time.monotonic() < message["start"]:
        time.sleep(NAP_SECONDS)
    sent = acknowledged = 0
    began = time.monotonic()
    while acknowledged < count:
        if time.monotonic() > began + message["limit"]:
            raise TimeoutError(f"{count - acknowledged} of {count} rooms were not acknowledged")
        burst = min(count - sent, window - (sent - acknowledged))
        for room in range(first + sent, first + sent + burst):
            side.register(room)
        sent += burst
        rooms = side.turn()
        acknowledged += burst if side.blocking else len(rooms)
        for room in rooms if release else ():
            side.release(room)
        if not rooms and (readable := side.filenos()):
            select.select(readable, [], [], NAP_SECONDS)
    ended = time.monotonic()
    if release:
        time.sleep(HOLD_SECONDS)  # so that the last ones are paid for as well
    return {"began": began, "ended": ended, "count": count}


def read_flat_out(side: Reader, message: Message) -> Message:
    """Want so many rooms, a window of them at a time, and look for them until all are there; when that was."""
    first, count, window, nap = message["first"], message["count"], message["window"], message["nap_ms"] / 1e3
    wanted = found = 0
    deadline = message["start"] + message["limit"]
    while found < count and (now := time.monotonic()) < deadline:
        while wanted < min(count, found + window):
            side.want(first + wanted)
            wanted += 1
        rooms = side.turn(now)
        for room in rooms:
            side.done(room)
        found += len(rooms)
        if not rooms:
            _nap(side, nap, 0.01, waits=True)
    return {"ended": time.monotonic(), "count": found}
