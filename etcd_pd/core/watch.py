"""When to list, where to resume, what may be believed: the revision machine behind the one watch.

Laws: changes are handed out in strictly growing, complete revisions; a gap in knowledge is STALE, never
silence; a store whose history is not the one seen before voids everything learnt from it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from .records import Event, Header, KeyValue, Listing, WatchResponse

#: What listing one key costs etcd, seconds of CPU: measured by ``python -m benchmarks.relist``.
KEY_SECONDS = 2e-6
#: Lists are spread over this at most, seconds: a view that waits for its list is stale.
LONGEST_SPREAD = 5.0
#: Less than this is not worth a wait, seconds.
SHORTEST_SPREAD = 0.05


def relist_spread(agents: int, keys: int) -> float:
    """Over how many seconds the agents of a cell spread lists that they all need at once, as after a compaction.

    As long as one core of etcd's takes for all of them, so that it still has others for what is written meanwhile.
    """
    spread = agents * keys * KEY_SECONDS
    return min(spread, LONGEST_SPREAD) if spread >= SHORTEST_SPREAD else 0.0


class WatchState(enum.Enum):
    """What a reader of the view may assume."""

    SYNCED = "synced"  #: every change up to the revision is in the view, and new ones arrive
    STALE = "stale"  #: the view is what it was; changes may be missing
    CLOSED = "closed"  #: nothing will be updated any more


class Relist(NamedTuple):
    """List everything, then call :meth:`WatchMachine.listed`."""


class Resume(NamedTuple):
    """Open a watch from this revision on, the last one that is known: what it repeats is dropped."""

    start_revision: int


class Snapshot(NamedTuple):
    """The whole content at one revision; ``void``: another history, earlier tokens and revisions mean nothing."""

    revision: int
    kvs: Sequence[KeyValue]
    void: bool


class Changes(NamedTuple):
    """All changes of one or more complete revisions, the last being ``revision``."""

    revision: int
    events: Sequence[Event]


class Reopen(NamedTuple):
    """Drop this stream and ask :meth:`WatchMachine.next` again; ``cause`` is one of a few words."""

    cause: str
    reason: str


class WatchMachine:
    """State of one watch over one prefix.

    Attributes:
        state: what a reader may assume at present.
        revision: last revision whose changes were handed out completely.
        cluster_id: whose revisions these are, 0 before anybody answered.
    """

    def __init__(self) -> None:
        self.state = WatchState.STALE
        self.revision = 0
        self.cluster_id = 0
        self._highest = 0  # highest revision listed, applied or noted: a later list below it means a restored store
        self._known = 0  # the same when the present list or stream was begun
        self._target = 0  # SYNCED once everything up to here has arrived
        self._listed = False
        self._void = False
        self._fragments: list[Event] = []

    def __repr__(self) -> str:
        return f"<WatchMachine {self.state.value} revision={self.revision}>"

    def next(self) -> Relist | Resume:
        """What to do with a fresh stream."""
        self._fragments.clear()
        self._known = self._highest  # what is noted while the answer is under way proves nothing against it
        # inclusive: etcd owes a watch that starts ahead of its revision no answer to a progress request
        return Resume(self.revision) if self._listed else Relist()

    def listed(self, listing: Listing) -> Snapshot | Reopen:
        """A list has arrived."""
        problem = self._check_cluster(listing.header)
        if problem:
            return problem
        # a list is linearizable, so no healthy cluster can answer it from behind what was seen
        went_back = listing.header.revision < self._known
        void, self._void = self._void or went_back, False
        self._listed = True
        self.revision = self._highest = listing.header.revision
        return Snapshot(self.revision, listing.kvs, void)

    def received(self, response: WatchResponse) -> Changes | Reopen | None:
        """A watch message has arrived; None where it carries nothing to apply."""
        problem = self._check_cluster(response.header)
        if problem:
            return problem
        if response.compact_revision:
            self._listed = False
            return self._stale("Compacted", f"compacted up to revision {response.compact_revision}")
        if response.created:
            # a proxy that serves several watchers by one watch answers for etcd, with a revision of its own
            made_up = not response.header.cluster_id
            at = self._known if made_up else response.header.revision
            if at < self._known:
                # a lagging member or a restored store, which would stay silent for ever: the next list shows which
                self._listed = False
                return self._stale("Behind", f"etcd is at {at}, behind what was read from it")
            self._target = at
        changes = self._complete(response)
        caught_up = self.revision >= self._target or self._is_progress(response)
        if caught_up and self.state is not WatchState.CLOSED:
            self.state = WatchState.SYNCED
        return changes

    def successor(self) -> WatchMachine:
        """For another stream beside the present one, which is to resume where this one is now."""
        other = WatchMachine()
        other.cluster_id, other._listed = self.cluster_id, True
        other.revision, other._highest, other._known = self.revision, self._highest, self._highest
        return other

    def take_over(self, learnt: Sequence[Changes]) -> Changes | None:
        """The successor's stream takes the place of the present one: what it learnt that is new."""
        self._fragments.clear()
        return self._advance([event for changes in learnt for event in changes.events])

    def note_revision(self, revision: int) -> None:
        """The store was at this revision: where the keys watched are quiet, nothing else would show a restored one."""
        self._highest = max(self._highest, revision)

    def disconnected(self) -> None:
        """The stream ended or fell silent: what is known stays, but nothing is sure any more."""
        if self.state is not WatchState.CLOSED:
            self.state = WatchState.STALE
        self._fragments.clear()

    def close(self) -> None:
        """Nothing will be asked of this machine any more."""
        self.state = WatchState.CLOSED

    def _complete(self, response: WatchResponse) -> Changes | None:
        if response.fragment:
            self._fragments.extend(response.events)
            return None
        if not response.events:
            return None  # a control message; fragments that came before it still wait for their last one
        events: Sequence[Event] = response.events
        if self._fragments:
            events = [*self._fragments, *events]
            self._fragments = []
        return self._advance(events)

    def _advance(self, events: Sequence[Event]) -> Changes | None:
        """Go on to the last of some complete revisions; what of them is new."""
        if not events or events[-1].mod_revision <= self.revision:
            return None
        if events[0].mod_revision <= self.revision:
            events = [event for event in events if event.mod_revision > self.revision]
        self.revision = events[-1].mod_revision
        self._highest = max(self._highest, self.revision)
        return Changes(self.revision, events)

    def _is_progress(self, response: WatchResponse) -> bool:
        # etcd answers a progress request only once the watcher has caught up. Good enough for "synced", but never a
        # place to resume from: servers before 3.5.8 could send it ahead of pending events.
        empty = not response.events and not response.created and not response.fragment
        return empty and not self._fragments and response.header.revision >= self._target

    def _check_cluster(self, header: Header) -> Reopen | None:
        # Only the cluster is compared in every header. Revisions of watch headers are no clock: etcd sends control
        # messages past events that wait, so that they go back and forth by a few.
        if self.cluster_id in (0, header.cluster_id):
            self.cluster_id = header.cluster_id
        if header.cluster_id in (0, self.cluster_id):  # etcd's own is never 0, a proxy's answer is
            return None
        self.cluster_id = self._highest = self._known = self._target = 0
        self._listed, self._void = False, True
        return self._stale("AnotherCluster", f"another cluster answered ({header.cluster_id:x})")

    def _stale(self, cause: str, reason: str) -> Reopen:
        self.disconnected()
        return Reopen(cause, reason)
