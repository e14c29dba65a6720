"""The states of a room: what is begun next, in every state and for all that may be wanted."""

from __future__ import annotations

import itertools

import pytest

from etcd_pd.core.own_room import NEXT, OVER, OwnRoom, RankRef, State
from etcd_pd.wire.values import ASSIGNED, FAILED, RoomValue

from .test_book import RANK, Desk

UNDER_WAY = (State.CREATING, State.EVICTING, State.FAILING, State.RELEASING)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize("state", (*UNDER_WAY, State.RELEASED, State.DROPPED))
def test_nothing_else_is_begun_when_something_is_under_way_or_the_room_is_gone(state: State) -> None:
    assert not [
        (fails, goes) for fails, goes in itertools.product((False, True), repeat=2) if (state, fails, goes) in NEXT
    ]


def test_a_room_rests_when_nothing_is_wanted_of_it() -> None:
    assert (State.HELD, False, False) not in NEXT
    assert (State.FAILED, True, False) not in NEXT


def test_what_is_begun_is_a_write() -> None:
    assert {after for after in NEXT.values()} <= set(UNDER_WAY)
    assert not {state for state, *_ in NEXT} & set(UNDER_WAY)


def test_every_room_ends_over_when_it_was_failed_or_released() -> None:
    done = {State.FAILING: State.FAILED, State.RELEASING: State.RELEASED}
    for fails, goes in ((True, False), (False, True), (True, True)):
        state = State.HELD
        while (state, fails, goes) in NEXT:
            state = done[NEXT[state, fails, goes]]
        assert state is (State.RELEASED if goes else State.FAILED)
        assert state in OVER


def test_a_failure_is_written_first_when_the_room_is_failed_and_released_at_once(desk: Desk) -> None:
    desk.book.register("e", RANK, 7, 0.0)
    batch, bucket = desk.take()
    desk.book.fail(RANK, 7, "why", 0.0)
    desk.book.release(RANK, 7)
    desk.write(batch, bucket)
    desk.write(*desk.take())
    assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch, FAILED, "why")
    assert desk.book.durable == []
    desk.work()
    assert desk.value(7) is None
    assert len(desk.book.durable) == 2


def test_a_room_is_written_once_when_it_was_failed_in_the_queue(desk: Desk) -> None:
    desk.book.register("e", RANK, 7, 0.0)
    desk.book.fail(RANK, 7, "why", 0.0)
    before = desk.etcd.revision
    desk.work()
    assert desk.etcd.revision == before + 1
    assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch, FAILED, "why")


def test_a_room_is_failed_again_when_the_failure_came_after_it_was_sent(desk: Desk) -> None:
    desk.book.register("e", RANK, 7, 0.0)
    batch, bucket = desk.take()
    operations = batch.operations(bucket)
    desk.book.fail(RANK, 7, "why", 0.0)
    assert batch.operations(bucket) == operations, "what is in flight does not change"
    desk.write(batch, bucket)
    value = desk.value(7)
    assert value and value.state == ASSIGNED
    desk.work()
    assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch, FAILED, "why")


def test_a_failure_is_not_written_when_the_room_was_released_before(desk: Desk) -> None:
    desk.book.register("e", RANK, 7, 0.0)
    batch, bucket = desk.take()
    desk.book.release(RANK, 7)
    desk.book.fail(RANK, 7, "why", 0.0)
    desk.write(batch, bucket)
    desk.work()
    assert desk.value(7) is None
    assert [event.kv for event in desk.etcd.history if event.key.endswith(b"/7")][1:] == [None]


def test_a_room_is_one_of_its_own_when_it_is_not_in_a_lot() -> None:
    own = OwnRoom(RankRef("p", 0), 7, b"k", 0.0)
    assert own.together == [own]
