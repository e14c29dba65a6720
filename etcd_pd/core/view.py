"""The view: etcd's events in revision order in, notices for those who wait out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .cell import Cell
from .keys import AgentKey, Keys
from .notices import AgentSpoke, InstanceChanged, Notice
from .records import Event, KeyValue
from .waits import Waits


class View(Cell):
    """The cell as etcd describes it, and the waits that this answers or ends."""

    def __init__(self, keys: Keys) -> None:
        super().__init__(keys)
        self._room_prefix = keys.rooms()
        self.waits = Waits(self)

    def apply(self, revision: int, events: Sequence[Event]) -> list[Notice]:
        """Apply the events of complete revisions, in order."""
        notices: list[Notice] = []
        for event in events:
            if event.key.startswith(self._room_prefix):
                notices.extend(self._apply_room(event.key, event.kv))
                continue
            key = self.store(event)
            if isinstance(key, AgentKey):
                notices.append(AgentSpoke(key.agent))
            elif key is not None:
                notices.extend(self._refresh([key.instance], event.mod_revision))
        self.revision = revision
        return notices + self.waits.confirm()

    def relist(self, revision: int, kvs: Sequence[KeyValue]) -> list[Notice]:
        """Replace everything by a list at this revision.

        All is stored, and all concluded, before anybody is notified: half a list describes a state that never was.
        """
        notices = list(self._refresh(self.replace(revision, kvs), revision))
        notices.extend(self.waits.read_all())
        self.revision = revision
        return notices + self.waits.confirm()

    def void(self, revision: int) -> list[Notice]:
        """etcd has another history: nothing of what was known holds, and every wait that it answered is lost.

        Epochs of another history are other numbers only by luck, so the next list must not be compared with this.
        Waits that were not answered go on: their rooms may yet be registered in the new history. A rank whose key is
        found there just as it was is dead, as waits were notified, until its own process writes the key again.
        """
        ranks = self.doubtful_ranks()
        answered, unanswered = self.waits.disown_unconfirmed(revision), self.waits.take_unanswered()
        self.rooms.clear()
        self.forget_sessions()
        notices = self.apply(revision, [Event(key, revision, None) for key in list(self.instance_keys())])
        self.waits.unplace(unanswered)
        self.bring_back(ranks)
        return notices + answered

    def _apply_room(self, key: bytes, kv: KeyValue | None) -> Sequence[Notice]:
        if kv is None:
            self.rooms.pop(key, None)
            return ()
        self.rooms[key] = kv
        return self.waits.read_room(key, kv)

    def _refresh(self, ids: Sequence[str], revision: int) -> Iterator[Notice]:
        """Instances or their ranks were written or deleted: say what that changes for those who wait."""
        lost = [(id, self.conclude(id, revision)) for id in ids]
        for id, ends in lost:
            yield InstanceChanged(id)
            for end in ends:
                yield from self.waits.lose(id, end)
        for id in ids:
            instance = self.instances[id]
            if instance.ended_for_good or not instance.info:
                yield from self.waits.leave(id, revision, ended=instance.ended_for_good)
            instance.ended_for_good = False
            self.drop_if_empty(id)
        for id in ids:
            joining = self.instances.get(id)
            if joining and joining.info:
                yield from self.waits.join(id, joining)
        yield from self.waits.place(revision)
