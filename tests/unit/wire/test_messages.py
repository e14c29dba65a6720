"""Packets between client and agent: what is encoded is decoded, and anything else is a ProtocolError."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from etcd_pd.errors import ProtocolError
from etcd_pd.wire import messages
from etcd_pd.wire.limits import MAX_ROOM
from etcd_pd.wire.messages import MAX_PACKET, AdoptedRoom, RegisteredRoom, ResolvedWant, ViewAt, WantedRoom

rooms = st.integers(0, MAX_ROOM)
revisions = st.integers(0, 2**63 - 1)
leases = st.integers(-(2**63), 2**63 - 1)
ids = st.integers(0, 2**64 - 1)
views = st.builds(ViewAt, revisions, st.integers(0, 2), ids, revisions, ids, ids)
ranks = st.integers(-1, 4095)
names = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=253)


def test_every_kind_is_another_byte() -> None:
    kinds = [value for name, value in vars(messages).items() if name.isupper() and isinstance(value, bytes)]
    assert len(set(kinds)) == len(kinds)
    assert all(len(kind) == 1 for kind in kinds)


@given(rooms)
def test_rooms(room: int) -> None:
    assert messages.decode_rooms(messages.encode_room(messages.REGISTER, room, 7)) == [(room, 7)]


@given(ids)
def test_durable(sequence: int) -> None:
    assert messages.decode_durable(messages.encode_durable(sequence)) == sequence


@given(ids)
def test_done(id: int) -> None:
    assert messages.decode_done(messages.encode_done(id)) == [id]


@given(ids, rooms, st.integers(-1, 4095), st.floats(0.001, 86_400), names, st.tuples(ranks, revisions, revisions))
def test_want(id: int, room: int, rank: int, seconds: float, instance: str, known: tuple[int, int, int]) -> None:
    want = WantedRoom(id, room, rank, seconds, instance, *known)
    assert messages.decode_want(messages.encode_want(want)) == want


@given(names)
def test_follow(instance: str) -> None:
    assert messages.decode_follow(messages.encode_follow(instance)) == instance


@given(ids)
def test_ping(round: int) -> None:
    assert messages.decode_ping(messages.encode_ping(round)) == round
    assert messages.decode_ping(messages.PING) == 0


@given(views)
def test_view(at: ViewAt) -> None:
    assert messages.decode_view(messages.encode_view(at)) == at


@given(st.lists(st.builds(AdoptedRoom, rooms, revisions, revisions, leases), max_size=5))
def test_adopted(adopted: list[AdoptedRoom]) -> None:
    assert joined(messages.encode_adopted(adopted), messages.decode_adopted) == adopted


@given(st.lists(st.builds(RegisteredRoom, rooms, revisions, leases, revisions, ids), max_size=5))
def test_registered(registered: list[RegisteredRoom]) -> None:
    assert joined(messages.encode_registered(registered), messages.decode_registered) == registered


@given(
    views,
    st.lists(
        st.builds(ResolvedWant, ids, ranks, revisions, revisions, leases, st.integers(0, 3), st.integers(0, 2**32 - 1)),
        max_size=5,
    ),
)
def test_resolved(at: ViewAt, wants: list[ResolvedWant]) -> None:
    packets = list(messages.encode_resolved(at, wants))
    assert all(messages.decode_view(packet) == at for packet in packets)
    assert joined(packets, messages.decode_resolved) == wants


def joined(packets: Iterable[bytes], decode: Callable[[bytes], Iterable[Any]]) -> list[Any]:
    return [item for packet in packets for item in decode(packet)]


def test_more_than_a_packet_holds_becomes_more_packets() -> None:
    many = [RegisteredRoom(room, room, room, room, room) for room in range(10_000)]
    packets = list(messages.encode_registered(many))
    assert len(packets) > 1
    assert max(map(len, packets)) <= MAX_PACKET
    assert joined(packets, messages.decode_registered) == many


@pytest.mark.parametrize("more", [0, 1])
def test_how_many_answers_fit_a_packet(more: int) -> None:
    wants = [ResolvedWant(n, 0, 0, 0, 0, 0) for n in range(messages.RESOLVED_PER_PACKET + more)]
    assert len(list(messages.encode_resolved(ViewAt(1, 0, 1, 0, 0, 0), wants))) == 1 + more


def test_nothing_to_say_is_no_packet() -> None:
    assert list(messages.encode_registered([])) == []


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -float("inf")])
def test_a_want_lasts_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ProtocolError):
        messages.decode_want(messages.encode_want(WantedRoom(1, 1, -1, seconds, "p")))


DECODERS: list[Callable[[bytes], Any]] = [
    messages.decode_rooms,
    messages.decode_done,
    messages.decode_adopted,
    messages.decode_want,
    messages.decode_follow,
    messages.decode_registered,
    messages.decode_view,
    lambda packet: list(messages.decode_resolved(packet)),
]


@given(st.sampled_from(DECODERS), st.binary(min_size=1, max_size=200))
def test_whatever_arrives_is_understood_or_a_protocol_error(decode: Callable[[bytes], Any], packet: bytes) -> None:
    try:
        decode(packet)
    except ProtocolError:
        pass
