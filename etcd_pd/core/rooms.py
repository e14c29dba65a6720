"""The view: what etcd says of instances, ranks and rooms, and which waits that ends.

Fed with snapshots and changes in revision order, it answers with notices: effects as data, for the agent to push.

Laws: an assignment counts only while the rank key with its epoch lives; a dead epoch never comes back; a wait
that was told PrefillLost is told nothing else; the same wait at the same revision gets the same answer everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from ..wire.values import ENDED, FAILED, Assignment, InstanceInfo, PrefillInstance, Rank, RankEndpoint, RoomValue
from .keys import AgentKey, Keys, PrefillKey, RankKey, RoomKey
from .records import Event, KeyValue

#: How many ended epochs are remembered with their end, for waits that come later. Ranks that restart more often than
#: that while a room lives have other troubles.
ENDED_EPOCHS = 4096


@dataclass
class Instance:
    """All that is known of one prefill instance.

    Attributes:
        info: its last word, also where the key is gone but ranks live.
        born: create_revision of its key.
        ended_for_good: the start that ``info`` belonged to is over, and that was not acted upon yet.
    """

    info: InstanceInfo | None = None
    info_key_exists: bool = False
    born: int = 0
    ended_for_good: bool = False
    endpoints: dict[Rank, RankEndpoint] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)


class Known(NamedTuple):
    """What an earlier agent answered a wait, and the revision of etcd at which that held."""

    dp_rank: int
    epoch: int
    revision: int


class Wait:
    """One wanted room. Compared by identity: two engines may want the same room.

    Attributes:
        instance: the instance as the engine named it, by id or address.
        named_rank: the rank that the request itself named, None where it did not.
        known: what it was answered before, to be confirmed or ended; None where it was not.
        placed: id of the instance that it was found to mean, None before, and again while that is gone.
        start: of which start of an instance its room is expected: id and incarnation. None while that is not known: it
            was not placed, or by a view that was not synced.
        key: the room's key there.
        assignment: set once, when the rank is known.
        asked_at: for the owner to keep when it asked.
    """

    __slots__ = (
        *("asked_at", "assignment", "ended", "id", "instance", "key"),
        *("known", "named_rank", "owner", "placed", "room", "start"),
    )

    def __init__(
        self,
        owner: object,
        id: int,
        instance: str,
        room: int,
        named_rank: int | None = None,
        known: Known | None = None,
    ) -> None:
        self.owner = owner
        self.id = id
        self.instance = instance
        self.room = room
        self.named_rank = named_rank
        self.known = known
        self.asked_at = 0.0
        self.placed: str | None = None
        self.start: tuple[str, str] | None = None
        self.key = b""
        self.assignment: Assignment | None = None
        self.ended = False


class Resolved(NamedTuple):
    """The wait's rank is known."""

    wait: Wait
    assignment: Assignment


class WaitFailed(NamedTuple):
    """The prefill side failed the room.

    Attributes:
        arrived: what the room was before, where this wait came too late to hear of that.
    """

    wait: Wait
    reason: str
    revision: int
    arrived: Assignment | None = None


class WaitLost(NamedTuple):
    """The rank that held the room, or the whole instance (``dp_rank`` -1), is gone; ``arrived`` as in WaitFailed."""

    wait: Wait
    dp_rank: int
    epoch: int
    revision: int
    arrived: Assignment | None = None


class InstanceChanged(NamedTuple):
    """Instance info or live endpoints differ from before."""

    id: str


class AgentSpoke(NamedTuple):
    """An agent wrote its own key: it has listed, and others are to say that they came past that."""

    id: str


Notice = Resolved | WaitFailed | WaitLost | InstanceChanged | AgentSpoke


class View:
    """The cell as etcd describes it, up to :attr:`revision`.

    Attributes:
        revision: every change up to it is in the view.
        floor: revision of the last list. What ended before it, ended at a revision that the view may not know.
        synced: whether it shows what etcd has now: else who waits may mean a start of an instance that is not in it.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._room_prefix = keys.rooms()
        # as etcd sends them: a key is parsed, and a value decoded, only where somebody wants the room
        self._rooms: dict[bytes, KeyValue] = {}
        self.revision = 0
        self.floor = 0
        self.synced = False
        self.instances: dict[str, Instance] = {}
        self._ended: dict[tuple[str, int, int], int] = {}  # by instance, DP rank and epoch: its end, the latest last
        self._rank_keys: dict[bytes, KeyValue] = {}
        self._brought_back: dict[bytes, KeyValue] = {}  # ranks of a history that is void, if a restored etcd has them
        self._by_address: dict[str, set[str]] = {}  # ids of all that claim it
        # waits in the order of asking, which a set of them would lose
        self._unplaced: dict[str, dict[Wait, None]] = {}  # by the name that nobody has announced yet
        self._pending: dict[bytes, dict[Wait, None]] = {}  # by the room's key
        self._for_rank: dict[tuple[str, int], dict[Wait, None]] = {}  # rank is computed, but not live yet
        self._unconfirmed: dict[Wait, Known] = {}  # answered by an earlier agent, at a revision still to come
        self._assigned: dict[tuple[str, int], dict[Wait, None]] = {}  # by instance and DP rank

    # --- reading

    def find(self, name: str) -> str | None:
        """The id of the instance that has this id or address; None where there is none."""
        if name in self.instances and self.instances[name].info:
            return name
        claimants = self._by_address.get(name)
        # the youngest: an elder that has not gone yet only lingers
        return max(claimants, key=lambda id: (self.instances[id].born, id)) if claimants else None

    def instance(self, id: str) -> PrefillInstance | None:
        """An instance with the endpoints that belong to its present incarnation."""
        found = self.instances.get(id)
        if not found or not found.info:
            return None
        ranks = tuple(e for e in found.endpoints.values() if e.incarnation == found.info.incarnation)
        return PrefillInstance(id, found.info, tuple(sorted(ranks, key=lambda e: e.rank)))

    def epoch(self, id: str, dp_rank: int) -> int:
        """The live epoch of a DP rank, 0 where not all of its processes are there."""
        found = self.instances.get(id)
        return found.epochs.get(dp_rank, 0) if found else 0

    def room_count(self) -> int:
        """How many keys there are under those of rooms."""
        return len(self._rooms)

    def is_dead(self, id: str, dp_rank: int, epoch: int) -> bool | None:
        """Whether an epoch of a DP rank has ended; None while only that is known that a restored etcd has its key.

        Its own process may not have heard of the restore yet, and register rooms under it.
        """
        if any(
            (key.instance, key.rank.dp) == (id, dp_rank)
            for key in map(self._keys.parse, self._brought_back)
            if isinstance(key, RankKey)
        ):
            return None
        return self.epoch(id, dp_rank) != epoch

    # --- waiting

    def want(self, wait: Wait) -> list[Notice]:
        """Begin a wait; its answer may be there already.

        One that an earlier agent answered keeps that answer while its epoch lives, and ends with it.
        """
        if wait.known:
            self._unconfirmed[wait] = wait.known
            return self._confirm()
        id = self.find(wait.instance)
        if id is None:
            self._unplaced.setdefault(wait.instance, {})[wait] = None
            return []
        return list(self._place(wait, id, self.revision))

    def is_unplaced(self, wait: Wait) -> bool:
        """Whether the wait's instance is still unknown."""
        return wait in self._unplaced.get(wait.instance, ())

    def forget(self, wait: Wait) -> None:
        """End a wait without a word: it was answered, aborted or its engine is gone."""
        wait.ended = True
        self._unconfirmed.pop(wait, None)
        _discard(self._unplaced, wait.instance, wait)
        if wait.assignment:
            _discard(self._assigned, (wait.assignment.instance, wait.assignment.dp_rank), wait)
            return
        if wait.placed is None:
            return
        _discard(self._pending, wait.key, wait)
        for key in [key for key, waits in self._for_rank.items() if wait in waits]:
            _discard(self._for_rank, key, wait)

    # --- feeding

    def sync(self, synced: bool) -> None:
        """Whether the view shows what etcd has now; who has waited until it does means what it shows."""
        self.synced = synced
        for wait in self._unanswered() if synced else ():
            if wait.start is None and wait.placed:
                info = self.instances[wait.placed].info
                wait.start = (wait.placed, info.incarnation) if info else None

    def changes(self, revision: int, events: Sequence[Event]) -> list[Notice]:
        """Apply changes of complete revisions, in order."""
        notices: list[Notice] = []
        for event in events:
            if event.key.startswith(self._room_prefix):
                notices.extend(self._room_changed(event.key, event.kv))
                continue
            key = self._store(event)
            if isinstance(key, AgentKey):
                notices.append(AgentSpoke(key.agent))
            elif key is not None:
                notices.extend(self._refresh(key.instance, event.mod_revision))
        self.revision = revision
        return notices + self._confirm() if self._unconfirmed else notices

    def snapshot(self, revision: int, kvs: Sequence[KeyValue]) -> list[Notice]:
        """Replace everything: what vanished meanwhile becomes a deletion at this revision.

        All is stored before anything is concluded: half a list describes a state that never was.
        """
        self.floor = revision
        rooms: dict[bytes, KeyValue] = {}
        others: dict[bytes, KeyValue] = {}
        for kv in kvs:
            (rooms if kv.key.startswith(self._room_prefix) else others)[kv.key] = kv
        self._rooms = rooms
        self._brought_back = {key: kv for key, kv in self._brought_back.items() if others.get(key) == kv}
        for key in self._brought_back:
            del others[key]
        events = [Event(key, revision, None) for key in self._instance_keys() if key not in others]
        events += [Event(kv.key, kv.mod_revision, kv) for kv in others.values()]
        stored = [self._store(event) for event in events]
        notices: list[Notice] = []
        for id in dict.fromkeys(key.instance for key in stored if isinstance(key, (PrefillKey, RankKey))):
            notices.extend(self._refresh(id, revision))
        concerned = self._rooms if self._assigned else [key for key in self._pending if key in self._rooms]
        for room_key in concerned:
            notices.extend(self._room_told(room_key, self._rooms[room_key]))
        self.revision = revision
        return notices + self._confirm()

    def void(self, revision: int) -> list[Notice]:
        """etcd has another history: nothing of what was known holds, and every wait that it answered is lost.

        Epochs of another history are other numbers only by luck, so the next snapshot must not be compared with this.
        Waits that were not answered go on: their rooms may yet be registered in the new history. A rank whose key is
        found there just as it was is dead, as waits were told, until its own process writes the key again.
        """
        brought_back = self._brought_back | self._rank_keys
        answered = self.disown(list(self._unconfirmed), revision)
        unanswered = self._unanswered()
        for index in (self._pending, self._for_rank):
            index.clear()
        self._rooms.clear()
        notices = self.changes(revision, [Event(key, revision, None) for key in list(self._instance_keys())])
        for wait in unanswered:
            wait.placed = wait.start = None
            self._unplaced.setdefault(wait.instance, {})[wait] = None
        self._brought_back = brought_back
        self._ended.clear()
        return notices + answered

    def _instance_keys(self) -> Iterator[bytes]:
        for id, instance in self.instances.items():
            if instance.info_key_exists:
                yield self._keys.prefill(id)
            for rank in instance.endpoints:
                yield self._keys.rank(id, rank)

    def _store(self, event: Event) -> PrefillKey | RankKey | AgentKey | None:
        """Keep what a key that is no room's holds now; what it stands for where that means anything here."""
        key, kv = self._keys.parse(event.key), event.kv
        if not isinstance(key, (PrefillKey, RankKey)):
            return key if isinstance(key, AgentKey) else None
        instance = self.instances.get(key.instance)
        if instance is None:
            if kv is None:
                return None
            instance = self.instances[key.instance] = Instance()
        if isinstance(key, PrefillKey):
            self._store_info(instance, kv)
        else:
            self._brought_back.pop(event.key, None)
            if kv:
                self._rank_keys[event.key] = kv
            else:
                self._rank_keys.pop(event.key, None)
            endpoint = RankEndpoint.from_json(key.rank, kv.value, kv.create_revision) if kv else None
            if endpoint:
                instance.endpoints[key.rank] = endpoint
            else:
                instance.endpoints.pop(key.rank, None)
        return key

    def _store_info(self, instance: Instance, kv: KeyValue | None) -> None:
        instance.info_key_exists = kv is not None
        if kv is None:
            return  # the last word stands while ranks live: another agent of the instance writes it again
        info = InstanceInfo.from_json(kv.value)
        if info and info.state == ENDED:
            instance.info_key_exists, instance.ended_for_good = False, True
        elif info:
            if instance.info and instance.info.incarnation != info.incarnation:
                instance.ended_for_good = True
            instance.info, instance.born = info, kv.create_revision

    # --- rooms

    def _room_changed(self, key: bytes, kv: KeyValue | None) -> Sequence[Notice]:
        if kv is None:
            self._rooms.pop(key, None)
            return ()
        self._rooms[key] = kv
        return self._room_told(key, kv)

    def _room_told(self, key: bytes, kv: KeyValue) -> Sequence[Notice]:
        """What a room's key says to those who wait."""
        notices: list[Notice] = []
        if key in self._pending:
            for wait in list(self._pending[key]):
                notices.extend(self._answer(wait, kv))
        if self._assigned and b'"failed"' in kv.value:
            notices.extend(self._fail_assigned(key, kv))
        return notices

    def _fail_assigned(self, room_key: bytes, kv: KeyValue) -> Iterator[Notice]:
        key, value = self._keys.parse(room_key), RoomValue.from_json(kv.value)
        if not isinstance(key, RoomKey) or not value or value.state != FAILED:
            return
        for wait in list(self._assigned.get((key.instance, value.dp_rank), ())):
            if wait.room == key.room:
                _discard(self._assigned, (key.instance, value.dp_rank), wait)
                wait.ended = True
                yield WaitFailed(wait, value.reason, kv.mod_revision)

    # --- waits that an earlier agent answered

    def _confirm(self) -> list[Notice]:
        """Answer them as far as the view has come."""
        if not self.revision:
            return []
        found = [(wait, known) for wait, known in self._unconfirmed.items() if known.revision <= self.revision]
        for wait, _ in found:
            del self._unconfirmed[wait]
        return [self._confirm_one(wait, known) for wait, known in found]

    def _confirm_one(self, wait: Wait, known: Known) -> Notice:
        id = wait.instance if wait.instance in self.instances else self.find(wait.instance) or wait.instance
        instance = self.instances.get(id)
        if instance is None or instance.epochs.get(known.dp_rank) != known.epoch:
            return self._lose_known(wait, known, self._ended.get((id, known.dp_rank, known.epoch), self.floor))
        wait.placed, wait.key = id, self._keys.room(id, wait.room)
        room, value = self._read_room(wait.key)
        if room and value and (value.state, value.dp_rank, value.epoch) == (FAILED, known.dp_rank, known.epoch):
            wait.ended = True
            return WaitFailed(wait, value.reason, room.mod_revision)
        return self._assign(wait, Assignment(id, wait.room, *known, 0, "registry"))

    def _lose_known(self, wait: Wait, known: Known, revision: int) -> WaitLost:
        wait.ended = True
        return WaitLost(wait, known.dp_rank, known.epoch, revision)

    def disown(self, waits: Iterable[Wait], revision: int) -> list[Notice]:
        """End those of these waits that an earlier agent answered: what they were told is of another history."""
        notices: list[Notice] = []
        for wait in waits:
            if wait.known and not wait.ended:
                self.forget(wait)
                notices.append(self._lose_known(wait, wait.known, revision))
        return notices

    def _place(self, wait: Wait, id: str, revision: int) -> Iterator[Notice]:
        """The ladder: rank named on the request, single rank, follow_bootstrap_room, registry."""
        info = self.instances[id].info
        assert info is not None  # find() returns none but announced instances
        start = (id, info.incarnation)
        if wait.start not in (None, start):  # its own start has vanished, and another one has its name
            wait.ended = True
            yield WaitLost(wait, -1, 0, revision)
            return
        wait.placed, wait.key = id, self._keys.room(id, wait.room)
        if self.synced:
            wait.start = start
        if wait.named_rank is not None:
            yield from self._computed(wait, id, wait.named_rank, "named")
        elif info.topology.dp == 1:
            yield from self._computed(wait, id, 0, "single-rank")
        elif info.policy == "follow_bootstrap_room":
            yield from self._computed(wait, id, wait.room % info.topology.dp, "follow-bootstrap-room")
        else:
            self._pending.setdefault(wait.key, {})[wait] = None
            kv = self._rooms.get(wait.key)
            if kv:
                yield from self._answer(wait, kv)

    def _computed(self, wait: Wait, id: str, dp_rank: int, source: str) -> Iterator[Notice]:
        epoch = self.epoch(id, dp_rank)
        end = self._end(wait, dp_rank, source)
        if not epoch and not end:
            self._for_rank.setdefault((id, dp_rank), {})[wait] = None
            return
        _discard(self._for_rank, (id, dp_rank), wait)
        # the epoch is the revision at which every reader came to know this answer
        yield end or self._assign(wait, Assignment(id, wait.room, dp_rank, epoch, epoch, 0, source))

    def _end(self, wait: Wait, dp_rank: int, source: str) -> WaitFailed | WaitLost | None:
        """The end of a wait whose room the rank has failed, or registered in an epoch that is over; None: none."""
        room, value = self._read_room(wait.key)
        if not room or not value or not wait.placed or value.dp_rank != dp_rank:
            return None
        arrived = Assignment(wait.placed, wait.room, dp_rank, value.epoch, value.epoch, 0, source)
        if value.state == FAILED:
            wait.ended = True
            return WaitFailed(wait, value.reason, room.mod_revision, arrived)
        if self.epoch(wait.placed, dp_rank) == value.epoch:
            return None
        wait.ended = True
        return WaitLost(wait, dp_rank, value.epoch, self._lost_at(wait.placed, value, room), arrived)

    def _read_room(self, key: bytes) -> tuple[KeyValue | None, RoomValue | None]:
        """A room's key and what it says; None each where it is not there, or garbage."""
        room = self._rooms.get(key)
        return room, RoomValue.from_json(room.value) if room else None

    def _lost_at(self, id: str, value: RoomValue, room: KeyValue) -> int:
        """From which revision on a room counts as lost whose epoch is over."""
        return max(self._ended.get((id, value.dp_rank, value.epoch), self.floor), room.mod_revision)

    def _answer(self, wait: Wait, room: KeyValue) -> Sequence[Notice]:
        value = RoomValue.from_json(room.value)
        id = wait.placed
        if value is None or id is None:
            return ()  # garbage under a room's key is nobody's registration
        _discard(self._pending, wait.key, wait)
        instance = self.instances[id]
        # a room's registration creates it, and only its failure changes it
        since = room.create_revision if value.state == FAILED else room.mod_revision
        assignment = Assignment(id, wait.room, value.dp_rank, value.epoch, since, room.lease, "registry")
        if value.state == FAILED:
            wait.ended = True
            return [WaitFailed(wait, value.reason, room.mod_revision, assignment)]
        if instance.epochs.get(value.dp_rank) != value.epoch:
            wait.ended = True
            return [WaitLost(wait, value.dp_rank, value.epoch, self._lost_at(id, value, room), assignment)]
        return [self._assign(wait, assignment)]

    def _assign(self, wait: Wait, assignment: Assignment) -> Resolved:
        wait.assignment = assignment
        self._assigned.setdefault((assignment.instance, assignment.dp_rank), {})[wait] = None
        return Resolved(wait, assignment)

    # --- instances and ranks

    def _refresh(self, id: str, revision: int) -> Iterator[Notice]:
        """Conclude from what is stored of an instance and its ranks."""
        instance = self.instances[id]
        before, instance.epochs = instance.epochs, _live_epochs(instance)
        if not instance.info_key_exists and not instance.endpoints:
            instance.info = None
        self._index_addresses(id, instance)
        yield InstanceChanged(id)
        for dp_rank, epoch in before.items():
            if instance.epochs.get(dp_rank) != epoch:
                self._note_end((id, dp_rank, epoch), revision)
                yield from self._lose(id, dp_rank, epoch, revision)
        if instance.ended_for_good or not instance.info:
            yield from self._leave(id, revision, ended=instance.ended_for_good)
        instance.ended_for_good = False
        if instance.info:
            yield from self._appeared(id, instance, revision)
        self._drop_if_empty(id)

    def _index_addresses(self, id: str, instance: Instance) -> None:
        addresses = instance.info.addresses if instance.info else ()
        for address in [a for a, ids in self._by_address.items() if id in ids and a not in addresses]:
            self._by_address[address].discard(id)
            if not self._by_address[address]:
                del self._by_address[address]
        for address in addresses:
            self._by_address.setdefault(address, set()).add(id)

    def _appeared(self, id: str, instance: Instance, revision: int) -> Iterator[Notice]:
        assert instance.info is not None
        for name in (id, *instance.info.addresses):
            for wait in self._unplaced.pop(name, ()):
                yield from self._place(wait, id, revision)
        for dp_rank in instance.epochs:
            for wait in list(self._for_rank.get((id, dp_rank), ())):
                source = "named" if wait.named_rank is not None else "follow-bootstrap-room"
                if instance.info.topology.dp == 1 and wait.named_rank is None:
                    source = "single-rank"
                yield from self._computed(wait, id, dp_rank, source)

    def _note_end(self, epoch: tuple[str, int, int], revision: int) -> None:
        self._ended[epoch] = revision
        if len(self._ended) > ENDED_EPOCHS:
            del self._ended[next(iter(self._ended))]

    def _lose(self, id: str, dp_rank: int, epoch: int, revision: int) -> Iterator[Notice]:
        for wait in self._assigned.pop((id, dp_rank), ()):
            wait.ended = True
            yield WaitLost(wait, dp_rank, epoch, revision)

    def _leave(self, id: str, revision: int, *, ended: bool) -> Iterator[Notice]:
        """A start of an instance has ended, or its keys are gone: the lease of its agent may have expired.

        Who waits for a start that has ended is lost. Who waits for one that may come back, or did not know which start
        it waits for, waits on.
        """
        for wait in [wait for wait in self._unanswered() if wait.placed == id]:
            self.forget(wait)
            if ended and wait.start:
                yield WaitLost(wait, -1, 0, revision)
                continue
            wait.ended, wait.placed = False, None
            now = self.find(wait.instance)
            if now is None:
                self._unplaced.setdefault(wait.instance, {})[wait] = None
            else:
                yield from self._place(wait, now, revision)

    def _unanswered(self) -> list[Wait]:
        """The waits that are placed and not answered yet."""
        return [wait for waits in (*self._pending.values(), *self._for_rank.values()) for wait in waits]

    def _drop_if_empty(self, id: str) -> None:
        instance = self.instances.get(id)
        if instance and not (instance.endpoints or instance.info):
            del self.instances[id]


def _live_epochs(instance: Instance) -> dict[int, int]:
    """The epoch of each DP rank all of whose processes are there: the youngest of their keys."""
    if not instance.info:
        return {}
    epochs: dict[int, int] = {}
    count: dict[int, int] = {}
    for endpoint in instance.endpoints.values():
        if endpoint.incarnation == instance.info.incarnation:
            dp_rank = endpoint.rank.dp
            epochs[dp_rank] = max(epochs.get(dp_rank, 0), endpoint.epoch)
            count[dp_rank] = count.get(dp_rank, 0) + 1
    whole = instance.info.topology.endpoints_per_rank
    return {dp_rank: epoch for dp_rank, epoch in epochs.items() if count[dp_rank] >= whole}


K = TypeVar("K")


def _discard(index: dict[K, dict[Wait, None]], key: K, wait: Wait) -> None:
    waits = index.get(key)
    if waits:
        waits.pop(wait, None)
        if not waits:
            del index[key]
