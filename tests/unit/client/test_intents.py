"""What a rank said of its rooms is kept until it is answered, and said again in its order."""

from __future__ import annotations

from etcd_pd.client.intents import Held, Intents
from etcd_pd.wire import messages


class Line:
    """A socket that may be full."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.full = False

    def send(self, packet: bytes) -> bool:
        if not self.full:
            self.said.append(packet)
        return not self.full


def asked(intents: Intents, room: int) -> int:
    number = intents.number()
    intents.asked[room] = number
    return number


def held(intents: Intents, room: int) -> None:
    assert intents.answer(room, asked(intents, room))
    intents.held[room] = Held(100 + room, 7, 42)


def kinds(intents: Intents, *, to_another: bool) -> bytes:
    return b"".join(packet[:1] for packet in intents.say_again(to_another=to_another))


def test_a_release_is_kept_until_it_is_durable() -> None:
    line = Line()
    intents = Intents(line.send)
    for room in (1, 2):
        held(intents, room)
        intents.end(room, None, connected=True)
    assert [packet[:1] for packet in line.said] == [b"L", b"L"]
    assert kinds(intents, to_another=True) == b"OLL"
    intents.settle(3)
    assert kinds(intents, to_another=True) == b"OL"
    intents.settle(4)
    assert kinds(intents, to_another=True) == b""


def test_a_release_before_the_answer_is_said_with_its_registration_when_the_agent_is_another() -> None:
    intents = Intents(Line().send)
    asked(intents, 1)
    intents.end(1, None, connected=True)
    assert kinds(intents, to_another=True) == b"RL", "else it would not know what may be in etcd"
    assert kinds(intents, to_another=False) == b"L"
    assert not intents.answer(1, 1), "nobody waits for that any more"


def test_a_failure_comes_after_its_registration_when_both_are_said_again() -> None:
    intents = Intents(Line().send)
    asked(intents, 1)
    intents.end(1, "why", connected=True)
    asked(intents, 2)
    assert kinds(intents, to_another=True) == b"RFR"
    assert not intents.answer(1, 1), "nobody waits for that any more"


def test_the_answer_to_an_earlier_life_is_not_taken_for_the_next_one_s_when_a_room_is_registered_again() -> None:
    intents = Intents(Line().send)
    first = asked(intents, 1)
    intents.end(1, None, connected=True)
    second = asked(intents, 1)
    assert not intents.answer(1, first)
    assert intents.answer(1, second)


def test_what_finds_the_queue_full_is_said_later_and_in_order() -> None:
    line = Line()
    intents = Intents(line.send)
    line.full = True
    intents.end(1, None, connected=True)
    line.full = False
    intents.end(2, None, connected=True)
    assert line.said == [], "nothing overtakes"
    assert intents.say_unsaid()
    assert [messages.decode_rooms(packet) for packet in line.said] == [[(1, 1)], [(2, 2)]]


def test_what_was_written_under_an_epoch_ends_with_it_and_the_rest_stays() -> None:
    intents = Intents(Line().send)
    held(intents, 1)
    intents.end(1, None, connected=True)
    held(intents, 2)
    intents.end(3, "never registered", connected=True)
    intents.end_epoch()
    assert kinds(intents, to_another=True) == b"F"


def test_a_lot_is_said_again_without_a_room_that_was_asked_for_anew_with_another() -> None:
    intents = Intents(Line().send)
    intents.ask_lot({8: intents.number(), 7: intents.number()})
    intents.end(7, None, connected=True)
    intents.ask_lot({7: intents.number(), 9: intents.number()})
    said = [(packet[:1], list(messages.decode_rooms(packet))) for packet in intents.say_again(to_another=True)]
    numbers = [number for _, rooms in said for _, number in rooms]
    assert numbers == sorted(numbers), "an ending with a lower number than what was said before is taken as repeated"
    assert said == [
        (messages.REGISTER_LOT, [(8, 1)]),
        (messages.REGISTER, [(7, 2)]),
        (messages.RELEASE, [(7, 3)]),
        (messages.REGISTER_LOT, [(7, 4), (9, 5)]),
    ]
