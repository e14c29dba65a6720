"""The prefill side: what may be said when, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import etcd_pd
from etcd_pd import (
    AgentBusy,
    Announced,
    Client,
    ConfigError,
    Drained,
    EtcdPDError,
    InstanceConflict,
    NotAnnounced,
    Rank,
    RankDraining,
    RankEnded,
    RankLost,
    Refused,
    Registered,
    RegistrationTimeout,
    Rejected,
    RoomConflict,
    Topology,
)
from etcd_pd.wire import messages
from tests.support.fake_agent import FakeAgent, FakeEngineSocket
from tests.support.packets import content_of

ANNOUNCEMENT: dict[str, Any] = {
    "rank": Rank(1),
    "topology": Topology(dp=2),
    "launch_id": "launch",
    "addresses": ["host:1"],
    "ip": "10.0.0.1",
    "port": 5000,
}


@pytest.fixture
def announced(client: Client, engine: FakeEngineSocket) -> FakeEngineSocket:
    """The rank stands under epoch 42."""
    client.prefill.announce("p", **ANNOUNCEMENT)
    engine.announced(42)
    assert client.prefill.poll() == [Announced("p", "uuid", 42)]
    engine.packets()
    return engine


def registered(client: Client, engine: FakeEngineSocket, room: int) -> None:
    client.prefill.register(room)
    engine.registered((room, 100 + room, 7))
    assert client.prefill.poll() == [Registered(room, 100 + room, 7, 42)]
    engine.packets()


class TestAnnounce:
    def test_everything_about_the_rank_is_said(self, client: Client, engine: FakeEngineSocket) -> None:
        client.prefill.announce("p", **ANNOUNCEMENT, policy="total_tokens", fingerprint="f", extra={"a": 1}, linger=2.5)
        [packet] = engine.packets()
        assert packet[:1] == messages.ANNOUNCE
        assert content_of(packet) == {
            "instance": "p",
            "rank": [1, 0, 0, 0],
            "topology": {"dp": 2, "cp": 1, "tp": 1, "pp": 1},
            "launch_id": "launch",
            "addresses": ["host:1"],
            "ip": "10.0.0.1",
            "port": 5000,
            "policy": "total_tokens",
            "fingerprint": "f",
            "extra": {"a": 1},
            "linger": 2.5,
        }

    def test_an_event_arrives_when_the_epoch_is_new(self, client: Client, announced: FakeEngineSocket) -> None:
        assert client.prefill.epoch == 42
        announced.say(messages.RANK_ENDED, epoch=42, reason="why")
        announced.announced(77)
        assert client.prefill.poll() == [RankEnded(42, "why"), Announced("p", "uuid", 77)]
        assert client.prefill.epoch == 77

    @pytest.mark.parametrize(
        ("field", "value", "named"),
        [
            ("instance", "", "instance"),
            ("instance", "a/b", "instance"),
            ("instance", "a\n", "instance"),
            ("rank", Rank(2), "rank.dp"),
            ("rank", Rank(-1), "rank.dp"),
            ("rank", Rank(0, 0, 1), "rank.tp"),
            ("rank", (0, 0, 0, 0, 0), "rank"),
            ("rank", 0, "rank"),
            ("rank", ("0",), "rank.dp"),
            ("topology", None, "topology"),
            ("launch_id", "", "launch_id"),
            ("addresses", ["a b"], "addresses"),
            ("addresses", ["x"] * 100, "addresses"),
            ("addresses", "host:1", "addresses"),
            ("ip", "", "ip"),
            ("port", -1, "port"),
            ("port", 65536, "port"),
            ("policy", "", "policy"),
            ("fingerprint", "x" * 513, "fingerprint"),
            ("fingerprint", "\ud800", "fingerprint"),
            ("extra", {"x": "y" * 9000}, "extra"),
            ("linger", -1, "linger"),
            ("linger", float("nan"), "linger"),
        ],
    )
    def test_a_bad_argument_is_named_and_nothing_is_said(
        self, client: Client, engine: FakeEngineSocket, field: str, value: Any, named: str
    ) -> None:
        arguments: dict[str, Any] = {"instance": "p", **ANNOUNCEMENT, field: value}
        with pytest.raises(ConfigError) as caught:
            client.prefill.announce(**arguments)
        assert caught.value.field == named
        assert engine.packets() == []
        with pytest.raises(NotAnnounced):
            client.prefill.register(1)

    def test_a_refusal_says_who_holds_the_name(self, client: Client, announced: FakeEngineSocket) -> None:
        announced.say(messages.REFUSED, instance="p", holder="launch other")
        [event] = client.prefill.poll()
        assert isinstance(event, Refused) and isinstance(event.error, InstanceConflict)
        assert (event.error.instance, event.error.holder) == ("p", "launch other")
        for call in (client.prefill.drain, lambda: client.prefill.register(1), lambda: client.prefill.fail(1, "r")):
            with pytest.raises(NotAnnounced):
                call()

    def test_after_a_refusal_nothing_of_it_is_left(self, client: Client, announced: FakeEngineSocket) -> None:
        registered(client, announced, 1)
        announced.say(messages.REFUSED, instance="p", holder="launch other")
        [event] = client.prefill.poll()
        assert isinstance(event, Refused)
        client.prefill.announce("p", **ANNOUNCEMENT)
        announced.packets()
        client.prefill.register(1)
        assert announced.packets() == [messages.encode_room(messages.REGISTER, 1, 2)], "it is held no longer"


class TestRegister:
    def test_it_needs_an_announcement(self, client: Client) -> None:
        with pytest.raises(NotAnnounced):
            client.prefill.register(1)

    @pytest.mark.parametrize("room", [-1, 2**64, True, "1", 1.0, None])
    def test_only_rooms(self, client: Client, announced: FakeEngineSocket, room: Any) -> None:
        for call in (
            client.prefill.register,
            client.prefill.release,
            lambda room: client.prefill.fail(room, "r"),
            lambda room: client.decode.want("p", room),
        ):
            with pytest.raises(ConfigError) as caught:
                call(room)
            assert caught.value.field == "bootstrap_room"
        assert announced.packets() == []

    def test_it_is_one_packet(self, client: Client, announced: FakeEngineSocket) -> None:
        client.prefill.register(2**64 - 1)
        assert announced.packets() == [messages.encode_room(messages.REGISTER, 2**64 - 1, 1)]

    def test_asking_twice_says_it_once(self, client: Client, announced: FakeEngineSocket) -> None:
        client.prefill.register(1)
        client.prefill.register(1)
        assert len(announced.packets()) == 1

    def test_a_room_that_is_held_is_answered_at_once(self, client: Client, announced: FakeEngineSocket) -> None:
        registered(client, announced, 1)
        client.prefill.register(1)
        assert client.prefill.poll() == [Registered(1, 101, 7, 42)]
        assert announced.packets() == []

    def test_a_lot_is_one_packet_and_asked_for_again_as_one(
        self, agent: FakeAgent, client: Client, announced: FakeEngineSocket
    ) -> None:
        registered(client, announced, 1)
        client.prefill.register(2)
        announced.packets()
        client.prefill.register_lot([1, 2, 3, 4, 5])
        assert client.prefill.poll() == [Registered(1, 101, 7, 42)], "it is held already"
        assert announced.packets() == [messages.encode_lot([(3, 3), (4, 4), (5, 5)])]
        client.prefill.release(4)
        agent.stop()
        client.prefill.poll()
        agent.start()
        client.prefill.poll()
        again = agent.accept()
        assert [p for p in again.packets() if p[:1] == messages.REGISTER_LOT] == [messages.encode_lot([(3, 3), (5, 5)])]
        again.rejected(3, error="RoomConflict", holder="p/0@9", owned=5)
        [event] = client.prefill.poll()
        assert isinstance(event, Rejected) and isinstance(event.error, RoomConflict)
        assert (event.room, event.error.room) == (3, 5)

    @pytest.mark.parametrize("rooms", [[], [1, 1], range(121)])
    def test_a_lot_has_bounds(self, client: Client, announced: FakeEngineSocket, rooms: Sequence[int]) -> None:
        with pytest.raises(ConfigError) as caught:
            client.prefill.register_lot(rooms)
        assert caught.value.field == "rooms"
        assert announced.packets() == []

    def test_a_lot_that_is_too_much_is_not_asked_for_in_part(self, agent: FakeAgent, socket_path: str) -> None:
        with etcd_pd.connect(socket_path, queue_limit=3) as client:
            with pytest.raises(NotAnnounced):
                client.prefill.register_lot([1])
            client.prefill.announce("p", **ANNOUNCEMENT)
            client.prefill.register(1)
            with pytest.raises(AgentBusy):
                client.prefill.register_lot([2, 3, 4])
            client.prefill.register_lot([2, 3])
            client.prefill.drain()
            with pytest.raises(RankDraining):
                client.prefill.register_lot([9])

    @pytest.mark.parametrize(
        ("message", "kind", "attributes"),
        [
            ({"error": "RoomConflict", "holder": "p/3@9"}, RoomConflict, {"room": 1, "holder": "p/3@9"}),
            ({"error": "RankLost", "epoch": 9}, RankLost, {"room": 1, "epoch": 9}),
            ({"error": "RegistrationTimeout", "text": "t"}, RegistrationTimeout, {"room": 1}),
            ({"error": "RankDraining", "text": "t"}, RankDraining, {"room": 1}),
            ({"error": "AgentBusy", "limit": 5}, AgentBusy, {"limit": 5}),
            ({"error": "StoreRejected", "text": "no space"}, EtcdPDError, {"room": 1}),
        ],
    )
    def test_a_rejection_is_typed_and_the_room_may_be_asked_for_again(
        self,
        client: Client,
        announced: FakeEngineSocket,
        message: dict[str, Any],
        kind: type[EtcdPDError],
        attributes: dict[str, Any],
    ) -> None:
        client.prefill.register(1)
        announced.rejected(1, **message)
        [event] = client.prefill.poll()
        assert isinstance(event, Rejected) and isinstance(event.error, kind)
        assert {name: getattr(event.error, name) for name in attributes} == attributes
        announced.packets()
        client.prefill.register(1)
        assert announced.kinds() == messages.REGISTER

    def test_rooms_of_an_epoch_that_ended_are_held_no_longer(self, client: Client, announced: FakeEngineSocket) -> None:
        registered(client, announced, 1)
        announced.say(messages.RANK_ENDED, epoch=42, reason="why")
        client.prefill.poll()
        client.prefill.register(1)
        assert announced.kinds() == messages.REGISTER


class TestEndingRooms:
    def test_release(self, client: Client, announced: FakeEngineSocket) -> None:
        registered(client, announced, 1)
        client.prefill.release(1)
        assert announced.packets() == [messages.encode_room(messages.RELEASE, 1, 2)]

    def test_no_event_arrives_when_a_room_was_released_before_its_answer(
        self, client: Client, announced: FakeEngineSocket
    ) -> None:
        client.prefill.register(1)
        client.prefill.release(1)
        announced.registered((1, 101, 7))
        assert client.prefill.poll() == []

    def test_fail(self, client: Client, announced: FakeEngineSocket) -> None:
        client.prefill.fail(1, "out of memory")
        [packet] = announced.packets()
        assert content_of(packet) == {"room": 1, "reason": "out of memory", "sequence": 1}

    @pytest.mark.parametrize("reason", ["x" * 513, "\ud800", None, b"x"])
    def test_a_bad_reason_is_named(self, client: Client, announced: FakeEngineSocket, reason: Any) -> None:
        with pytest.raises(ConfigError) as caught:
            client.prefill.fail(1, reason)
        assert caught.value.field == "reason"
        assert announced.packets() == []


class TestDrain:
    def test_new_rooms_are_refused_and_an_event_says_when_the_last_one_ended(
        self, client: Client, announced: FakeEngineSocket
    ) -> None:
        client.prefill.drain()
        assert announced.kinds() == messages.DRAIN
        with pytest.raises(RankDraining) as caught:
            client.prefill.register(1)
        assert caught.value.room == 1
        announced.send(messages.DRAINED)
        assert client.prefill.poll() == [Drained()]

    def test_it_needs_an_announcement(self, client: Client) -> None:
        with pytest.raises(NotAnnounced):
            client.prefill.drain()
        with pytest.raises(NotAnnounced):
            client.prefill.fail(1, "r")

    def test_announcing_again_ends_it(self, client: Client, announced: FakeEngineSocket) -> None:
        client.prefill.drain()
        client.prefill.announce("p", **ANNOUNCEMENT)
        client.prefill.register(1)
