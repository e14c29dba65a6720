"""What etcd says of a cell: its instances, their ranks, and its rooms as etcd sends them. Nobody waits here.

Laws: a dead epoch never comes back; of an instance that claims a name that another has, the newest has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..wire.values import ENDED, FAILED, InstanceInfo, PrefillInstance, Rank, RankEndpoint, RoomValue
from .keys import AgentKey, Keys, PrefillKey, RankKey
from .records import Event, KeyValue

#: How many ended epochs are remembered with their end, for waits that come later. Ranks that restart more often than
#: that while a room lives have other troubles.
ENDED_EPOCHS = 4096


@dataclass
class Instance:
    """All that is known of one prefill instance.

    Attributes:
        info: its last word, also where the key is gone but ranks live.
        born: revision at which its start began: create_revision of its key, unless that was written again.
        ended_for_good: the start that ``info`` belonged to is over, and that was not acted upon yet.
        withdrawn: DP ranks of which a living agent deleted a key, and that was not acted upon yet.
    """

    info: InstanceInfo | None = None
    info_key_exists: bool = False
    born: int = 0
    ended_for_good: bool = False
    endpoints: dict[Rank, RankEndpoint] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    withdrawn: set[int] = field(default_factory=set)


class End(NamedTuple):
    """An epoch of a DP rank is over.

    Attributes:
        dp_rank: the rank.
        epoch: its epoch.
        revision: at which it ended; the last list's where that is not known.
        withdrawn: its agent deleted it, or another start took its place: its processes are gone. Else its keys went
            with its agent's session, and they may live.
    """

    dp_rank: int
    epoch: int
    revision: int
    withdrawn: bool


class Cell:
    """The content of a cell, up to :attr:`revision`.

    Attributes:
        revision: every change up to it is in here.
        history: how many histories of etcd ended before this one.
        floor: revision of the last list. What ended before it, ended at a revision that is not known here.
        has_rivals: some address is claimed by several instances.
        rooms: by key, as etcd sends them: a key is parsed, and a value decoded, only where somebody wants the room.
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.rooms: dict[bytes, KeyValue] = {}
        self.revision = self.history = self.floor = 0
        self.instances: dict[str, Instance] = {}
        self._ended: dict[tuple[str, int, int], End] = {}  # by instance, DP rank and epoch, the latest last
        self._sessions: dict[bytes, int] = {}  # the lease of each agent's key
        self._rank_keys: dict[bytes, KeyValue] = {}
        self._brought_back: dict[bytes, KeyValue] = {}  # ranks of a history that is void, if a restored etcd has them
        self._by_address: dict[str, set[str]] = {}  # ids of all that claim it
        self.has_rivals = False

    # --- reading

    def find(self, name: str) -> str | None:
        """The id of the instance that has this id or address, of several the newest; None where there is none."""
        if name in self.instances and self.instances[name].info:
            return name
        return max(self._by_address.get(name, ()), key=lambda id: (self.instances[id].born, id), default=None)

    def rivals(self, id: str) -> Iterator[tuple[str, str]]:
        """Others that claim an address of an instance: which address, and who."""
        found = self.instances.get(id)
        for address in found.info.addresses if found and found.info else ():
            yield from ((address, other) for other in sorted(self._by_address.get(address, set()) - {id}))

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

    def lives(self, id: str, dp_rank: int, epoch: int) -> bool | None:
        """Whether an epoch of a DP rank lives; None where its key stands without its instance's.

        The instance's key went with another agent's session, and an agent of the instance is about to write it again.
        """
        if self.epoch(id, dp_rank) == epoch:
            return True
        found = self.instances.get(id)
        if found is None or found.info is not None:
            return False
        stands = any(one.rank.dp == dp_rank and one.epoch == epoch for one in found.endpoints.values())
        return None if stands else False

    def is_dead(self, id: str, dp_rank: int, epoch: int) -> bool | None:
        """Whether an epoch of a DP rank has ended; None while that is not known.

        It is not either while only that is known that a restored etcd has its key: its own process may not know of the
        restore yet, and register rooms under it.
        """
        if any(rank.dp == dp_rank for rank in self.brought_back_of(id)):
            return None
        lives = self.lives(id, dp_rank, epoch)
        return None if lives is None else not lives

    def end_of(self, id: str, dp_rank: int, epoch: int) -> End:
        """How an epoch ended, as far as that is known."""
        return self._ended.get((id, dp_rank, epoch)) or End(dp_rank, epoch, self.floor, withdrawn=False)

    def read_room(self, key: bytes, beyond: int = 0) -> tuple[KeyValue | None, RoomValue | None]:
        """A room's key and what it says; None each where it is not there, garbage, or registered up to ``beyond``."""
        room = self.rooms.get(key)
        value = RoomValue.from_json(room.value) if room else None
        return (None, None) if room and value and registered_at(room, value) <= beyond else (room, value)

    # --- storing

    def replace(self, revision: int, kvs: Sequence[KeyValue]) -> list[str]:
        """Store a list of everything; the instances that it may have changed.

        What vanished meanwhile counts as deleted at this revision.
        """
        self.floor = revision
        rooms: dict[bytes, KeyValue] = {}
        others: dict[bytes, KeyValue] = {}
        prefix = self.keys.rooms()
        for kv in kvs:
            (rooms if kv.key.startswith(prefix) else others)[kv.key] = kv
        self.rooms = rooms
        self._sessions = {key: kv.lease for key, kv in others.items() if isinstance(self.keys.parse(key), AgentKey)}
        self._brought_back = {key: kv for key, kv in self._brought_back.items() if others.get(key) == kv}
        events = [Event(key, revision, None) for key in self.instance_keys() if key not in others]
        events += [Event(kv.key, kv.mod_revision, kv) for kv in others.values()]
        stored = [self.store(event) for event in events]
        return list(dict.fromkeys(key.instance for key in stored if isinstance(key, (PrefillKey, RankKey))))

    def forget_sessions(self) -> None:
        """What vanishes now has not been withdrawn by anybody."""
        self._sessions.clear()

    def bring_back(self, ranks: dict[bytes, KeyValue]) -> None:
        """etcd has another history: no end is known of it, and these ranks are dead if it has their keys unchanged."""
        self.history += 1
        self._brought_back = ranks
        self._ended.clear()

    def doubtful_ranks(self) -> dict[bytes, KeyValue]:
        """The keys of all ranks: those of the present history, and of earlier ones."""
        return self._brought_back | self._rank_keys

    def brought_back_of(self, id: str) -> set[Rank]:
        """The instance's ranks that a restored etcd has as they were, and of which no process has spoken since."""
        keys = map(self.keys.parse, self._brought_back)
        return {key.rank for key in keys if isinstance(key, RankKey) and key.instance == id}

    def instance_keys(self) -> Iterator[bytes]:
        """The keys of all instances and ranks."""
        for id, instance in self.instances.items():
            if instance.info_key_exists:
                yield self.keys.prefill(id)
            for rank in instance.endpoints:
                yield self.keys.rank(id, rank)

    def store(self, event: Event) -> PrefillKey | RankKey | AgentKey | None:
        """Keep what a key that is no room's holds now; what it stands for where that means anything here."""
        key, kv = self.keys.parse(event.key), event.kv
        if isinstance(key, AgentKey):
            self._store_session(event)
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
            if self._brought_back.get(event.key) != kv:
                self._brought_back.pop(event.key, None)
            if kv:
                self._rank_keys[event.key] = kv
            elif (gone := self._rank_keys.pop(event.key, None)) and gone.lease in self._sessions.values():
                instance.withdrawn.add(key.rank.dp)
            endpoint = RankEndpoint.from_json(key.rank, kv.value, kv.create_revision) if kv else None
            if endpoint:
                instance.endpoints[key.rank] = endpoint
            else:
                instance.endpoints.pop(key.rank, None)
        return key

    def _store_session(self, event: Event) -> None:
        """An agent's key: etcd deletes the keys of a lease in their order, so it goes before the agent's ranks."""
        if event.kv:
            self._sessions[event.key] = event.kv.lease
        else:
            self._sessions.pop(event.key, None)

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
            instance.info, instance.born = info, info.began or kv.create_revision

    def conclude(self, id: str, revision: int) -> list[End]:
        """Bring an instance's epochs and addresses up to what is stored; which epochs ended with that."""
        instance = self.instances[id]
        before, instance.epochs = instance.epochs, _live_epochs(instance, self.brought_back_of(id))
        if not instance.info_key_exists and not instance.endpoints:
            instance.info = None
        self._index_addresses(id, instance)
        lost = [
            End(dp_rank, epoch, revision, instance.ended_for_good or dp_rank in instance.withdrawn)
            for dp_rank, epoch in before.items()
            if instance.epochs.get(dp_rank) != epoch
        ]
        instance.withdrawn.clear()
        for end in lost:
            self._note_end(id, end)
        return lost

    def drop_if_empty(self, id: str) -> None:
        """Forget an instance of which nothing stands in etcd."""
        instance = self.instances.get(id)
        if instance and not (instance.endpoints or instance.info):
            del self.instances[id]

    def _index_addresses(self, id: str, instance: Instance) -> None:
        addresses = instance.info.addresses if instance.info else ()
        for address in [a for a, ids in self._by_address.items() if id in ids and a not in addresses]:
            self._by_address[address].discard(id)
            if not self._by_address[address]:
                del self._by_address[address]
        for address in addresses:
            self._by_address.setdefault(address, set()).add(id)
        self.has_rivals = any(len(ids) > 1 for ids in self._by_address.values())

    def _note_end(self, id: str, end: End) -> None:
        self._ended[id, end.dp_rank, end.epoch] = end
        if len(self._ended) > ENDED_EPOCHS:
            del self._ended[next(iter(self._ended))]


def _live_epochs(instance: Instance, brought_back: set[Rank]) -> dict[int, int]:
    """The epoch of each DP rank all of whose processes are there: the youngest of their keys.

    One that a restored etcd brought back is dead: of the present history is what a younger key has begun.
    """
    if not instance.info:
        return {}
    youngest: dict[int, RankEndpoint] = {}
    count: dict[int, int] = {}
    for endpoint in instance.endpoints.values():
        if endpoint.incarnation == instance.info.incarnation:
            dp_rank = endpoint.rank.dp
            youngest[dp_rank] = max(youngest.get(dp_rank, endpoint), endpoint, key=lambda one: one.epoch)
            count[dp_rank] = count.get(dp_rank, 0) + 1
    whole = instance.info.topology.endpoints_per_rank
    return {
        dp_rank: one.epoch
        for dp_rank, one in youngest.items()
        if count[dp_rank] >= whole and one.rank not in brought_back
    }


def registered_at(room: KeyValue, value: RoomValue) -> int:
    """The revision of a room's registration, which creates its key; only its failure changes it."""
    return room.create_revision if value.state == FAILED else room.mod_revision
