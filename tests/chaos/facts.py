"""A history, put in order: who owned which room, which epochs lived when, how each wait went."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .history import Event

Room = tuple[str, int]
EpochKey = tuple[str, int, int]  # instance, dp_rank, epoch


@dataclass
class Ownership:
    """A registration that was acknowledged; ``released_at`` is when the owner asked for its end."""

    instance: str
    room: int
    dp_rank: int
    epoch: int
    token: int
    lease: int
    who: str
    acked_at: float
    era: int
    released_at: float = math.inf

    @property
    def key(self) -> EpochKey:
        """The epoch that it was made under."""
        return self.instance, self.dp_rank, self.epoch

    def __str__(self) -> str:
        return f"{self.who} ({self.dp_rank}@{self.epoch}, token {self.token})"


@dataclass
class Life:
    """One life of a rank's key, as the witness saw it, in one history of etcd."""

    born_at: float
    era: int
    died_at: float = math.inf
    died_revision: float = math.inf


@dataclass
class Wait:
    """One want() and what came of it."""

    who: str
    instance: str
    room: int
    wanted_at: float
    deadline: float
    answers: list[Event] = field(default_factory=list)
    end: Event | None = None
    done_at: float = math.inf

    @property
    def ended_at(self) -> float:
        """When it was told its end, or was dropped by its own engine."""
        return min(self.done_at, self.end.t if self.end else math.inf)

    def __str__(self) -> str:
        return f"{self.who} room {self.room}"


class Facts:
    """An index over a history.

    Attributes:
        ownerships: acknowledged registrations by room, in the order of acknowledgement.
        lives: of each epoch.
        waits: in order; a client may want a room again after it was done with it.
        views: what each client's view was, in order.
        rejected: when a registration of a room by a rank was refused for good, by room and rank.
        failed_at: when a rank first asked for a room to be failed, or its registration timed out.
        revoked_at: when a lease was revoked by hand.
        seen: room keys that were in etcd, by instance, room, token and era.
        written: when a room's key was written.
        deletions: room keys that vanished, with their era.
        counts: how often each kind of event, answer and error came.
    """

    def __init__(self, history: Iterable[Event]) -> None:
        self.ownerships: dict[Room, list[Ownership]] = defaultdict(list)
        self.lives: dict[EpochKey, list[Life]] = defaultdict(list)
        self.waits: list[Wait] = []
        self._current: dict[tuple[str, str, int], Wait] = {}
        self.views: dict[str, list[Event]] = defaultdict(list)
        self._synced: dict[str, list[tuple[float, float]]] = {}  # for whom it was asked once
        self.rejected: dict[tuple[Room, int], Event] = {}
        self.failed_at: dict[Room, float] = {}
        self.revoked_at: dict[int, float] = {}
        self.seen: set[tuple[str, int, int, int]] = set()  # instance, room, token, era
        self.written: dict[Room, list[float]] = defaultdict(list)
        self.deletions: list[tuple[int, Event]] = []
        self.heals: list[Event] = []
        self.catch_ups: list[Event] = []
        self.audits: list[Event] = []
        self.voids: list[float] = []
        self.restarts: list[float] = []
        self._rank_ends: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.counts: Counter[str] = Counter()
        for event in history:
            self.counts[event.what] += 1
            handler = getattr(self, f"_{event.what}", None)
            if handler:
                handler(event)

    @property
    def era(self) -> int:
        """How many histories of etcd ended before the present event."""
        return len(self.voids)

    # --- asking

    def died_at(self, key: EpochKey, since: float, era: int | None = None) -> float:
        """When the epoch that lived at ``since`` or before died, in one history of etcd or in any.

        Never (inf), or -inf where it never lived.
        """
        lives = [life for life in self.lives.get(key, ()) if era in (None, life.era)]
        return max((life.died_at for life in lives if life.born_at <= since + 1.0), default=-math.inf)

    def was_lost(self, key: EpochKey, known: float, end: float) -> bool:
        """Whether an epoch had died by then that was known before; one that a restored etcd brought back is dead."""
        lives = self.lives.get(key, [])
        own = [life for life in lives if life.era == lives[0].era]
        goes_on = any(life.born_at <= known and life.died_at > end for life in own)
        return not goes_on and any(life.died_at <= end for life in lives)

    def died_revision(self, key: EpochKey, era: int) -> float:
        """The revision of the epoch's last death in a history of etcd: another's revisions are other numbers."""
        return max((life.died_revision for life in self.lives.get(key, ()) if life.era == era), default=-math.inf)

    def someone_lived(self, instance: str, start: float, end: float) -> bool:
        """Whether some rank of an instance lived through all of a time."""
        return any(
            life.born_at <= start and life.died_at >= end
            for key, lives in self.lives.items()
            if key[0] == instance
            for life in lives
        )

    def was_gone(self, instance: str, start: float, end: float) -> bool:
        """Whether at some moment of a time no rank of an instance lived that had ever lived before, or it restarted."""
        if any(start <= restart <= end for restart in self.restarts):
            return True
        lives = [life for key, lives in self.lives.items() if key[0] == instance for life in lives]
        covered = max(start, min((life.born_at for life in lives), default=start))
        for life in sorted(lives, key=lambda life: life.born_at):
            if life.born_at > covered:
                break
            covered = max(covered, life.died_at)
        return covered < end

    def synced(self, who: str, start: float, end: float) -> Iterator[tuple[float, float]]:
        """The parts of a time in which a client was notified that its view is synced."""
        if who not in self._synced:
            self._synced[who] = list(_synced(self.views.get(who, ())))
        for since, until in self._synced[who]:
            if (stop := min(end, until)) > (first := max(start, since)):
                yield first, stop

    def last_synced(self, who: str, t: float) -> float:
        """The last moment until then in which a client was notified that its view is synced."""
        return max((until for _, until in self.synced(who, -math.inf, t)), default=-math.inf)

    # --- prefill ranks

    def _registered(self, event: Event) -> None:
        own = Ownership(
            event.instance,
            event.room,
            event.dp_rank,
            event.epoch,
            event.token,
            event.lease,
            event.who,
            event.t,
            self._era_of(event),
        )
        siblings = [other for other in self.ownerships[own.instance, own.room] if other.key == own.key]
        # one process of a rank that releases the room does so for all, of which another may be notified of it later
        own.released_at = min((other.released_at for other in siblings if other.token == own.token), default=math.inf)
        self.ownerships[own.instance, own.room].append(own)

    def _era_of(self, event: Event) -> int:
        """In which history a room was written: an answer may come when another has begun."""
        key = event.instance, event.room, event.token
        return next((era for era in range(self.era, -1, -1) if (*key, era) in self.seen), self.era)

    def _rejected(self, event: Event) -> None:
        self.counts[f"rejected {event.error}"] += 1
        self.rejected[(event.instance, event.room), event.dp_rank] = event
        if event.error == "RegistrationTimeout":  # what turns out to be written after all is failed by its agent
            self._fail(event)

    def _release(self, event: Event) -> None:
        for own in self.ownerships.get((event.instance, event.room), ()):
            if own.who == event.who or own.dp_rank == event.data.get("dp_rank"):  # its successor speaks for it
                own.released_at = min(own.released_at, event.t)

    def _fail(self, event: Event) -> None:
        self.failed_at.setdefault((event.instance, event.room), event.t)

    # --- decodes

    def _want(self, event: Event) -> None:
        key = event.who, event.instance, event.room
        wait = self._current[key] = Wait(*key, event.t, event.t + event.timeout)
        self.waits.append(wait)

    def _resolved(self, event: Event) -> None:
        self.counts["resolved stale"] += bool(event.stale)
        self._current[event.who, event.instance, event.room].answers.append(event)

    _known = _resolved

    def _ended(self, event: Event) -> None:
        self.counts[f"ended {event.error}"] += 1
        wait = self._current[event.who, event.instance, event.room]
        wait.end = wait.end or event

    def _done(self, event: Event) -> None:
        self._current[event.who, event.instance, event.room].done_at = event.t

    def _view(self, event: Event) -> None:
        self.views[event.who].append(event)

    # --- the witness, the nemesis, the auditor

    def _rank(self, event: Event) -> None:
        lives = self.lives[event.instance, event.dp_rank, event.epoch]
        if event.alive:
            if not lives or lives[-1].died_at < math.inf:
                lives.append(Life(event.t, self.era))
        elif lives:
            lives[-1].died_at, lives[-1].died_revision = event.t, event.revision

    def _room(self, event: Event) -> None:
        if event.alive:
            self.seen.add((event.instance, event.room, event.token, self.era))
            self.written[event.instance, event.room].append(event.t)
        else:
            self.deletions.append((self.era, event))

    def was_disowned(self, own: Ownership, t: float) -> bool:
        """Whether its owner had been notified by then that the epoch under which it has the room is over."""
        return any(own.acked_at <= end <= t for end in self._rank_ends[own.who, own.epoch])

    def _rank_ended(self, event: Event) -> None:
        self._rank_ends[event.who, event.epoch].append(event.t)

    def _restarted(self, event: Event) -> None:
        self.restarts.append(event.t)

    def _void(self, event: Event) -> None:
        self.voids.append(event.t)
        for lives in self.lives.values():
            for life in lives:
                life.died_at = min(life.died_at, event.t)

    def _revoked(self, event: Event) -> None:
        self.revoked_at[event.lease] = event.t

    def _healed(self, event: Event) -> None:
        self.heals.append(event)

    def _caught_up(self, event: Event) -> None:
        self.catch_ups.append(event)

    def _audited(self, event: Event) -> None:
        self.audits.append(event)


def _synced(views: Iterable[Event]) -> Iterator[tuple[float, float]]:
    """From when until when a view was synced, time and again."""
    since: float | None = None
    for event in views:
        if event.view != "synced":
            if since is not None:
                yield since, event.t
            since = None
        elif since is None:
            since = event.t
    if since is not None:
        yield since, math.inf
