"""Waits that an earlier agent answered: the next one confirms what they were given, or ends them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..wire.values import FAILED, Assignment
from .cell import Cell
from .notices import Known, Notice, Resolved, Wait, WaitFailed, lost


class KnownWaits:
    """Those answered at a revision to which the cell has yet to come.

    Args:
        cell: what etcd says, which this reads and never changes.
        assign: gives a wait the rank that it was given before.
    """

    def __init__(self, cell: Cell, assign: Callable[[Wait, Assignment], Resolved]) -> None:
        self._cell, self._assign = cell, assign
        self._waits: dict[Wait, Known] = {}

    def __iter__(self) -> Iterator[Wait]:
        return iter(self._waits)

    def add(self, wait: Wait) -> None:
        """A wait that says what it knows."""
        assert wait.known
        self._waits[wait] = wait.known

    def discard(self, wait: Wait) -> None:
        """Forget a wait, if it is one of these."""
        self._waits.pop(wait, None)

    def confirm(self) -> list[Notice]:
        """Confirm or end those that the cell has come to."""
        notices: list[Notice] = []
        for wait, known in [both for both in self._waits.items() if both[1].revision <= self._cell.revision]:
            id = self._find(wait, known)
            lives = known.revision > 0 and self._cell.lives(id, known.dp_rank, known.epoch)
            if lives is not None:
                del self._waits[wait]
                notices.append(self._confirm(wait, id, known, lives))
        return notices

    def _find(self, wait: Wait, known: Known) -> str:
        """Its instance: it names that by the id, though its own key may be missing, or else by an address."""
        id = wait.instance if wait.instance in self._cell.instances else self._cell.find(wait.instance) or wait.instance
        others = (other for address, other in self._cell.rivals(id) if address == wait.instance)
        return next((other for other in others if self._cell.lives(other, known.dp_rank, known.epoch)), id)

    def _confirm(self, wait: Wait, id: str, known: Known, lives: bool) -> Notice:
        if not lives:
            return lost(wait, self._cell.end_of(id, known.dp_rank, known.epoch))
        wait.placed, wait.key = id, self._cell.keys.room(id, wait.room)
        room, value = self._cell.read_room(wait.key)
        if room and value and (value.state, value.dp_rank, value.epoch) == (FAILED, known.dp_rank, known.epoch):
            wait.ended = True
            return WaitFailed(wait, value.reason, room.mod_revision)
        return self._assign(wait, Assignment(id, wait.room, *known, 0, "registry"))
