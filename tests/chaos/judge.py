"""Decides over a history whether the seven rules held. Knows nothing of the code under test.

1. A room has at most one live owner at a time, and nobody is sent to a rank that was told it is not the owner; where
   its registration timed out, to none whose failure does not follow.
2. No decode gets, or keeps without notice, a rank whose epoch was dead for longer than the bound. An answer that
   is marked stale claims no more than it knows, and is exempt.
3. A registration that was acknowledged is in etcd and can be resolved until it is released, its epoch or lease ends,
   or its owner is notified that its epoch has ended.
4. The revisions that one client sees never go back, unless it is notified of a resync in between.
5. After a fault is healed, every agent's view equals etcd within the bound.
6. Every wait ends within its deadline, with an answer or with the right error.
7. Nobody gets PrefillLost and is given that assignment afterwards.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from .facts import Facts, Ownership, Wait
from .history import Event, read


class Violation(NamedTuple):
    """A rule that did not hold."""

    rule: int
    t: float
    text: str

    def __str__(self) -> str:
        return f"rule {self.rule} at {self.t:.3f}: {self.text}"


@dataclass(frozen=True)
class Bounds:
    """How long what may take, seconds.

    Attributes:
        dead: an epoch's death may go unnoticed by a view that calls itself synced. The longest case is a member that
            lost its leader: etcd ends its watches after three election timeouts.
        visible: a room is in etcd and not yet known to a client whose view is synced.
        heal: after the end of a fault, until all views equal etcd.
        late: an engine that looks at its clock every few milliseconds, on a busy machine, sees its own deadline pass.
    """

    dead: float = 5.0
    visible: float = 5.0
    heal: float = 2.0
    late: float = 1.0


def judge(history: Iterable[Event], bounds: Bounds = Bounds()) -> list[Violation]:
    """All violations, in order of time."""
    facts = Facts(history)
    found = [violation for rule in _RULES for violation in rule(facts, bounds)]
    return sorted(found, key=lambda violation: violation.t)


# --- 1: one owner


def one_owner(facts: Facts, bounds: Bounds) -> Iterator[Violation]:
    """Rule 1."""
    for owners in facts.ownerships.values():
        for a, b in combinations(sorted(owners, key=lambda own: (own.era, own.token)), 2):
            if a.era == b.era and a.key != b.key and not _ended_before(facts, a, b):
                yield Violation(1, b.acked_at, f"room {a.room} has two owners, {a} and {b}")
    for wait in facts.waits:
        for answer in wait.answers:
            yield from _not_the_owner(facts, wait, answer, bounds)


def _ended_before(facts: Facts, a: Ownership, b: Ownership) -> bool:
    if a.token == b.token:
        return False
    revoked = facts.revoked_at.get(a.lease, math.inf)
    return min(a.released_at, revoked) < b.acked_at or facts.died_revision(a.key, a.era) < b.token


def _not_the_owner(facts: Facts, wait: Wait, answer: Event, bounds: Bounds) -> Iterator[Violation]:
    refused = facts.rejected.get(((wait.instance, wait.room), answer.dp_rank))
    if refused is None or refused.error not in ("RegistrationTimeout", "RoomConflict") or refused.t > answer.t:
        return
    owners = facts.ownerships.get((wait.instance, wait.room), ())
    may_yet_fail = refused.error == "RegistrationTimeout" and not owners
    if may_yet_fail and answer.t <= _failed_at(facts, wait) <= refused.t + bounds.visible:
        return  # a rank that its policy names is given until then
    if not any(own.dp_rank == answer.dp_rank for own in owners):
        text = f"{wait} is sent to rank {answer.dp_rank}, which was told {refused.error} before"
        yield Violation(1, answer.t, text)


def _failed_at(facts: Facts, wait: Wait) -> float:
    """When who waits was notified that nothing comes of the room; where it was done with it before, when etcd was."""
    written = [t for t in facts.written.get((wait.instance, wait.room), ()) if t > wait.done_at]
    return min(_lost_at(facts, wait), min(written, default=math.inf))


def _lost_at(facts: Facts, wait: Wait) -> float:
    """When who waits was notified for the first time that nothing comes of the room."""
    same = [one for one in facts.waits if (one.who, one.instance, one.room) == (wait.who, wait.instance, wait.room)]
    ends = [one.end for one in same if one.end]
    lost = [end.t for end in ends if end.error == "RoomFailed" or (end is wait.end and end.error == "PrefillLost")]
    return min(lost, default=math.inf)


# --- 2: nobody dead


def nobody_dead(facts: Facts, bounds: Bounds) -> Iterator[Violation]:
    """Rule 2."""
    for wait in facts.waits:
        for answer in wait.answers:
            died_at = facts.died_at((wait.instance, answer.dp_rank, answer.epoch), answer.t)
            if died_at == -math.inf:
                yield Violation(2, answer.t, f"{wait} got epoch {answer.epoch}, which etcd never had")
            elif answer.t > died_at + bounds.dead and not answer.stale:
                late = answer.t - died_at
                yield Violation(2, answer.t, f"{wait} got epoch {answer.epoch}, dead for {late:.2f} s")
        yield from _never_told(facts, wait, bounds)


def _never_told(facts: Facts, wait: Wait, bounds: Bounds) -> Iterator[Violation]:
    if not wait.answers:
        return
    last = wait.answers[-1]
    died_at = facts.died_at((wait.instance, last.dp_rank, last.epoch), last.t)
    if not math.isfinite(died_at):
        return
    for start, end in facts.synced(wait.who, max(died_at, wait.wanted_at), min(wait.ended_at, wait.deadline)):
        if end - start > bounds.dead:
            yield Violation(2, end, f"{wait} keeps epoch {last.epoch}, dead since {died_at:.3f}, without notice")
            return


# --- 3: nothing lost


def nothing_lost(facts: Facts, bounds: Bounds) -> Iterator[Violation]:
    """Rule 3."""
    owners = [own for all_of_room in facts.ownerships.values() for own in all_of_room]
    by_key = {(own.era, own.instance, own.room, own.token): own for own in owners}
    for own in owners:
        near_void = any(0 <= void - own.acked_at < bounds.late for void in facts.voids)
        # of an earlier history where the answer came late: who it is for is notified that it is void
        seen = any((own.instance, own.room, own.token, era) in facts.seen for era in range(own.era + 1))
        if not seen and not near_void:
            yield Violation(3, own.acked_at, f"room {own.room} of {own} was acknowledged, but was never in etcd")
    for era, gone in facts.deletions:
        deleted = by_key.get((era, gone.instance, gone.room, gone.token))
        if deleted is None or facts.was_disowned(deleted, gone.t):
            continue  # a restored etcd may have its rank's key for a while all the same
        if deleted.released_at > gone.t and _ends_at(facts, deleted) > gone.t:
            yield Violation(3, gone.t, f"room {gone.room} vanished from etcd under its owner {deleted}")
    for wait in facts.waits:
        if wait.end and wait.end.error in ("RoomTimeout", "InstanceUnknown"):
            yield from _gave_up_on(facts, wait, wait.end, bounds)


def _gave_up_on(facts: Facts, wait: Wait, end: Event, bounds: Bounds) -> Iterator[Violation]:
    for own in facts.ownerships.get((wait.instance, wait.room), ()):
        start = max(own.acked_at, wait.wanted_at)
        stop = min(end.t, own.released_at, _ends_at(facts, own))
        if any(b - a > bounds.visible for a, b in facts.synced(wait.who, start, stop)):
            yield Violation(3, end.t, f"{wait} ended with {end.error} though {own} held it since {own.acked_at:.3f}")


def _ends_at(facts: Facts, own: Ownership) -> float:
    """When an ownership ended without its owner's doing."""
    void = facts.voids[own.era] if own.era < len(facts.voids) else math.inf
    return min(facts.died_at(own.key, own.acked_at, own.era), facts.revoked_at.get(own.lease, math.inf), void)


# --- 4: no way back


def no_way_back(facts: Facts, bounds: Bounds) -> Iterator[Violation]:
    """Rule 4."""
    for who, views in facts.views.items():
        highest = 0
        for event in views:
            if event.view != "synced" or not event.revision:
                highest = 0  # it was notified
            elif event.revision < highest:
                yield Violation(4, event.t, f"{who} saw revision {highest} and then {event.revision}")
            highest = max(highest, event.revision) if event.view == "synced" else 0


# --- 5: views heal


def views_heal(facts: Facts, bounds: Bounds) -> Iterator[Violation]:
    """Rule 5."""
    for heal in facts.heals:
        times = {e.agent: e.seconds for e in facts.catch_ups if e.healed == heal.number}
        for agent in heal.agents:
            if agent not in times:
                yield Violation(5, heal.t, f"{agent} never caught up after {heal.name!r} was healed")
            elif times[agent] > bounds.heal:
                late = times[agent]
                yield Violation(5, heal.t, f"{agent} caught up {late:.2f} s after {heal.name!r} was healed")
    if facts.heals and not facts.audits:
        yield Violation(5, facts.heals[-1].t, "no view was compared with etcd")
    for audit in facts.audits:
        if audit.etcd != audit.view:
            text = f"{audit.agent} says {audit.view} of room {audit.room}, etcd {audit.etcd}"
            yield Violation(5, audit.t, text)


# --- 6: every wait ends


def every_wait_ends(facts: Facts, bounds: Bounds) -> Iterator[Violation]:
    """Rule 6."""
    for wait in facts.waits:
        first = wait.answers[0].t if wait.answers else math.inf
        if min(first, wait.ended_at) > wait.deadline + bounds.late:
            yield Violation(6, wait.deadline, f"{wait} has neither answer nor error after its deadline")
        if wait.end and not _is_right(facts, wait, wait.end, bounds):
            yield Violation(6, wait.end.t, f"{wait} ended with {wait.end.error} {wait.end.data}, which is not true")


def _is_right(facts: Facts, wait: Wait, end: Event, bounds: Bounds) -> bool:
    now = end.t
    if end.error == "RoomTimeout":
        return now >= wait.deadline - 0.05 and not wait.answers
    if end.error == "RoomFailed":
        return facts.failed_at.get((wait.instance, wait.room), math.inf) <= now
    if end.error == "PrefillLost" and end.dp_rank >= 0:
        known = wait.answers[-1].t if wait.answers else wait.wanted_at
        # the witness's own stream may lag behind an agent's
        return facts.was_lost((wait.instance, end.dp_rank, end.epoch), known, now + bounds.late)
    if end.error == "PrefillLost":  # the start that its agent knew of is over, also where another has begun since
        known = facts.last_synced(wait.who, wait.wanted_at) - bounds.dead
        return facts.was_gone(wait.instance, known, now + bounds.late)
    if end.error == "InstanceUnknown":
        return not facts.someone_lived(wait.instance, now - bounds.late, now + bounds.late)
    return False


# --- 7: lost is final


def lost_is_final(facts: Facts, bounds: Bounds) -> Iterator[Violation]:
    """Rule 7."""
    lost_at = {
        (wait.who, wait.instance, wait.room, wait.end.epoch): wait.end.t
        for wait in reversed(facts.waits)  # the earliest counts
        if wait.end and wait.end.error == "PrefillLost"
    }
    for wait in facts.waits:
        for answer in wait.answers:
            if answer.t > lost_at.get((wait.who, wait.instance, wait.room, answer.epoch), math.inf):
                text = f"{wait} got PrefillLost of epoch {answer.epoch}, and was given it afterwards"
                yield Violation(7, answer.t, text)


_RULES: tuple[Callable[[Facts, Bounds], Iterator[Violation]], ...] = (
    one_owner,
    nobody_dead,
    nothing_lost,
    no_way_back,
    views_heal,
    every_wait_ends,
    lost_is_final,
)


def main() -> int:
    """Judge the history in a directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    events = read(sorted(parser.parse_args().directory.glob("*.jsonl")))
    violations = judge(events)
    for violation in violations:
        print(violation)
    print(f"{len(events)} events, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
