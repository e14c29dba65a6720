"""To engines: what they asked for, as the view shows it and as etcd answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from ..core.batch import Durable, Outcome, Registered, Rejected
from ..core.book import RoomBook
from ..core.notices import AgentSpoke, InstanceChanged, Notice, Resolved, Wait, WaitFailed, WaitLost, collapse
from ..core.view import View
from ..core.watch import WatchState
from ..errors import AgentBusy, ProtocolError, RankLost, RoomConflict
from ..wire import messages, to_client
from ..wire.values import Assignment
from .connection import EngineConnection, Speaker
from .incidents import Incidents
from .stats import Stats

log = logging.getLogger(__name__)

_SOURCE = {name: number for number, name in enumerate(messages.SOURCES)}
_VIEW = {WatchState.SYNCED: 0, WatchState.STALE: 1, WatchState.CLOSED: 2}


class Pushes:
    """Turns notices and outcomes into packets for the engines that they concern.

    Args:
        view: what etcd is known to hold.
        book: the rooms of local ranks.
        connections: every engine.
        state: what a reader of the view may assume at present, and of which cluster.
        on_instances: called with the ids of changed instances before anything is said that refers to them.
        stats: what is counted.

    Attributes:
        incidents: logs rooms that went wrong.
    """

    def __init__(
        self,
        view: View,
        book: RoomBook,
        connections: Collection[EngineConnection],
        state: Callable[[], tuple[WatchState, int]],
        on_instances: Callable[[list[str]], None],
        stats: Stats,
    ) -> None:
        self._view, self._book, self._connections = view, book, connections
        self._state, self._on_instances, self._stats = state, on_instances, stats
        self.incidents = Incidents()
        self._answers: list[Notice] = []  # to wants, and not sent yet
        self._asked: dict[EngineConnection, None] = {}

    # --- of the view

    def answer(self, engine: EngineConnection, notices: Iterable[Notice]) -> None:
        """Push what a want has brought, once for all wants that are read together.

        That there is no answer yet is one: the engine's revision holds for the want.
        """
        self._answers.extend(notices)
        if not self._asked:
            asyncio.get_running_loop().call_soon(self._answer_all)
        self._asked[engine] = None

    def flush(self) -> None:
        """Push what answer() holds back: nothing that is said next may overtake it."""
        if self._asked:
            self._answer_all()

    def _answer_all(self) -> None:
        asked, self._asked = self._asked, {}
        notified = self.notify((), self._view.revision)
        for engine in asked:
            if engine not in notified:
                self.send_view(engine)

    def notify(self, fresh: Iterable[Notice], before: int) -> Collection[EngineConnection]:
        """Push what a change of the view from revision ``before`` means: instances first, as answers refer to them.

        An engine gets the new revision with the last that it brings, so that its own revision is never ahead of
        its answers. Returns the engines that were notified.
        """
        notices = collapse([*self._answers, *fresh])
        self._answers.clear()
        if not notices:
            return ()
        resolved = [notice for notice in notices if isinstance(notice, Resolved)]
        others = [notice for notice in notices if not isinstance(notice, Resolved)]
        changed = list(dict.fromkeys(notice.id for notice in others if isinstance(notice, InstanceChanged)))
        if changed:
            self._on_instances(changed)
        answers: dict[EngineConnection, list[messages.ResolvedWant]] = {}
        for notice in resolved:
            answers.setdefault(_engine(notice.wait), []).append(self._resolved(notice))
        now = time.monotonic()
        self._stats.resolve_seconds.observe_each([now - notice.wait.asked_at for notice in resolved])
        ended = [notice for notice in others if isinstance(notice, (WaitFailed, WaitLost))]
        more = dict.fromkeys(_engine(notice.wait) for notice in ended)
        if any(isinstance(notice, AgentSpoke) for notice in others):
            more |= dict.fromkeys(self._connections)
        more |= dict.fromkeys(e for e, wants in answers.items() if len(wants) > messages.RESOLVED_PER_PACKET)
        for engine, wants in answers.items():
            at = self._view_at(engine, before if engine in more else self._view.revision)
            engine.push(messages.encode_resolved(at, wants))
        for end in ended:
            self._end(end)
        for engine in more:
            self.send_view(engine)
        return more | dict.fromkeys(answers)

    def _resolved(self, notice: Resolved) -> messages.ResolvedWant:
        found = notice.assignment
        self._stats.resolved += 1
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "resolved room=%d instance=%s dp_rank=%d revision=%d",
                found.room,
                found.instance,
                found.dp_rank,
                found.revision,
            )
        return messages.ResolvedWant(notice.wait.id, *self._answer(notice.wait, found))

    def _answer(self, wait: Wait, found: Assignment) -> messages.Answer:
        """An assignment as it is sent to who waits for it."""
        number = self._introduce(wait, found)
        return messages.Answer(
            found.dp_rank, found.epoch, found.revision, found.lease_id, _SOURCE[found.source], number
        )

    def _introduce(self, wait: Wait, found: Assignment) -> int:
        """Let the engine know the instance that it called by some name; its number."""
        engine = _engine(wait)
        names = engine.known.setdefault(found.instance, set())
        if wait.instance not in names:
            names.add(wait.instance)
            self.send_instance(engine, found.instance)
        return engine.numbers.get(found.instance, 0)

    def _end(self, notice: WaitFailed | WaitLost) -> None:
        wait = notice.wait
        arrived = self._answer(wait, notice.arrived) if notice.arrived else None
        if isinstance(notice, WaitFailed):
            ended = to_client.Ended(wait.id, "RoomFailed", notice.revision, notice.reason, arrived=arrived)
        else:
            rank = (notice.dp_rank, notice.epoch, arrived, notice.withdrawn)
            ended = to_client.Ended(wait.id, "PrefillLost", notice.revision, "", *rank)
        self._end_with(wait, ended)

    def end_wait(self, wait: Wait, error: str) -> None:
        """End a wait with an error of this name, which this agent's clock decided, not a revision of etcd."""
        self._end_with(wait, to_client.Ended(wait.id, error))

    def _end_with(self, wait: Wait, ended: to_client.Ended) -> None:
        engine = _engine(wait)
        self._view.waits.forget(wait)
        engine.wants.pop(wait.id, None)
        self._stats.ended[ended.error] += 1
        dp_rank = ended.dp_rank if ended.dp_rank >= 0 else None
        self.incidents.note(ended.error, wait.room, wait.instance, dp_rank, ended.reason)
        engine.push([ended.encode()])

    def send_view(self, engine: EngineConnection) -> None:
        """Say how far the view is, and what may be assumed of it."""
        self.flush()
        engine.push([messages.encode_view(self._view_at(engine, self._view.revision))])

    def _view_at(self, engine: EngineConnection, revision: int) -> messages.ViewAt:
        state, cluster_id = self._state()
        return messages.ViewAt(revision, _VIEW[state], engine.last_want, self._view.floor, engine.round, cluster_id)

    def send_instance(self, engine: EngineConnection, id: str) -> None:
        """Describe an instance, or say that there is none; under the names that mean no other one."""
        found = self._view.instance(id)
        meant = {name: self._view.find(name) for name in sorted(engine.known.get(id, set()) | {id})}
        names = tuple(name for name, now in meant.items() if now in (None, id))
        number = engine.numbers.get(id) or len(engine.numbers) + 1
        try:
            engine.send(to_client.Instance.describe(id, number, names, found).encode())
            engine.numbers[id] = number
        except (ProtocolError, ValueError) as exc:  # a thousand processes, or somebody else's idea of an instance
            log.error("instance=%s cannot be described to %r: %s", id, engine, exc)
        for name, now in meant.items():
            if now not in (None, id):  # another one has claimed the address meanwhile
                engine.known.get(id, set()).discard(name)
                engine.known.setdefault(now, set()).add(name)
                self.send_instance(engine, now)

    # --- of registrations

    def deliver(self, outcomes: list[Outcome]) -> None:
        """Notify engines of what became of their rooms, and those that drain when the last one has ended."""
        registered: dict[EngineConnection, list[tuple[int, int, int, int, int]]] = {}
        ended: dict[EngineConnection, None] = {}
        engines = {engine.speaker.process: engine for engine in self._connections}
        for outcome in outcomes:
            speaker = outcome.owner
            assert isinstance(speaker, Speaker)
            engine = engines.get(speaker.process)
            if engine and speaker.rank and not engine.speaker.rank:
                engine = None  # who has not announced itself on its connection says it again, as who has none
            if isinstance(outcome, Rejected):
                self._reject(speaker, engine, outcome)
            elif engine and isinstance(outcome, Registered):
                registered.setdefault(engine, []).append(outcome[1:])
            elif engine and isinstance(outcome, Durable):
                engine.undurable.pop(outcome.sequence, None)
                ended[engine] = None
        for engine, rooms in registered.items():
            self._stats.registered += len(rooms)
            engine.push(messages.encode_registered(rooms))
        for engine in ended:
            engine.push([messages.encode_durable(engine.durable)])
        for engine in [e for e in self._connections if e.rank and e.rank.draining]:
            self.send_drained(engine)

    def _reject(self, speaker: Speaker, engine: EngineConnection | None, outcome: Rejected) -> None:
        kind = type(outcome.error).__name__
        self._stats.rejected[kind] += 1
        dp_rank = speaker.rank.dp if speaker.rank else None
        self.incidents.note(kind, outcome.room, speaker.instance, dp_rank, str(outcome.error))
        if engine:
            engine.push([_rejection(outcome)])

    def send_drained(self, engine: EngineConnection) -> None:
        """Say that the engine's rank has no rooms left, once that is so."""
        if engine.rank and not self._book.count(engine.rank.ref) and not engine.rank.drained:
            engine.rank.drained = True
            engine.send(messages.DRAINED)


def _engine(wait: Wait) -> EngineConnection:
    """The engine that waits."""
    assert isinstance(wait.owner, EngineConnection)
    return wait.owner


def _rejection(outcome: Rejected) -> bytes:
    error = outcome.error
    facts: dict[str, Any] = {}
    if isinstance(error, RoomConflict):
        facts = {"holder": error.holder, "owned": error.room}
    elif isinstance(error, RankLost):
        facts = {"epoch": error.epoch}
    elif isinstance(error, AgentBusy):
        facts = {"limit": error.limit}
    return to_client.Rejected(outcome.room, outcome.sequence, type(error).__name__, str(error), **facts).encode()
