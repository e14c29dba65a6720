"""The key layout, version 1: what is written can be read, and nothing else is taken for it."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from etcd_pd.core.keys import AgentKey, DecodeKey, Keys, ParsedKey, PrefillKey, RankKey, RoomKey, prefix_end
from etcd_pd.wire.limits import MAX_NAME, MAX_PARALLEL, MAX_ROOM, check_name
from etcd_pd.wire.values import Rank

KEYS = Keys("/etcd_pd/default")


def is_name(text: str) -> bool:
    try:
        return bool(check_name("name", text))
    except ValueError:
        return False


names = st.text(min_size=1, max_size=MAX_NAME).filter(is_name)
indices = st.integers(0, MAX_PARALLEL - 1)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (KEYS.prefill("p-0"), "/etcd_pd/default/v1/prefill/p-0"),
        (KEYS.rank("p-0", Rank(3, 0, 1, 2)), "/etcd_pd/default/v1/prefill/p-0/ranks/3.0.1.2"),
        (KEYS.room("p-0", 77), "/etcd_pd/default/v1/rooms/p-0/77"),
        (KEYS.rooms("p-0"), "/etcd_pd/default/v1/rooms/p-0/"),
        (KEYS.rooms(), "/etcd_pd/default/v1/rooms/"),
        (KEYS.decode("d-0"), "/etcd_pd/default/v1/decode/d-0"),
        (KEYS.agent("a-0"), "/etcd_pd/default/v1/agents/a-0"),
        (KEYS.prefix, "/etcd_pd/default/v1/"),
    ],
)
def test_keys_are_spelled_as_the_layout_says(key: bytes, text: str) -> None:
    assert key == text.encode()


@given(names, st.integers(0, MAX_ROOM), st.builds(Rank, indices, indices, indices, indices))
def test_every_key_is_read_back_as_what_it_was_made_of(name: str, room: int, rank: Rank) -> None:
    made: dict[bytes, ParsedKey] = {
        KEYS.prefill(name): PrefillKey(name),
        KEYS.rank(name, rank): RankKey(name, rank),
        KEYS.room(name, room): RoomKey(name, room),
        KEYS.decode(name): DecodeKey(name),
        KEYS.agent(name): AgentKey(name),
    }
    assert {key: KEYS.parse(key) for key in made} == made


@given(st.binary(max_size=60) | st.from_regex(rb"(rooms|prefill|decode|agents|ranks|[0-9./+-]){1,8}"))
def test_what_is_read_is_spelled_the_same_again(tail: bytes) -> None:
    key = KEYS.prefix + tail
    parsed = KEYS.parse(key)
    spelled = {
        PrefillKey: lambda k: KEYS.prefill(*k),
        RankKey: lambda k: KEYS.rank(*k),
        RoomKey: lambda k: KEYS.room(*k),
        DecodeKey: lambda k: KEYS.decode(*k),
        AgentKey: lambda k: KEYS.agent(*k),
    }
    if parsed is not None:
        assert spelled[type(parsed)](parsed) == key


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"/other/v1/prefill/p",
        b"/etcd_pd/default/v2/prefill/p",
        b"/etcd_pd/default/v1/",
        b"/etcd_pd/default/v1/prefill",
        b"/etcd_pd/default/v1/prefill/",
        b"/etcd_pd/default/v1/prefill/p/",
        b"/etcd_pd/default/v1/prefill/p/ranks",
        b"/etcd_pd/default/v1/prefill/p/ranks/",
        b"/etcd_pd/default/v1/prefill/p/ranks/0.0.0",
        b"/etcd_pd/default/v1/prefill/p/ranks/0.0.0.0.0",
        b"/etcd_pd/default/v1/prefill/p/ranks/0.0.0.00",
        b"/etcd_pd/default/v1/prefill/p/ranks/0.0.0.-1",
        b"/etcd_pd/default/v1/prefill/p/ranks/4096.0.0.0",
        b"/etcd_pd/default/v1/prefill/p/ranks/0.0.0.0/x",
        b"/etcd_pd/default/v1/rooms/p",
        b"/etcd_pd/default/v1/rooms/p/",
        b"/etcd_pd/default/v1/rooms//7",
        b"/etcd_pd/default/v1/rooms/p/07",
        b"/etcd_pd/default/v1/rooms/p/+7",
        b"/etcd_pd/default/v1/rooms/p/-7",
        b"/etcd_pd/default/v1/rooms/p/7 ",
        b"/etcd_pd/default/v1/rooms/p/0x7",
        b"/etcd_pd/default/v1/rooms/p/\xd9\xa7",  # an Arabic seven
        b"/etcd_pd/default/v1/rooms/p/18446744073709551616",
        b"/etcd_pd/default/v1/rooms/p/" + b"9" * 10_000,
        b"/etcd_pd/default/v1/rooms/\xff/7",
        b"/etcd_pd/default/v1/unknown/p",
        b"/etcd_pd/default/v1/agents/a/b",
    ],
    ids=range(29),
)
def test_a_key_of_another_layout_means_nothing(key: bytes) -> None:
    assert KEYS.parse(key) is None


@given(st.binary(min_size=1, max_size=8), st.binary(max_size=4))
def test_a_prefix_range_holds_what_starts_with_it_and_nothing_else(prefix: bytes, tail: bytes) -> None:
    end = prefix_end(prefix)
    assert end == b"\0" or prefix <= prefix + tail < end
    if end != b"\0":
        assert not end.startswith(prefix)


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a/", b"a0"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"), (b"\xff", b"\0")]
)
def test_the_end_of_a_prefix_is_etcd_s(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


@given(st.sampled_from(["p", "rooms", "zz", "~"]), st.integers(0, MAX_ROOM))
def test_all_that_is_no_room_sorts_before_the_rooms(name: str, room: int) -> None:
    others = [KEYS.prefill(name), KEYS.rank(name, Rank(3)), KEYS.decode(name), KEYS.agent(name)]
    assert all(KEYS.prefix <= key < KEYS.rooms() <= KEYS.room(name, room) for key in others)


def test_one_instance_s_rooms_are_not_those_of_a_longer_name() -> None:
    assert not KEYS.room("p-10", 1).startswith(KEYS.rooms("p-1"))
