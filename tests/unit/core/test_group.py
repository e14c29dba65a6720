"""Rule 11 without I/O: views that began to wait at different times, or lost changes and listed anew, agree on what was
admitted and what had failed at every revision that none of them calls too old."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import hypothesis.strategies as st
from hypothesis import given, settings

from etcd_pd.core.notices import Notice, Resolved, Wait, WaitFailed, WaitLost
from etcd_pd.wire.values import FAILED

from .test_view import Cell

RANKS, ROOMS = 3, range(8)


class Member:
    """A rank of a decode group: a view of the same etcd, and what a client would make of its notices."""

    def __init__(self, cell: Cell) -> None:
        self.cell = Cell()
        self.cell.etcd = cell.etcd
        self.cell.relist()
        self.arrived: dict[int, int] = {}
        self.ended: dict[int, tuple[int, str]] = {}

    def want(self, room: int) -> None:
        self.hear(self.cell.view.waits.want(Wait(object(), room, "p", room)))

    def hear(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            if isinstance(notice, Resolved):
                self.arrived[notice.wait.room] = notice.assignment.revision
            elif isinstance(notice, (WaitFailed, WaitLost)):
                self.ended[notice.wait.room] = (notice.revision, str(notice[1:3]))
                if notice.arrived:
                    self.arrived.setdefault(notice.wait.room, notice.arrived.revision)
                self.cell.view.waits.forget(notice.wait)

    def at(self, revision: int) -> dict[int, str]:
        """What it has admitted or failed at a revision."""
        found = {room: "admitted" for room, arrived in self.arrived.items() if arrived <= revision}
        return found | {room: why for room, (ended, why) in self.ended.items() if ended <= revision}


def happen(cell: Cell, epochs: dict[int, int], random: Random, left: list[int]) -> None:
    """One thing happens on the prefill side."""
    dp, what = random.randrange(RANKS), random.choice(["register", "register", "fail", "die"])
    if what == "die":
        if epochs.pop(dp, 0):
            cell.delete(*[key for key in cell.etcd.keys if f"/ranks/{dp}.".encode() in key])
        else:
            epochs[dp] = cell.rank(dp)
    elif dp in epochs and left:
        room = left.pop()
        cell.room(room, dp, epochs[dp])
        if what == "fail":
            cell.room(room, dp, epochs[dp], state=FAILED, reason="a fault")


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_members_agree_at_every_revision_from_their_floors_on(seed: int) -> None:
    random = Random(seed)
    cell = Cell()
    cell.instance()
    epochs = {dp: cell.rank(dp) for dp in range(RANKS)}
    steady, late, gappy = (Member(cell) for _ in range(3))
    for room in ROOMS:
        steady.want(room)
        gappy.want(room)
    left, unwanted = list(ROOMS), list(ROOMS)
    for _ in range(40):
        happen(cell, epochs, random, left)
        steady.hear(steady.cell.follow())
        if random.random() < 0.5:
            late.hear(late.cell.follow())
        if unwanted and random.random() < 0.3:
            late.want(unwanted.pop())
        if random.random() < 0.3:
            gappy.hear(gappy.cell.relist() if random.random() < 0.4 else gappy.cell.follow())
    for member in (late, gappy):
        member.hear(member.cell.follow())
    for room in unwanted:
        late.want(room)
    floor = max(member.cell.view.floor for member in (steady, late, gappy))
    for revision in range(floor, cell.etcd.revision + 1):
        assert late.at(revision) == steady.at(revision)
        assert gappy.at(revision) == steady.at(revision)
