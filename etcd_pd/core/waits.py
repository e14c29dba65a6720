"""Who waits for which room, and what of the cell answers that.

Laws: an assignment counts only while the rank key with its epoch lives; a wait that ended as PrefillLost gets no other
answer; the same wait at the same revision gets the same answer everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..wire.values import FAILED, Assignment, RoomValue
from .cell import Cell, End, Instance, registered_at
from .index import Index
from .keys import RoomKey
from .known_waits import KnownWaits
from .notices import Notice, Resolved, Wait, WaitFailed, WaitLost, lost
from .records import KeyValue


class Waits:
    """The waits of all engines behind one agent.

    Args:
        cell: what etcd says, which this reads and never changes.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._unplaced: Index[str] = Index()  # by the name that nobody has announced yet
        self._pending: Index[bytes] = Index()  # by the room's key
        self._for_rank: Index[tuple[str, int]] = Index()  # rank is computed, but not live yet
        self._asked: Index[tuple[str, int]] = Index()  # not forgotten yet, by name and room
        self._orphans: list[tuple[Wait, str]] = []
        self._known = KnownWaits(cell, self._assign)
        self._assigned: Index[tuple[str, int]] = Index()  # by instance and DP rank

    # --- beginning and ending

    def want(self, wait: Wait) -> list[Notice]:
        """Begin a wait; its answer may be there already.

        One that an earlier agent answered keeps that answer while its epoch lives, and ends with it.
        """
        if wait.known:
            self._known.add(wait)
            return self.confirm()
        self._asked.add((wait.instance, wait.room), wait)
        id = self._cell.find(wait.instance)
        if id is None:
            self._unplaced.add(wait.instance, wait)
            return []
        return list(self._place(wait, id, self._cell.revision))

    def is_unplaced(self, wait: Wait) -> bool:
        """Whether the wait's instance is still unknown."""
        return wait in self._unplaced.get(wait.instance, ())

    def forget(self, wait: Wait) -> None:
        """End a wait without a word: it was answered, aborted or its engine is gone."""
        wait.ended = True
        self._known.discard(wait)
        self._asked.discard((wait.instance, wait.room), wait)
        self._take_out(wait)

    def _take_out(self, wait: Wait) -> None:
        self._unplaced.discard(wait.instance, wait)
        if wait.assignment:
            self._assigned.discard((wait.assignment.instance, wait.assignment.dp_rank), wait)
        elif wait.placed is not None:
            self._pending.discard(wait.key, wait)
            for key in [key for key, waits in self._for_rank.items() if wait in waits]:
                self._for_rank.discard(key, wait)

    def disown(self, waits: Iterable[Wait], revision: int) -> list[Notice]:
        """End those of these waits that an earlier agent answered: what they know is of another history."""
        notices: list[Notice] = []
        for wait in list(waits):
            wait.beyond = 0
            if wait in self._pending.get(wait.key, ()) and wait.key in self._cell.rooms:
                notices.extend(self._answer(wait, self._cell.rooms[wait.key]))
            if wait.known and not wait.ended:
                self.forget(wait)
                notices.append(lost(wait, End(wait.known.dp_rank, wait.known.epoch, revision, withdrawn=False)))
        return notices

    # --- what the cell has come to say

    def pin(self, asked_before: float) -> None:
        """What was asked before that is for the start that stands now, unless a restored etcd has brought that back."""
        for wait in self._unanswered():
            if wait.start is None and wait.asked_at <= asked_before and wait.placed == self._cell.find(wait.instance):
                assert wait.placed
                info = None if self._cell.brought_back_of(wait.placed) else self._cell.instances[wait.placed].info
                wait.start = (wait.placed, info.incarnation) if info else None

    def take_orphans(self) -> list[tuple[Wait, str]]:
        """The waits whose start has ended, perhaps before they were asked, and whose instance that was."""
        orphans, self._orphans = self._orphans, []
        return orphans

    def read_all(self) -> list[Notice]:
        """All rooms may have changed."""
        rooms = self._cell.rooms
        concerned = rooms if self._assigned or self._cell.has_rivals else [key for key in self._pending if key in rooms]
        return [notice for key in concerned for notice in self.read_room(key, rooms[key])]

    def read_room(self, key: bytes, kv: KeyValue) -> Sequence[Notice]:
        """A room's key was written."""
        notices: list[Notice] = []
        if self._cell.has_rivals:
            self._claim(key, kv)
        if key in self._pending:
            for wait in list(self._pending[key]):
                notices.extend(self._answer(wait, kv))
        if self._assigned and b'"failed"' in kv.value:
            notices.extend(self._fail_assigned(key, kv))
        return notices

    def _claim(self, key: bytes, kv: KeyValue) -> None:
        """Who asked for a room by an address, and may not have meant the one that had it, meant who registers it."""
        room, value = self._cell.keys.parse(key), RoomValue.from_json(kv.value)
        if not isinstance(room, RoomKey) or not value or self._cell.epoch(room.instance, value.dp_rank) != value.epoch:
            return
        for address in dict.fromkeys(address for address, _ in self._cell.rivals(room.instance)):
            for wait in list(self._asked.get((address, room.room), ())):
                in_time = wait.beyond < registered_at(kv, value) and wait.named_rank in (None, value.dp_rank)
                if in_time and self._may_mean_another(wait) and wait.placed != room.instance:
                    self._take_out(wait)
                    wait.placed, wait.key = room.instance, key
                    self._pending.add(key, wait)

    def _take_over(self, address: str, rival: str) -> None:
        """Who asked by an address for a rank that its earlier owner does not have at present asks the new one."""
        waits = [wait for (owner, _), waits in self._for_rank.items() if owner == rival for wait in waits]
        for wait in [wait for wait in waits if wait.instance == address and self._may_mean_another(wait)]:
            self._take_out(wait)
            wait.placed = None
            self._unplaced.add(address, wait)

    def _may_mean_another(self, wait: Wait) -> bool:
        """Whether a wait by an address is open, and not sure to mean the instance that had it first."""
        is_open = wait.placed is not None and not wait.ended and wait.assignment is None
        return is_open and wait.start is None and wait.instance not in self._cell.instances

    def lose(self, id: str, end: End) -> Iterator[Notice]:
        """An epoch of a rank has ended."""
        for wait in self._assigned.pop((id, end.dp_rank), ()):
            yield lost(wait, end)

    def leave(self, id: str, revision: int, *, ended: bool) -> Iterator[Notice]:
        """A start of an instance has ended, or its keys are gone: the lease of its agent may have expired.

        Who waits for a start that has ended is lost. Who waits for one that may come back, or did not know which start
        it waits for, waits on.
        """
        for wait in [wait for wait in self._unanswered() if wait.placed == id]:
            self._take_out(wait)
            if ended and wait.start:
                wait.ended = True
                yield WaitLost(wait, -1, 0, revision, withdrawn=True)
                continue
            if ended:
                self._orphans.append((wait, id))
            wait.placed = None
            self._unplaced.add(wait.instance, wait)

    def join(self, id: str, instance: Instance) -> Iterator[Notice]:
        """An instance is there, and perhaps more of its ranks than before."""
        assert instance.info is not None
        for address, rival in self._cell.rivals(id):
            if self._cell.find(address) == id:
                self._take_over(address, rival)
        for dp_rank in instance.epochs:
            for wait in list(self._for_rank.get((id, dp_rank), ())):
                source = "named" if wait.named_rank is not None else "follow-bootstrap-room"
                if instance.info.topology.dp == 1 and wait.named_rank is None:
                    source = "single-rank"
                yield from self._computed(wait, id, dp_rank, source)

    def place(self, revision: int) -> Iterator[Notice]:
        """Those whose instance is there now, once all have left and joined."""
        for name in list(self._unplaced):
            if (id := self._cell.find(name)) is not None:
                for wait in self._unplaced.pop(name, ()):
                    yield from self._place(wait, id, revision)

    def confirm(self) -> list[Notice]:
        """Confirm or end what earlier agents answered, as far as the cell has come."""
        return self._known.confirm() if self._cell.revision else []

    def disown_unconfirmed(self, revision: int) -> list[Notice]:
        """End all that earlier agents answered and this one has not confirmed."""
        return self.disown(self._known, revision)

    def take_unanswered(self) -> list[Wait]:
        """Take those out that are placed and not answered; :meth:`unplace` puts them back."""
        waits = self._unanswered()
        self._pending.clear()
        self._for_rank.clear()
        return waits

    def unplace(self, waits: Iterable[Wait]) -> None:
        """These are for instances that nobody has announced yet, as others are, whatever they were for before."""
        for wait in waits:
            self._unplaced.add(wait.instance, wait)
        for wait in (wait for waiting in self._unplaced.values() for wait in waiting):
            wait.placed, wait.start, wait.beyond = None, None, 0

    # --- finding an answer

    def _place(self, wait: Wait, id: str, revision: int) -> Iterator[Notice]:
        """The ladder: rank named on the request, single rank, follow_bootstrap_room, registry."""
        info = self._cell.instances[id].info
        assert info is not None  # find() returns none but announced instances
        start = (id, info.incarnation)
        if wait.start not in (None, start):  # its own start has vanished, and another one has its name
            wait.ended = True
            yield WaitLost(wait, -1, 0, revision, withdrawn=True)
            return
        wait.placed, wait.key = id, self._cell.keys.room(id, wait.room)
        if wait.named_rank is not None:
            yield from self._computed(wait, id, wait.named_rank, "named")
        elif info.topology.dp == 1:
            yield from self._computed(wait, id, 0, "single-rank")
        elif info.policy == "follow_bootstrap_room":
            yield from self._computed(wait, id, wait.room % info.topology.dp, "follow-bootstrap-room")
        else:
            self._pending.add(wait.key, wait)
            kv = self._cell.rooms.get(wait.key)
            if kv:
                yield from self._answer(wait, kv)
        for address, rival in self._cell.rivals(id) if self._cell.has_rivals else ():
            key = self._cell.keys.room(rival, wait.room)
            if address == wait.instance and self._may_mean_another(wait) and key in self._cell.rooms:
                yield from self.read_room(key, self._cell.rooms[key])

    def _computed(self, wait: Wait, id: str, dp_rank: int, source: str) -> Iterator[Notice]:
        epoch = self._cell.epoch(id, dp_rank)
        end = self._end(wait, dp_rank, source)
        if not epoch and not end:
            self._for_rank.add((id, dp_rank), wait)
            return
        self._for_rank.discard((id, dp_rank), wait)
        # the epoch is the revision at which every reader came to know this answer
        yield end or self._assign(wait, Assignment(id, wait.room, dp_rank, epoch, epoch, 0, source))

    def _end(self, wait: Wait, dp_rank: int, source: str) -> WaitFailed | WaitLost | None:
        """The end of a wait whose room the rank has failed, or registered in an epoch that is over; None: none."""
        room, value = self._cell.read_room(wait.key, wait.beyond)
        if not room or not value or not wait.placed or value.dp_rank != dp_rank:
            return None
        arrived = Assignment(wait.placed, wait.room, dp_rank, value.epoch, value.epoch, 0, source)
        if value.state == FAILED:
            wait.ended = True
            return WaitFailed(wait, value.reason, room.mod_revision, arrived)
        if self._cell.epoch(wait.placed, dp_rank) == value.epoch:
            return None
        return lost(wait, self._end_of(wait.placed, value, room), arrived)

    def _answer(self, wait: Wait, room: KeyValue) -> Sequence[Notice]:
        value = RoomValue.from_json(room.value)
        id = wait.placed
        if value is None or id is None:
            return ()  # garbage under a room's key is nobody's registration
        since = registered_at(room, value)
        if since <= wait.beyond:
            return ()  # its release is on its way
        self._pending.discard(wait.key, wait)
        instance = self._cell.instances[id]
        assignment = Assignment(id, wait.room, value.dp_rank, value.epoch, since, room.lease, "registry")
        if value.state == FAILED:
            wait.ended = True
            return [WaitFailed(wait, value.reason, room.mod_revision, assignment)]
        if instance.epochs.get(value.dp_rank) != value.epoch:
            return [lost(wait, self._end_of(id, value, room), assignment)]
        return [self._assign(wait, assignment)]

    def _assign(self, wait: Wait, assignment: Assignment) -> Resolved:
        wait.assignment = assignment
        self._assigned.add((assignment.instance, assignment.dp_rank), wait)
        return Resolved(wait, assignment)

    def _fail_assigned(self, room_key: bytes, kv: KeyValue) -> Iterator[Notice]:
        key, value = self._cell.keys.parse(room_key), RoomValue.from_json(kv.value)
        if not isinstance(key, RoomKey) or not value or value.state != FAILED:
            return
        for wait in list(self._assigned.get((key.instance, value.dp_rank), ())):
            if wait.room == key.room and wait.beyond < registered_at(kv, value):
                self._assigned.discard((key.instance, value.dp_rank), wait)
                wait.ended = True
                yield WaitFailed(wait, value.reason, kv.mod_revision)

    def _end_of(self, id: str, value: RoomValue, room: KeyValue) -> End:
        """The end of a room's epoch, which the room counts as lost from; not before the room itself was written."""
        end = self._cell.end_of(id, value.dp_rank, value.epoch)
        return end._replace(revision=max(end.revision, room.mod_revision))

    def _unanswered(self) -> list[Wait]:
        """The waits that are placed and not answered yet."""
        return [wait for waits in (*self._pending.values(), *self._for_rank.values()) for wait in waits]
