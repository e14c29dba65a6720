"""Waits that an earlier agent answered: the next one confirms what they were given, or ends them."""

from __future__ import annotations

import pytest

from etcd_pd.core.notices import Known, Notice, Resolved, Wait, WaitFailed, WaitLost
from etcd_pd.wire.values import FAILED

from .test_view import Cell, news


@pytest.fixture
def cell() -> Cell:
    cell = Cell()
    cell.instance()
    return cell


def want(cell: Cell, known: Known, instance: str = "p") -> list[Notice]:
    return news(cell.view.waits.want(Wait(object(), 1, instance, 5, None, known)))


@pytest.mark.parametrize("instance", ["p", "host:8998"])
def test_it_is_confirmed_when_its_epoch_lives(cell: Cell, instance: str) -> None:
    epoch = cell.rank(2)
    cell.relist()
    [notice] = want(cell, Known(2, epoch, epoch), instance)
    assert isinstance(notice, Resolved)
    assert (notice.assignment.instance, notice.assignment.dp_rank, notice.assignment.epoch) == ("p", 2, epoch)
    cell.delete(b"/cell/v1/prefill/p/ranks/2.0.0.0")
    [lost] = cell.follow()
    assert isinstance(lost, WaitLost) and lost.epoch == epoch


def test_it_is_confirmed_when_its_epoch_lives_and_another_instance_has_claimed_its_address(cell: Cell) -> None:
    epoch = cell.rank(2)
    cell.instance("q", incarnation="other")
    cell.rank(2, "q", incarnation="other")
    cell.relist()
    [notice] = want(cell, Known(2, epoch, epoch), "host:8998")
    assert isinstance(notice, Resolved) and notice.assignment.instance == "p"


def test_it_is_lost_when_its_rank_has_another_epoch(cell: Cell) -> None:
    dead = cell.rank(2)
    cell.delete(b"/cell/v1/prefill/p/ranks/2.0.0.0")
    cell.rank(2)
    cell.relist()
    [notice] = want(cell, Known(2, dead, dead))
    assert isinstance(notice, WaitLost) and (notice.dp_rank, notice.epoch) == (2, dead)


def test_it_is_lost_when_another_etcd_has_answered_it_and_an_epoch_of_that_number_lives(cell: Cell) -> None:
    epoch = cell.rank(2)
    cell.relist()
    [notice] = want(cell, Known(2, epoch, 0))
    assert isinstance(notice, WaitLost) and (notice.dp_rank, notice.epoch) == (2, epoch)


def test_it_is_lost_when_its_instance_is_gone(cell: Cell) -> None:
    cell.relist()
    [notice] = want(cell, Known(2, 9, 2), "gone")
    assert isinstance(notice, WaitLost) and notice.epoch == 9


def test_it_is_not_judged_before_the_view_has_come_to_what_it_knows(cell: Cell) -> None:
    assert want(cell, Known(2, 3, 3)) == [], "nothing is known yet"
    cell.relist()
    epoch = cell.rank(2)
    assert epoch == 3
    [notice] = cell.follow()
    assert isinstance(notice, Resolved)


def test_it_fails_when_its_room_was_failed_meanwhile(cell: Cell) -> None:
    epoch = cell.rank(2)
    cell.room(5, 2, epoch, state=FAILED, reason="why")
    cell.relist()
    [notice] = want(cell, Known(2, epoch, epoch))
    assert isinstance(notice, WaitFailed) and notice.reason == "why"


def test_it_is_lost_when_etcd_turns_out_to_have_another_history(cell: Cell) -> None:
    epoch = cell.rank(2)
    cell.relist()
    wait = Wait(object(), 1, "p", 5, None, Known(2, epoch, epoch))
    cell.view.waits.want(wait)
    [notice] = cell.view.waits.disown([wait], cell.view.revision)
    assert isinstance(notice, WaitLost) and notice.epoch == epoch
    assert cell.view.waits.disown([wait], cell.view.revision) == [], "once"


def test_it_is_lost_when_the_view_is_void_before_it_is_judged(cell: Cell) -> None:
    cell.relist()
    assert want(cell, Known(2, 99, 99)) == []
    [notice] = news(cell.view.void(1))
    assert isinstance(notice, WaitLost) and notice.epoch == 99


def test_it_is_not_judged_when_its_rank_stands_and_its_instance_is_about_to_be_written_again(cell: Cell) -> None:
    epoch = cell.rank(2)
    cell.delete(b"/cell/v1/prefill/p")
    cell.relist()
    assert want(cell, Known(2, epoch, epoch)) == []
    cell.instance()
    [notice] = cell.follow()
    assert isinstance(notice, Resolved) and notice.assignment.epoch == epoch


def test_it_is_lost_when_its_rank_goes_while_its_instance_is_missing(cell: Cell) -> None:
    epoch = cell.rank(2)
    cell.delete(b"/cell/v1/prefill/p")
    cell.relist()
    assert want(cell, Known(2, epoch, epoch)) == []
    cell.delete(b"/cell/v1/prefill/p/ranks/2.0.0.0")
    [notice] = cell.follow()
    assert isinstance(notice, WaitLost) and notice.epoch == epoch


def test_nothing_is_called_dead_when_its_rank_stands_and_its_instance_is_missing(cell: Cell) -> None:
    epoch = cell.rank(2)
    cell.delete(b"/cell/v1/prefill/p")
    cell.relist()
    assert cell.view.is_dead("p", 2, epoch) is None
    assert cell.view.is_dead("p", 2, epoch - 1) is True
    assert cell.view.is_dead("p", 1, epoch) is True
    cell.instance()
    cell.follow()
    assert cell.view.is_dead("p", 2, epoch) is False
