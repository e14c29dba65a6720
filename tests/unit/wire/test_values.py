"""The values that travel: checked where they are made, read back from JSON, garbage is None."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from etcd_pd.errors import ConfigError
from etcd_pd.wire.limits import (
    MAX_DEPTH,
    MAX_EXTRA,
    MAX_NAME,
    MAX_PARALLEL,
    MAX_ROOM,
    MAX_TEXT,
    check_name,
    check_room,
    check_text,
)
from etcd_pd.wire.values import ASSIGNED, FAILED, InstanceInfo, PrefillInstance, Rank, RankEndpoint, RoomValue, Topology

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
WORDS = ["dp_rank", "epoch", "state", "reason", "incarnation", "ip", "port", "launch_id", "addresses", "topology"]
lookalikes = st.dictionaries(st.sampled_from([*WORDS, "policy", "fingerprint", "extra"]), json_values)


def info(**changes: Any) -> InstanceInfo:
    given_: dict[str, Any] = {
        "incarnation": "uuid",
        "launch_id": "launch",
        "addresses": ("host:1", "10.0.0.1:1"),
        "topology": Topology(dp=4, tp=2),
        "policy": "round_robin",
        "fingerprint": "model x",
    }
    return InstanceInfo(**(given_ | changes))


class TestChecks:
    @pytest.mark.parametrize("room", [0, 1, MAX_ROOM])
    def test_rooms_have_63_bits(self, room: int) -> None:
        assert check_room(room) == room

    @pytest.mark.parametrize("room", [-1, MAX_ROOM + 1, True, 1.0, "1", None, float("nan"), [1]])
    def test_nothing_else_is_a_room(self, room: object) -> None:
        with pytest.raises(ConfigError, match="2\\^64-1") as caught:
            check_room(room)
        assert caught.value.field == "bootstrap_room"

    @pytest.mark.parametrize("name", ["p-0", "10.0.0.1:8998", "[::1]:8998", "ünïcode", "x" * MAX_NAME])
    def test_names(self, name: str) -> None:
        assert check_name("instance", name) == name

    @pytest.mark.parametrize(
        "name", ["", "a/b", "a b", "a\n", "\0", "a\u200b", "\ud800", "x" * (MAX_NAME + 1), None, 3, b"p"]
    )
    def test_no_names(self, name: object) -> None:
        with pytest.raises(ConfigError) as caught:
            check_name("instance", name)
        assert caught.value.field == "instance"

    def test_texts(self) -> None:
        assert check_text("reason", "ü\n" * (MAX_TEXT // 2))

    @pytest.mark.parametrize("text", ["x" * (MAX_TEXT + 1), None, b"x", "half a character: \ud800"])
    def test_no_texts(self, text: object) -> None:
        with pytest.raises(ConfigError, match="reason"):
            check_text("reason", text)

    @pytest.mark.parametrize("field", ["dp", "cp", "tp", "pp"])
    @pytest.mark.parametrize("size", [0, -1, MAX_PARALLEL + 1, "2", 1.5, True, None])
    def test_sizes_of_a_topology(self, field: str, size: Any) -> None:
        with pytest.raises(ConfigError, match=rf"topology\.{field}"):
            Topology(**{field: size})

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("launch_id", ""),
            ("policy", "a b"),
            ("fingerprint", "x" * (MAX_TEXT + 1)),
            ("addresses", ("host 1",)),
            ("addresses", (3,)),
            ("extra", {"x": "y" * MAX_EXTRA}),
            ("extra", {"x": object()}),
            ("extra", {"x": float("nan")}),
            ("extra", json.loads('{"x":' * 500 + "1" + "}" * 500)),
            ("extra", json.loads('{"x":' + "[" * 800 + "]" * 800 + "}")),
            ("extra", json.loads('{"x":' + "[" * 32 + "]" * 32 + "}")),
            ("extra", []),
        ],
    )
    def test_what_an_instance_says_is_checked(self, field: str, value: object) -> None:
        with pytest.raises(ConfigError, match=field):
            info(**{field: value})

    @pytest.mark.parametrize(("ip", "port"), [("", 1), ("a/b", 1), ("ip", -1), ("ip", 65536), ("ip", "1")])
    def test_endpoints_are_checked(self, ip: str, port: Any) -> None:
        with pytest.raises(ConfigError):
            RankEndpoint(Rank(0), ip, port)


class TestJson:
    def test_an_instance_is_read_back(self) -> None:
        assert InstanceInfo.from_json(info().to_json()) == info()
        assert InstanceInfo.from_json(info(extra={"a": [1, None]}).to_json()) == info(extra={"a": [1, None]})

    def test_an_extra_is_read_when_it_nests_as_deep_as_is_allowed_and_not_when_deeper(self) -> None:
        extra = json.loads('{"x":' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}")
        whole = info(extra=extra)
        assert InstanceInfo.from_json(whole.to_json()) == whole
        deeper = json.loads(whole.to_json()) | {"extra": {"x": extra}}
        assert InstanceInfo.from_json(json.dumps(deeper).encode()) is None

    def test_an_endpoint_is_read_back_with_the_epoch_of_its_key(self) -> None:
        endpoint = RankEndpoint(Rank(1, 0, 1), "10.0.0.1", 5000, "uuid", "draining", 42)
        assert RankEndpoint.from_json(endpoint.rank, endpoint.to_json(), 42) == endpoint

    @given(st.integers(0, MAX_PARALLEL), st.integers(0, 2**63 - 1), st.sampled_from([ASSIGNED, FAILED]), st.text())
    def test_a_room_is_read_back(self, dp_rank: int, epoch: int, state: str, reason: str) -> None:
        value = RoomValue(dp_rank, epoch, state, reason if state == FAILED and reason.isprintable() else "")
        assert RoomValue.from_json(value.to_json()) == value

    def test_people_can_read_it(self) -> None:
        assert json.loads(RoomValue(3, 42).to_json()) == {"dp_rank": 3, "epoch": 42, "state": "assigned"}

    def test_what_later_versions_add_is_passed_over(self) -> None:
        later = json.loads(info().to_json()) | {"new": 1}
        assert InstanceInfo.from_json(json.dumps(later).encode()) == info()
        assert RoomValue.from_json(b'{"dp_rank":1,"epoch":2,"state":"assigned","new":[]}') == RoomValue(1, 2)

    @given(st.binary(max_size=40) | (json_values | lookalikes).map(lambda value: json.dumps(value).encode()))
    def test_garbage_never_raises(self, value: bytes) -> None:
        for read in (InstanceInfo.from_json(value), RankEndpoint.from_json(Rank(0), value, 1)):
            assert read is None or read.to_json()
        room = RoomValue.from_json(value)
        assert room is None or (type(room.dp_rank), type(room.epoch)) == (int, int)

    @pytest.mark.parametrize("value", [b"[" * 200_000, b'{"a":' * 200_000, b'{"dp_rank":' + b"9" * 10_000 + b"}"])
    def test_nor_does_hostile_garbage(self, value: bytes) -> None:
        assert InstanceInfo.from_json(value) is None
        assert RankEndpoint.from_json(Rank(0), value, 1) is None
        assert RoomValue.from_json(value) is None


def test_a_rank_s_processes_come_in_order() -> None:
    ranks = [Rank(0, 0, 1), Rank(1), Rank(0), Rank(0, 1)]
    instance = PrefillInstance("p", info(), tuple(RankEndpoint(rank, "ip", 1) for rank in ranks))
    assert [str(e.rank) for e in instance.endpoints(0)] == ["0.0.0.0", "0.0.1.0", "0.1.0.0"]
    assert instance.endpoints(9) == ()


def test_the_size_of_a_rank_is_that_of_its_other_dimensions() -> None:
    assert Topology(dp=8, cp=2, tp=4, pp=3).endpoints_per_rank == 24


@pytest.mark.parametrize(
    ("rank", "topology", "name"),
    [
        (Rank(2), Topology(dp=4), "2"),
        (Rank(2), Topology(dp=4, tp=2), "2/tp0"),
        (Rank(0, 1, 0, 3), Topology(dp=1, cp=2, tp=2, pp=4), "0/cp1/tp0/pp3"),
        (Rank(1, 0, 1), Topology(dp=2), "1/tp1"),
    ],
)
def test_a_rank_is_named_by_the_dimensions_that_have_several(rank: Rank, topology: Topology, name: str) -> None:
    assert rank.name(topology) == name
