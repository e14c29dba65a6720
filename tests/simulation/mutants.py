"""``make mutants``: faults planted in the code under test, and in how many worlds the rules see each.

A rule that sees none of them is worth nothing, and neither is a model of etcd in which they do no harm.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest

from etcd_pd.agent.announcer import Announcer
from etcd_pd.agent.connection import EngineConnection
from etcd_pd.agent.watcher import Watcher
from etcd_pd.client.intents import Intents
from etcd_pd.client.prefill import Prefill
from etcd_pd.core.batch import Batch, Durable, Guard, Outcome, Rejected
from etcd_pd.core.book import RoomBook
from etcd_pd.core.cell import Cell
from etcd_pd.core.known_waits import KnownWaits
from etcd_pd.core.lease import SessionLease
from etcd_pd.core.notices import Known, Wait
from etcd_pd.core.own_room import State
from etcd_pd.core.records import Event, KeyValue
from etcd_pd.core.registrations import Registrations
from etcd_pd.core.results import Results
from etcd_pd.core.roster import Roster
from etcd_pd.core.view import View
from etcd_pd.core.waits import Waits
from etcd_pd.core.watch import WatchMachine
from etcd_pd.errors import RoomConflict
from etcd_pd.wire.messages import ANNOUNCE
from etcd_pd.wire.values import Assignment

from .plan import FAULTS, Plan
from .rules import RULES
from .world import simulate

#: Worlds in which each is looked for.
WORLDS = 10
Plant = Callable[[pytest.MonkeyPatch, random.Random], None]


class Mutant(NamedTuple):
    """A fault in the code.

    Attributes:
        plant: puts it there.
        harm: kinds of faults of the worlds in which it shows.
    """

    plant: Plant
    harm: Sequence[str] = FAULTS

    @property
    def name(self) -> str:
        """What is wrong, in words."""
        return (self.plant.__doc__ or "").rstrip(".")


RESTARTS = ("kill", "terminate")
DEATHS = ("session revoked", "watches held", "watches end", "engine killed")


def no_guard(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """All write-side fencing is gone."""
    real = Batch.compares
    patch.setattr(Batch, "compares", lambda self: [c for c in real(self) if c.create_revision == 0])


def a_sibling_unguarded(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """The guard compares the youngest of a rank's keys alone."""
    real = Announcer.guard_of

    def guard_of(self: Announcer, ref: Any) -> Guard | None:
        guard = real(self, ref)
        return guard and Guard(guard.epoch, guard.compares[:1])

    patch.setattr(Announcer, "guard_of", guard_of)


def registrations_dropped(patch: pytest.MonkeyPatch, luck: random.Random) -> None:
    """One registration in 50 is dropped."""
    real = RoomBook.register
    patch.setattr(RoomBook, "register", lambda self, *said: [] if luck.random() < 0.02 else real(self, *said))


def false_conflicts(patch: pytest.MonkeyPatch, luck: random.Random) -> None:
    """One registration in 20 is refused as somebody else's."""
    real = RoomBook.register

    def register(self: RoomBook, owner: object, ref: Any, room: int, sequence: int, now: float) -> list[Outcome]:
        if luck.random() < 0.05:
            return [Rejected(owner, room, RoomConflict(room, "somebody"), sequence)]
        return real(self, owner, ref, room, sequence, now)

    patch.setattr(RoomBook, "register", register)


def releases_lost(patch: pytest.MonkeyPatch, luck: random.Random) -> None:
    """One release in 10 is acknowledged and forgotten."""
    real = RoomBook.release

    def release(self: RoomBook, owner: object, ref: Any, room: int, sequence: int) -> list[Outcome]:
        return [Durable(owner, sequence)] if luck.random() < 0.1 else real(self, owner, ref, room, sequence)

    patch.setattr(RoomBook, "release", release)


def durable_too_early(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """Releases and failures are acknowledged before etcd has them."""
    patch.setattr(EngineConnection, "durable", property(lambda self: self.said))


def endings_said_once(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """The client says releases and failures once."""
    patch.setattr(Intents, "settle", lambda self, _: None)
    real = Intents.end

    def end(self: Intents, room: int, reason: str | None, *, connected: bool) -> None:
        real(self, room, reason, connected=connected)
        self.endings.clear()

    patch.setattr(Intents, "end", end)


def failures_unwritten(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """Failures are acknowledged and never written."""
    patch.setattr(RoomBook, "fail", lambda self, owner, ref, room, reason, sequence, now: [Durable(owner, sequence)])


def failures_lost_behind_creates(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """A failure is lost while its room is being registered."""
    real = Registrations.fail
    late = State.CREATING
    patch.setattr(Registrations, "fail", lambda self, own, why: None if own.state is late else real(self, own, why))


def dead_epochs_accepted(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """Waits do not end when their rank dies."""
    patch.setattr(Waits, "lose", lambda *_: iter(()))


def acknowledged_rooms_deleted(patch: pytest.MonkeyPatch, luck: random.Random) -> None:
    """One room in 50 is deleted after it was acknowledged."""
    real = Results.confirm

    def confirm(self: Results, batch: Batch, *rest: Any) -> list[Outcome]:
        outcomes = real(self, batch, *rest)
        for own in batch.rooms:
            if own.state is State.HELD and luck.random() < 0.02:
                self._rooms.release(own)
        return outcomes

    patch.setattr(Results, "confirm", confirm)


def lost_leases_ignored(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """A session's lease that etcd calls gone is taken for alive."""
    real = SessionLease.confirmed
    patch.setattr(SessionLease, "confirmed", lambda self, id, ttl, *rest: real(self, id, ttl or 5, *rest))


def fragments_dropped(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """Of a message in fragments the last one alone is applied."""
    real = WatchMachine._complete
    patch.setattr(WatchMachine, "_complete", lambda self, response: None if response.fragment else real(self, response))


def resumed_ahead(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """A watch resumes from what a header said, which may be ahead of the events."""
    real = WatchMachine.received

    def received(self: WatchMachine, response: Any) -> Any:
        outcome = real(self, response)
        if self._listed:
            self.revision = max(self.revision, response.header.revision)
        return outcome

    patch.setattr(WatchMachine, "received", received)


def lists_delete_nothing(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """What is missing in a list of everything is kept."""
    patch.setattr(View, "instance_keys", lambda self: iter(()))


def registered_before_announced(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """On a new connection rooms are said before their rank."""
    real = Prefill.hello

    def hello(self: Prefill) -> Iterator[bytes]:
        said = list(real(self))
        yield from sorted(said, key=lambda packet: packet[:1] == ANNOUNCE)

    patch.setattr(Prefill, "hello", hello)


def lots_half_written(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """The last room of a lot is not written."""
    real = Batch.operations

    def operations(self: Batch, bucket: Any) -> Any:
        last = {own.lot.rooms[-1].key for own in self.rooms if own.lot and own.state is State.CREATING}
        return [operation for operation in real(self, bucket) if operation.key not in last]

    patch.setattr(Batch, "operations", operations)


def failed_rooms_unnoticed(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """Who was given a room gets no word of its failure."""
    patch.setattr(Waits, "_fail_assigned", lambda *_: iter(()))


def lost_rooms_unconfirmed(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """A new agent takes what the one before it answered for true."""

    def confirm(self: KnownWaits, wait: Wait, id: str, known: Known, lives: bool) -> Any:
        return self._assign(wait, Assignment(id, wait.room, *known, 0, "registry"))

    patch.setattr(KnownWaits, "_confirm", confirm)


def repetitions_unknown(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """What a process says again on a new connection means the room's next life."""
    patch.setattr(Registrations, "is_repeated", lambda *_: False)


def sleep_unnoticed(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """An agent that was stopped goes on with what its watch had before."""
    patch.setattr(Watcher, "_overslept", property(lambda self: False))


def changes_reordered(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """Deletions of a message are applied before everything else in it."""
    real = View.apply

    def apply(self: View, revision: int, events: Sequence[Event]) -> Any:
        return real(self, revision, sorted(events, key=lambda event: event.kv is not None))

    patch.setattr(View, "apply", apply)


def who_is_back_missed(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """Who is gone is missed also when it is back."""

    def put(self: Roster, kv: KeyValue) -> None:
        self.present[kv.key] = kv

    patch.setattr(Roster, "_put", put)


def the_dead_forgotten(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """Who is gone is forgotten at once."""
    patch.setattr(Roster, "_delete", lambda self, key, now: self.present.pop(key, None))


def expired_ranks_withdrawn(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """A rank whose keys went with their lease is said to be withdrawn."""
    real = Cell.conclude
    patch.setattr(Cell, "conclude", lambda self, *at: [end._replace(withdrawn=True) for end in real(self, *at)])


def other_clusters_unnoticed(patch: pytest.MonkeyPatch, _: random.Random) -> None:
    """Another cluster's answers are taken for those of the one before."""
    patch.setattr(WatchMachine, "_check_cluster", lambda self, header: None)


MUTANTS = (
    Mutant(no_guard, DEATHS),
    Mutant(a_sibling_unguarded, ("watches held", "engine killed")),
    Mutant(registrations_dropped),
    Mutant(false_conflicts),
    Mutant(releases_lost),
    Mutant(durable_too_early),
    Mutant(endings_said_once, RESTARTS),
    Mutant(failures_unwritten),
    Mutant(failures_lost_behind_creates),
    Mutant(dead_epochs_accepted, DEATHS),
    Mutant(acknowledged_rooms_deleted),
    Mutant(lost_leases_ignored, ("session revoked", "etcd freezes")),
    Mutant(fragments_dropped),
    Mutant(resumed_ahead),
    Mutant(lists_delete_nothing, ("compaction", "engine killed")),
    Mutant(registered_before_announced, RESTARTS),
    Mutant(lots_half_written),
    Mutant(failed_rooms_unnoticed),
    Mutant(lost_rooms_unconfirmed, (*RESTARTS, "engine killed")),
    Mutant(repetitions_unknown, ("connection cut", "answers lost")),
    Mutant(sleep_unnoticed, ("agent asleep", "engine killed", "session revoked")),
    Mutant(changes_reordered),
    Mutant(who_is_back_missed, RESTARTS),
    Mutant(the_dead_forgotten),
    Mutant(expired_ranks_withdrawn, ("session revoked", "etcd freezes")),
    Mutant(other_clusters_unnoticed, ("etcd is restored", "engine killed")),
)


def catch(mutant: Mutant, seed: int) -> str:
    """The first rule that a world with the fault breaks, empty where none; an agent that ends by it counts."""
    plan = Plan.draw(seed, kinds=mutant.harm)
    with pytest.MonkeyPatch.context() as patch:
        mutant.plant(patch, random.Random(f"{seed} mutant"))
        try:
            history = simulate(plan)
        except Exception as exc:
            return f"ends with {type(exc).__name__}"
        return next((name for name, rule in RULES.items() if any(rule(history))), "")


def main() -> int:
    """Look for every mutant; exit status 1 where one is never caught."""
    logging.disable(logging.CRITICAL)
    began, missed = time.monotonic(), 0
    for mutant in MUTANTS:
        caught = [rule for seed in range(WORLDS) if (rule := catch(mutant, seed))]
        missed += not caught
        by = ", ".join(dict.fromkeys(caught)) or "NOT CAUGHT"
        print(f"mutants: {len(caught):2d} of {WORLDS} worlds: {mutant.name}: {by}", flush=True)
    print(f"mutants: {len(MUTANTS) - missed} of {len(MUTANTS)} caught, {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
