"""What must hold of a simulated history, beside the chaos suite's seven rules: docs/failure-model.md names them.

Each rule yields what broke it, in words. Epochs are those of etcd's own values, never of what a client believed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache

from etcd_pd.wire.messages import SILENCE_SECONDS
from tests.chaos.history import Event
from tests.chaos.judge import Violation, judge

from .world import PATIENCE, History

#: How much later than the client's bound a stopped agent is noticed: what it sent before is still on its way, seconds.
NOTICED = 0.5
#: How soon a process that is not stopped connects anew, seconds.
SOON = 0.05
Rule = Callable[[History], Iterator[str]]


def _of_the_chaos_suite(number: int) -> Rule:
    def rule(history: History) -> Iterator[str]:
        yield from (str(violation) for violation in _judged(history) if violation.rule == number)

    return rule


@lru_cache(maxsize=1)
def _judged(history: History) -> list[Violation]:
    return judge(_with_true_epochs(history))


@lru_cache(maxsize=1)
def _epochs(history: History) -> dict[tuple[int, int], list[int]]:
    """Under which epoch each room was written, by room and token: under several, where etcd had several histories."""
    epochs: dict[tuple[int, int], list[int]] = {}
    for event in history.events:
        if event.what == "room" and event.alive:
            epochs.setdefault((event.room, event.token), []).append(event.epoch)
    return epochs


def _with_true_epochs(history: History) -> Iterator[Event]:
    """The events, with etcd's own word on the epoch of a registration in place of its client's."""
    epochs = _epochs(history)
    for event in history.events:
        written = epochs.get((event.room, event.token), []) if event.what == "registered" else []
        if written and event.epoch not in written:
            event = event._replace(data={**event.data, "epoch": written[-1]})
        yield event


def fenced(history: History) -> Iterator[str]:
    """No acknowledged registration has a revision above the death of its epoch."""
    era = 0  # a restored etcd counts its revisions anew
    died: dict[tuple[int, int, int], int] = {}
    written: dict[tuple[int, int], list[tuple[int, int, int]]] = {}  # era, rank and epoch, by room and token
    for event in history.events:
        if event.what == "void":
            era += 1
        elif event.what == "rank" and not event.alive:
            died[era, event.dp_rank, event.epoch] = event.revision
        elif event.what == "room" and event.alive:
            written.setdefault((event.room, event.token), []).append((era, event.dp_rank, event.epoch))
    for event in history.events:
        if event.what == "registered":
            owners = written.get((event.room, event.token))
            if owners is None:
                yield f"room {event.room} was acknowledged with token {event.token}, and never was in etcd"
            elif all(event.token > died.get(owner, math.inf) for owner in owners):
                yield f"room {event.room} was registered at {event.token}, after its epoch {owners[-1]} had died"


def attributed(history: History) -> Iterator[str]:
    """Who is notified that a room is registered learns under which epoch."""
    written = _epochs(history)
    for event in history.events:
        if event.what == "registered" and event.epoch not in (epochs := written.get((event.room, event.token), ())):
            yield f"room {event.room} is epoch {epochs}'s, its rank takes it for epoch {event.epoch}'s"


def registrations_end(history: History) -> Iterator[str]:
    """Every registration of an engine that lives has an outcome, or was given up by the engine itself."""
    ended = {(e.who, e.room) for e in history.events if e.what in ("registered", "rejected", "release", "fail")}
    for event in history.events:
        if event.what == "register" and event.who in history.living and (event.who, event.room) not in ended:
            yield f"room {event.room} has no outcome"


def conflicts_are_true(history: History) -> Iterator[str]:
    """One rank alone takes each room, once: nobody else can own it."""
    for event in history.events:
        if event.what == "rejected" and event.error == "RoomConflict":
            yield f"room {event.room} was refused as somebody else's"


def timeouts_are_true(history: History) -> Iterator[str]:
    """A room whose registration timed out is not given to decode, or is taken back."""
    timed_out = {e.room: e.t for e in history.events if e.what == "rejected" and e.error == "RegistrationTimeout"}
    ended = {e.room for e in history.events if e.what in ("ended", "done")}
    for event in history.events:
        if event.what == "resolved" and event.t > timed_out.get(event.room, math.inf) and event.room not in ended:
            yield f"room {event.room} was given to decode after its registration had timed out"


def releases_land(history: History) -> Iterator[str]:
    """What every process of a living rank released is gone at the end; a dead epoch's rooms end with their lease."""
    dead = {(e.dp_rank, e.epoch) for e in history.events if e.what == "rank" and not e.alive}
    orphaned = {e.room for e in history.events if e.what == "room" and e.alive and (e.dp_rank, e.epoch) in dead}
    registered = Counter(e.room for e in history.events if e.what == "register")
    released = Counter(e.room for e in history.events if e.what == "release" and e.who in history.living)
    for room in history.left - orphaned:
        if released[room] and released[room] == registered[room]:
            yield f"room {room} was released and is still there"


def durable_is_true(history: History) -> Iterator[str]:
    """Who registered a room, and is notified that its release or failure is durable, finds it in etcd."""
    took = {(event.who, event.room) for event in history.events if event.what == "register"}
    for event in history.events:
        if event.what == "durable" and event.stands and (event.who, event.room) in took:
            yield f"room {event.room} stands, and its end was acknowledged"


def endings_are_acknowledged(history: History) -> Iterator[str]:
    """Who released or failed a room is told, in the end, that etcd has it."""
    for who, rooms in history.unacknowledged.items():
        for room in rooms:
            yield f"room {room} was ended by {who}, which was never notified that etcd has it"


def failures_arrive(history: History) -> Iterator[str]:
    """Who waits for, or uses, a room that is failed is notified.

    Unless a backup from before is restored, or another instance takes the address about then, and is given instead.
    """
    moves = [event.t for event in history.events if event.what == "restarted"]
    moving = {e.room for e in history.events if e.what == "want" and any(abs(e.t - move) < PATIENCE for move in moves)}
    voids = [event.t for event in history.events if event.what == "void"]
    over = Counter(e.room for e in history.events if e.what in ("ended", "done"))
    owners = {e.epoch: e.data.get("owner") for e in history.events if e.what == "rank"}
    held = {e.room: owners.get(e.epoch) for e in history.events if e.what == "resolved"}
    written = {e.room: e.data.get("owner") for e in history.events if e.what == "room" and e.state == "failed"}
    for event in history.events:
        if event.what == "fail" and (event.who in history.living or event.room in written):
            forgotten = any(0.0 < void - event.t < PATIENCE for void in voids)
            given = event.room in held
            misled = given and event.room in moving and held[event.room] != written.get(event.room, held[event.room])
            if given and not misled and not forgotten and not over[event.room]:
                yield f"room {event.room} was failed, and decode was never told"


def withdrawn_is_true(history: History) -> Iterator[str]:
    """Who is notified that a rank was withdrawn is notified of one of which a process is gone."""
    gone = _gone_at(history)
    for event in history.events:
        if event.what == "ended" and event.data.get("withdrawn") and event.t < gone.get(event.dp_rank, math.inf):
            yield f"room {event.room} was lost with a rank that was said to be dead and was not"


def _gone_at(history: History) -> dict[int, float]:
    """When the first process of each DP rank died, or had been cut off and stopped for as long as it lingers."""
    gone: dict[int, float] = {}
    stops: dict[str, list[tuple[float, float]]] = {}
    for event in history.events:
        if event.what == "stopped":
            known = stops.setdefault(event.who, [])
            goes_on = known and event.t <= known[-1][1]
            known.append((known.pop()[0] if goes_on else event.t, event.until))
    for event in history.events:
        if event.what == "killed":
            gone.setdefault(event.dp_rank, event.t)
            gone.setdefault(-1, event.t)
        elif event.what == "cut":
            ends = event.t + history.linger
            if any(begin <= event.t + SOON and ends <= until + SOON for begin, until in stops.get(event.process, ())):
                gone[event.dp_rank] = min(ends, gone.get(event.dp_rank, math.inf))
    return gone


def views_agree(history: History) -> Iterator[str]:
    """At the end every agent knows the rooms that etcd has."""
    for agent, agrees in history.views.items():
        if not agrees:
            yield f"the view of {agent} is not etcd's"


def rosters_agree(history: History) -> Iterator[str]:
    """At the end every agent knows who is in etcd, misses nobody who is back, and then one who is killed."""
    yield from (f"{agent} knows others than those in etcd" for agent in history.strangers)
    yield from (f"{agent} misses {keys}, which are back" for agent, keys in history.missed.items() if keys)
    yield from (f"{agent} does not miss a process that died" for agent in history.unmissed)


def former_names_end(history: History) -> Iterator[str]:
    """At the end nothing of a name that the instance has no more is in etcd, but rooms that go with their lease."""
    yield from (f"{key.decode()} stands, of an instance that is gone" for key in history.former)


def service_returns(history: History) -> Iterator[str]:
    """Once nothing is done to the world any more, every room is registered and resolved."""
    failed = {e.room for e in history.events if e.what == "fail"}
    resolved = {e.room for e in history.events if e.what == "resolved"}
    for event in history.events:
        if event.what == "want" and event.t >= history.settled_at and event.room not in failed | resolved:
            yield f"room {event.room} was not resolved in the calm"


def silence_is_noticed(history: History) -> Iterator[str]:
    """While its agent is stopped, a decode does not call its view synced for longer than the bound."""
    stops = [(e.who, e.t, e.until) for e in history.events if e.what == "asleep"]
    for event in history.events:
        if event.what == "view" and event.view == "synced":
            for agent, begin, end in stops:
                if history.decodes[event.who] == agent and begin + SILENCE_SECONDS + NOTICED < event.t < end:
                    yield f"decode's view is synced {event.t - begin:.1f} s after its agent was stopped"


#: By name; a number is the chaos suite's.
RULES: dict[str, Rule] = {f"rule_{number}": _of_the_chaos_suite(number) for number in (1, 2, 3, 4, 6, 7)} | {
    rule.__name__: rule
    for rule in (
        fenced,
        attributed,
        registrations_end,
        conflicts_are_true,
        timeouts_are_true,
        releases_land,
        durable_is_true,
        endings_are_acknowledged,
        failures_arrive,
        withdrawn_is_true,
        views_agree,
        rosters_agree,
        former_names_end,
        service_returns,
        silence_is_noticed,
    )
}

#: Rules that are known to break, and why: what is to be mended next.
KNOWN: dict[str, str] = {}
