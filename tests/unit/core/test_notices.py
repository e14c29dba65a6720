"""What a batch of events says to those who wait, once all of it is known."""

from __future__ import annotations

from etcd_pd.core.notices import InstanceChanged, Notice, Resolved, Wait, WaitFailed, WaitLost, collapse
from etcd_pd.wire.values import Assignment

FOUND = Assignment("p", 7, 0, 5, 9, 77, "registry")


def wait(*, ended: bool) -> Wait:
    one = Wait(object(), 1, "p", 7)
    one.ended = ended
    return one


def test_an_answer_is_left_out_when_its_rank_died_in_the_same_batch() -> None:
    one = wait(ended=True)
    lost = WaitLost(one, 0, 5, 12)
    assert collapse([Resolved(one, FOUND), InstanceChanged("p"), lost]) == [
        InstanceChanged("p"),
        lost._replace(arrived=FOUND),
    ]


def test_an_answer_is_left_out_when_its_room_was_failed_in_the_same_batch() -> None:
    one = wait(ended=True)
    failed = WaitFailed(one, "why", 12)
    assert collapse([Resolved(one, FOUND), failed]) == [failed._replace(arrived=FOUND)]


def test_an_answer_is_left_out_when_nobody_waits_any_more() -> None:
    assert collapse([Resolved(wait(ended=True), FOUND)]) == []


def test_nothing_is_left_out_when_answers_stand() -> None:
    notices: list[Notice] = [Resolved(wait(ended=False), FOUND), WaitLost(wait(ended=True), 0, 5, 12)]
    assert collapse(notices) is notices
