"""The rank processes behind this agent's sockets: which stand in etcd, and what becomes of them when they leave."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from ..core.book import RoomBook
from ..core.claims import LocalRank
from ..core.view import View
from ..errors import InstanceConflict, ProtocolError
from ..wire import to_client
from .announcer import Announcer
from .connection import EngineConnection
from .lingering import Lingering
from .pushes import Pushes
from .registrar import Registrar

log = logging.getLogger(__name__)


class Ranks:
    """Follows each local rank from its announcement to its end.

    Args:
        view: what etcd is known to hold.
        book: the rooms of local ranks.
        announcer: keeps ranks in etcd.
        registrar: writes rooms.
        pushes: what is sent to engines.
        connections: every engine.
        on_history_lost: called for one whose rank is of another history, before anything else is said of that.

    Attributes:
        lingering: ranks that nobody speaks for at present.
        drained: processes that were here when the node was drained.
    """

    def __init__(
        self,
        view: View,
        book: RoomBook,
        announcer: Announcer,
        registrar: Registrar,
        pushes: Pushes,
        connections: Collection[EngineConnection],
        on_history_lost: Callable[[EngineConnection], None],
    ) -> None:
        self._view, self._book, self._announcer = view, book, announcer
        self._registrar, self._pushes, self._connections = registrar, pushes, connections
        self._on_history_lost = on_history_lost
        self.lingering = Lingering(self._withdraw)
        self.drained: set[str] = set()

    # --- from engines

    def announce(self, engine: EngineConnection, local: LocalRank) -> None:
        """An engine process says which rank it is."""
        if engine.rank:
            raise ProtocolError("one rank per connection")
        engine.speaker = engine.speaker._replace(instance=local.instance, rank=local.rank)
        self._enter(engine, local)
        if engine.speaker.process in self.drained:  # it is back, and its node is drained still
            self.drain(engine)

    def _enter(self, engine: EngineConnection, local: LocalRank) -> None:
        left = self.lingering.take_over(local)
        if left is None or left not in self._announcer.ranks:  # it was refused while nobody spoke for it
            engine.rank = local
            self._announcer.announce(local)
            return
        # another process on behalf of the same engine: nothing has changed but whom to notify
        left.linger, left.leaving = local.linger, False
        engine.rank = left
        if left.draining and engine.speaker.process not in self.drained:  # this process says so itself, if it is to
            self._announcer.resume(left)
        if left.known_epoch and not local.known_epoch:  # its rooms stand, and their end will have to be said
            engine.send(to_client.Announced(left.known_epoch, left.key_epoch, left.incarnation).encode())
        else:
            left.known_epoch = local.known_epoch
        self._send_epoch(engine, left)

    def drain(self, engine: EngineConnection) -> None:
        """The engine's rank takes no new rooms."""
        if engine.rank:
            engine.rank.drained = False  # it asks, perhaps again: it is answered
        if engine.rank and not engine.rank.draining:
            log.info("draining instance=%s rank=%s", engine.rank.instance, engine.rank.name)
            self._announcer.drain(engine.rank)
        self._pushes.send_drained(engine)

    def drain_node(self) -> None:
        """No process that is here takes new rooms, nor does it when it connects anew; its end is no death."""
        for engine in self._connections:
            engine.leaving = True
            self.drained.add(engine.speaker.process)
            self.drain(engine)
        for local in self.lingering:
            local.leaving = True
            self.drained.add(local.process)
            self._announcer.drain(local)

    def leave(self, engine: EngineConnection) -> None:
        """The engine is gone."""
        if engine.rank and engine.rank.linger:
            log.info("lingering instance=%s rank=%s", engine.rank.instance, engine.rank.name)
            engine.rank.process = engine.speaker.process
            self.lingering.add(engine.rank)
        elif engine.rank:
            self._withdraw(engine.rank)

    def _withdraw(self, local: LocalRank) -> None:
        self._announcer.withdraw(local)
        self._ended(local)

    def _ended(self, local: LocalRank) -> None:
        """A rank process left, or was never let in: what that means for the rooms of its DP rank."""
        siblings = any(other.ref == local.ref for other in self._announcer.ranks)
        if local.key_epoch or not siblings:  # one that never stood has ended nothing for others of the same rank
            self._pushes.deliver(self._book.end_rank(local.ref, gone=not siblings))

    # --- from etcd

    def refused(self, local: LocalRank, error: InstanceConflict) -> None:
        """Somebody else has the instance's name."""
        for engine in self._connections:
            if engine.rank is local:
                engine.rank = None
                engine.send(to_client.Refused(error.instance, error.holder).encode())
        self._ended(local)

    def instances_changed(self, ids: list[str]) -> None:
        """Notify of these instances whoever knows them, and their ranks of their epochs."""
        for id in ids:
            self._announcer.instance_changed(id)
            for local in self.lingering.of(id):
                self._send_epoch(None, local)
            for engine in self._connections:
                names = {name for name in engine.followed if self._view.find(name) == id}
                if names:
                    engine.known.setdefault(id, set()).update(names)
                if id in engine.known:
                    self._pushes.send_instance(engine, id)
                if engine.rank and engine.rank.instance == id:
                    self._send_epoch(engine, engine.rank)
        self._registrar.kick()

    def repeat_epoch(self, engine: EngineConnection) -> None:
        """Who was notified of another history takes its rank's epoch for one of that before, also where it is not."""
        local = engine.rank
        if local and local.known_epoch and local.key_epoch and not (local.seen or local.renounced):
            engine.send(to_client.Announced(local.known_epoch, local.key_epoch, local.incarnation).encode())

    def _send_epoch(self, engine: EngineConnection | None, local: LocalRank) -> None:
        """Notify a rank when its epoch ended or began, as the view shows it; None while nobody speaks for it."""
        if not local.lease_id or not self._view.revision:
            return
        instance = self._view.instances.get(local.instance)
        own = instance.endpoints.get(local.rank) if instance else None
        stands = own is not None and own.epoch == local.key_epoch
        epoch = self._view.epoch(*local.ref) if stands else 0
        if not stands and self._view.revision < local.key_epoch:
            return  # the view has not come as far as our own write
        if engine and local.renounced:
            self._on_history_lost(engine)
        if local.known_epoch and (local.known_epoch != epoch or local.renounced):
            present = self._view.epoch(*local.ref)  # a sibling may have notified of it before, and have rooms
            living = 0 if present == local.known_epoch else present
            self._pushes.deliver(self._book.end_rank(local.ref, gone=False, living=living))
            if engine:
                withdrawn = self._view.end_of(*local.ref, local.known_epoch).withdrawn
                reason = "the rank was withdrawn" if withdrawn else "the rank's key vanished from etcd"
                engine.send(to_client.RankEnded(local.known_epoch, reason, withdrawn).encode())
            log.warning("epoch ended instance=%s rank=%s epoch=%d", local.instance, local.name, local.known_epoch)
            local.known_epoch = 0
        local.renounced = False
        if epoch and local.known_epoch != epoch:
            local.known_epoch = epoch
            if engine:
                engine.send(to_client.Announced(epoch, local.key_epoch, local.incarnation).encode())
