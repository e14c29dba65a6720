"""The decode side: an answer, "not yet", "cannot tell" and "will not come" are four different things."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pytest

import etcd_pd
from etcd_pd import (
    AgentUnavailable,
    Assignment,
    Client,
    ConfigError,
    Described,
    Ended,
    InstanceUnknown,
    PrefillLost,
    Rank,
    RankEndpoint,
    Resolved,
    ResolveError,
    RoomFailed,
    RoomTimeout,
    ViewStale,
)
from etcd_pd.wire import messages, to_client
from etcd_pd.wire.messages import ResolvedWant, ViewAt, WantedRoom
from etcd_pd.wire.to_agent import Hello
from tests.support.fake_agent import CLUSTER, STALE, FakeAgent, FakeEngineSocket
from tests.support.packets import content_of
from tests.support.waiting import wait_until

INFO = {
    "incarnation": "uuid",
    "launch_id": "launch",
    "addresses": ["host:1"],
    "topology": {"dp": 4, "cp": 1, "tp": 1, "pp": 1},
    "policy": "round_robin",
    "fingerprint": "f",
    "state": "serving",
}
RANKS = [[[2, 0, 0, 0], "10.0.0.1", 5002, "serving", 40], [[3, 0, 0, 0], "10.0.0.1", 5003, "draining", 41]]


def wanted(client: Client, engine: FakeEngineSocket, *rooms: int, instance: str = "p") -> list[int]:
    """The numbers under which the agent knows them."""
    for room in rooms:
        client.decode.want(instance, room)
    return [want.id for want in engine.wants()]


def answer(id: int, revision: int, dp_rank: int = 2, epoch: int = 40, instance: int = 0) -> ResolvedWant:
    return ResolvedWant(id, dp_rank, epoch, revision, 7, 0, instance)


class TestWant:
    def test_it_says_what_is_wanted_and_for_how_long(self, client: Client, engine: FakeEngineSocket) -> None:
        client.decode.want("host:1", 77, timeout=20.0)
        client.decode.want("p", 78, timeout=20.0, dp_rank=3)
        first, second = engine.wants()
        assert first == WantedRoom(first.id, 77, -1, 20.0, "host:1")
        assert second == WantedRoom(second.id, 78, 3, 20.0, "p")
        assert first.id != second.id

    def test_wanting_twice_says_it_once(self, client: Client, engine: FakeEngineSocket) -> None:
        assert len(wanted(client, engine, 77, 77)) == 1

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            ({"instance": ""}, "instance"),
            ({"instance": None}, "instance"),
            ({"room": -1}, "bootstrap_room"),
            ({"timeout": 0}, "timeout"),
            ({"timeout": -1.0}, "timeout"),
            ({"timeout": float("nan")}, "timeout"),
            ({"timeout": 1e9}, "timeout"),
            ({"timeout": "3"}, "timeout"),
            ({"dp_rank": -1}, "dp_rank"),
            ({"dp_rank": 4096}, "dp_rank"),
            ({"dp_rank": "0"}, "dp_rank"),
        ],
    )
    def test_a_bad_argument_is_named(
        self, client: Client, engine: FakeEngineSocket, arguments: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            given: dict[str, Any] = {"instance": "p", "room": 1} | arguments
            client.decode.want(**given)
        assert caught.value.field == field
        assert engine.packets() == []

    @pytest.mark.parametrize("call", ["announce", "follow"])
    def test_so_is_a_bad_name(self, client: Client, engine: FakeEngineSocket, call: str) -> None:
        with pytest.raises(ConfigError):
            getattr(client.decode, call)("a/b")
        assert engine.packets() == []

    def test_what_was_not_wanted_cannot_be_asked_for(self, client: Client, engine: FakeEngineSocket) -> None:
        for ask in (client.decode.resolve_nowait, client.decode.peek):
            with pytest.raises(ConfigError, match="not wanted"):
                ask("p", 1)


class TestAnswers:
    def test_none_means_that_nobody_has_registered_it_yet(self, client: Client, engine: FakeEngineSocket) -> None:
        wanted(client, engine, 77)
        assert client.decode.resolve_nowait("p", 77) is None

    def test_an_assignment(self, client: Client, engine: FakeEngineSocket) -> None:
        [id] = wanted(client, engine, 77)
        engine.resolved([answer(id, 101)], 105)
        expected = Assignment("p", 77, 2, 40, 101, 7, "registry")
        assert client.decode.resolve_nowait("p", 77) == client.decode.peek("p", 77) == expected
        assert client.decode.poll() == [Resolved(expected, "p")]
        assert client.decode.poll() == [], "news is told once"
        assert client.decode.revision == 105

    def test_an_answer_names_the_instance_by_its_id(self, client: Client, engine: FakeEngineSocket) -> None:
        [id] = wanted(client, engine, 77, instance="host:1")
        engine.say(messages.INSTANCE, id="p", number=1, names=["host:1", "p"], info=INFO, ranks=RANKS)
        engine.resolved([answer(id, 101, instance=1)], 101)
        [event] = client.decode.poll()
        assert isinstance(event, Resolved)
        assert (event.assignment.instance, event.instance) == ("p", "host:1")
        assert client.decode.resolve_nowait("host:1", 77) == event.assignment

    def test_an_answer_names_its_own_instance_when_the_address_has_moved_to_another(
        self, client: Client, engine: FakeEngineSocket
    ) -> None:
        [id] = wanted(client, engine, 77, instance="host:1")
        engine.say(messages.INSTANCE, id="p", number=1, names=["host:1", "p"], info=INFO, ranks=RANKS)
        engine.say(messages.INSTANCE, id="q", number=2, names=["host:1", "q"], info=INFO, ranks=RANKS)
        engine.resolved([answer(id, 101, instance=1)], 101)
        [event] = client.decode.poll()
        assert isinstance(event, Resolved) and event.assignment.instance == "p"
        found = client.decode.instance("host:1")
        assert found and found.id == "q"

    @pytest.mark.parametrize(
        ("message", "kind", "attributes"),
        [
            ({"error": "RoomFailed", "reason": "oom", "revision": 101}, RoomFailed, {"reason": "oom"}),
            (
                {"error": "PrefillLost", "dp_rank": 2, "epoch": 40, "revision": 101},
                PrefillLost,
                {"dp_rank": 2, "epoch": 40},
            ),
            ({"error": "InstanceUnknown"}, InstanceUnknown, {}),
        ],
    )
    def test_an_end_is_final(
        self,
        client: Client,
        engine: FakeEngineSocket,
        message: dict[str, Any],
        kind: type[ResolveError],
        attributes: dict[str, Any],
    ) -> None:
        [id] = wanted(client, engine, 77)
        engine.say(messages.ENDED, id=id, **message)
        [event] = client.decode.poll()
        assert isinstance(event, Ended) and isinstance(event.error, kind)
        expected = {"instance": "p", "room": 77, **attributes}
        assert {name: getattr(event.error, name) for name in expected} == expected
        engine.resolved([answer(id, 102)], 102)
        assert client.decode.poll() == []
        with pytest.raises(kind):
            client.decode.resolve_nowait("p", 77)

    def test_lost_after_an_answer(self, client: Client, engine: FakeEngineSocket) -> None:
        [id] = wanted(client, engine, 77)
        engine.resolved([answer(id, 101)], 101)
        engine.lost(id, 110, dp_rank=2, epoch=40)
        resolved, ended = client.decode.poll()
        assert isinstance(resolved, Resolved)
        assert isinstance(ended, Ended) and isinstance(ended.error, PrefillLost)
        with pytest.raises(PrefillLost):
            client.decode.resolve_nowait("p", 77)

    def test_a_new_agent_learns_the_answer_when_the_wait_had_one(
        self, agent: FakeAgent, client: Client, engine: FakeEngineSocket
    ) -> None:
        """It may have been away while the rank died: it confirms that epoch, or ends the wait."""
        client.decode.want("host:1", 77)
        client.decode.want("host:1", 78)
        first, second = [want.id for want in engine.wants()]
        engine.say(messages.INSTANCE, id="p", number=1, names=["p", "host:1"], info=None, ranks=[])
        engine.resolved([answer(first, 101, instance=1), answer(second, 102, instance=1)], 102)
        client.decode.poll()
        agent.stop()
        client.decode.poll()
        agent.start()
        client.decode.poll()
        successor = agent.accept()
        wants = successor.wants()
        assert [want[4:] for want in wants] == [("p", 2, 40, 101), ("p", 2, 40, 102)], "by id: addresses may move"
        successor.resolved([answer(first, 101, epoch=40)], 150)
        successor.lost(second, 150, dp_rank=2, epoch=40)
        [event] = client.decode.poll()
        assert isinstance(event, Ended) and isinstance(event.error, PrefillLost)
        assert (event.error.room, event.error.epoch) == (78, 40)
        assert client.decode.peek("host:1", 77) is not None

    def test_no_event_arrives_when_the_same_answer_comes_again(self, client: Client, engine: FakeEngineSocket) -> None:
        [id] = wanted(client, engine, 77)
        engine.resolved([answer(id, 101)], 101)
        engine.resolved([answer(id, 101)], 102)
        assert len(client.decode.poll()) == 1


class TestCannotTell:
    def test_without_an_agent(self, client: Client) -> None:
        client.decode.want("p", 77)
        with pytest.raises(AgentUnavailable):
            client.decode.resolve_nowait("p", 77)
        assert client.decode.view == "stale"

    def test_while_the_agent_is_cut_off(self, client: Client, engine: FakeEngineSocket) -> None:
        wanted(client, engine, 77)
        engine.view(100, STALE)
        with pytest.raises(ViewStale) as caught:
            client.decode.resolve_nowait("p", 77)
        assert (caught.value.instance, caught.value.room) == ("p", 77)
        engine.view(100)
        assert client.decode.resolve_nowait("p", 77) is None

    def test_before_the_agent_has_said_anything(self, agent: FakeAgent, client: Client) -> None:
        client.decode.want("p", 77)
        with pytest.raises(ViewStale):
            client.decode.resolve_nowait("p", 77)

    def test_what_is_known_keeps_resolving_and_says_that_it_is_stale(
        self, agent: FakeAgent, client: Client, engine: FakeEngineSocket
    ) -> None:
        [id] = wanted(client, engine, 77)
        engine.resolved([answer(id, 101)], 101)
        fresh = client.decode.resolve_nowait("p", 77)
        assert fresh is not None and not fresh.stale
        engine.view(101, STALE)
        assert client.decode.resolve_nowait("p", 77) == fresh._replace(stale=True)
        agent.stop()
        assert client.decode.resolve_nowait("p", 77) == fresh._replace(stale=True)

    def test_ends_stay_ends(self, agent: FakeAgent, client: Client, engine: FakeEngineSocket) -> None:
        [id] = wanted(client, engine, 77)
        engine.lost(id, 101)
        client.decode.poll()
        agent.stop()
        with pytest.raises(PrefillLost):
            client.decode.resolve_nowait("p", 77)


class TestDeadlines:
    def test_a_wait_ends_without_any_agent(self, client: Client) -> None:
        client.decode.want("p", 77, timeout=0.05)
        [event] = wait_until(client.decode.poll, "its end")
        assert isinstance(event, Ended) and isinstance(event.error, RoomTimeout)
        with pytest.raises(RoomTimeout):
            client.decode.resolve_nowait("p", 77)
        assert client.decode.poll() == []

    def test_the_agent_is_notified_when_a_wait_times_out(self, client: Client, engine: FakeEngineSocket) -> None:
        client.decode.want("p", 77, timeout=0.05)
        [want] = engine.wants()
        wait_until(client.decode.poll, "its end")
        assert engine.packets() == [messages.encode_done(want.id)]

    def test_an_answer_has_none(self, client: Client, engine: FakeEngineSocket) -> None:
        client.decode.want("p", 77, timeout=0.5)
        client.decode.want("p", 78, timeout=0.6)
        engine.resolved([answer(engine.wants()[0].id, 101)], 101)
        client.decode.poll()
        [event] = wait_until(client.decode.poll, "the other one's end")
        assert isinstance(event, Ended) and event.error.room == 78
        assert client.decode.resolve_nowait("p", 77) is not None

    def test_an_answer_that_comes_too_late_is_none(self, client: Client, engine: FakeEngineSocket) -> None:
        client.decode.want("p", 77, timeout=0.05)
        [want] = engine.wants()
        wait_until(client.decode.poll, "its end")
        engine.resolved([answer(want.id, 101)], 101)
        assert client.decode.poll() == []

    def test_resolve_waits_no_longer(self, client: Client) -> None:
        with pytest.raises(RoomTimeout):
            client.decode.resolve("p", 77, timeout=0.05)

    def test_resolve_gives_what_is_there(self, client: Client, engine: FakeEngineSocket) -> None:
        [id] = wanted(client, engine, 77)
        engine.resolved([answer(id, 101)], 101)
        assert client.decode.resolve("p", 77).dp_rank == 2


class TestDone:
    def test_the_agent_is_notified_and_nothing_is_kept_when_a_wait_is_done(
        self, client: Client, engine: FakeEngineSocket
    ) -> None:
        [id] = wanted(client, engine, 77)
        client.decode.done("p", 77)
        assert engine.packets() == [messages.encode_done(id)]
        engine.resolved([answer(id, 101)], 101)
        assert client.decode.poll() == []
        with pytest.raises(ConfigError):
            client.decode.resolve_nowait("p", 77)

    def test_a_room_may_be_wanted_again(self, client: Client, engine: FakeEngineSocket) -> None:
        [first] = wanted(client, engine, 77)
        client.decode.done("p", 77)
        [second] = wanted(client, engine, 77)
        engine.resolved([answer(first, 101, dp_rank=0), answer(second, 102, dp_rank=1)], 102)
        client.decode.poll()
        found = client.decode.resolve_nowait("p", 77)
        assert found is not None and found.dp_rank == 1

    def test_unknown_waits_are_no_error(self, client: Client, engine: FakeEngineSocket) -> None:
        client.decode.done("p", 77)
        assert engine.packets() == []

    @pytest.mark.parametrize("ended", [False, True])
    def test_the_next_life_of_a_room_is_wanted_when_this_one_is_done(
        self, client: Client, engine: FakeEngineSocket, ended: bool
    ) -> None:
        [id] = wanted(client, engine, 77)
        engine.resolved([answer(id, 101)], 101)
        if ended:
            engine.send(to_client.Ended(id, "PrefillLost", 105, "", 2, 40).encode())
        client.decode.poll()
        client.decode.done("p", 77)
        engine.packets()
        client.decode.want("p", 77)
        [want] = engine.wants()
        assert (want.known_rank, want.known_revision) == (-1, 105 if ended else 101)
        engine.send(messages.HISTORY_LOST)
        client.decode.poll()
        client.decode.done("p", 77)
        client.decode.want("p", 77)
        assert engine.wants()[-1].known_revision == 0, "revisions of another history say nothing"

    @pytest.mark.parametrize("polled", [True, False])
    def test_nothing_grows_with_the_rooms_that_are_done(
        self, client: Client, engine: FakeEngineSocket, polled: bool
    ) -> None:
        """Whether the engine asks with poll() or with resolve_nowait(), and though it never calls admit()."""
        for room in range(2_000):
            [id] = wanted(client, engine, room)
            engine.resolved([answer(id, 100 + room)], 100 + room)
            client.decode.poll() if polled else client.decode.resolve_nowait("p", room)
            if room % 2:
                engine.lost(id, 100 + room, 2, 40)
                client.decode.poll() if polled else None
            client.decode.done("p", room)
            engine.packets()
        kept = vars(client.decode)
        assert {name: len(held) for name, held in kept.items() if hasattr(held, "__len__") and len(held) > 200} == {}


class TestRevision:
    def test_it_is_not_known_before_the_agent_has_looked_at_every_want(
        self, client: Client, engine: FakeEngineSocket
    ) -> None:
        """Else a rank could vouch for a revision at which it has an answer that it did not hear yet."""
        assert client.decode.revision == 100
        [first, second] = wanted(client, engine, 77, 78)
        assert client.decode.revision == 0
        engine.view(101, last_want=first)
        client.decode.poll()
        assert client.decode.revision == 0
        engine.resolved([answer(second, 90)], 101, last_want=second)
        client.decode.poll()
        assert client.decode.revision == 101

    def test_a_new_agent_must_look_again(self, agent: FakeAgent, client: Client, engine: FakeEngineSocket) -> None:
        first, second = wanted(client, engine, 77, 78)
        engine.view(101, last_want=second)
        client.decode.done("p", 78)
        client.decode.poll()
        agent.stop()
        client.decode.poll()
        assert client.decode.revision == 0
        agent.start()
        client.decode.poll()
        successor = agent.accept()
        successor.view(120, last_want=0)
        client.decode.poll()
        assert client.decode.revision == 0
        successor.view(120, last_want=first)
        client.decode.poll()
        assert client.decode.revision == 120, "the wait that is done is not asked about"

    def test_nothing_that_was_said_before_pushes_were_lost_holds_after(
        self, client: Client, engine: FakeEngineSocket
    ) -> None:
        """The answer to a want was dropped, and a later want was answered before the engine knew."""
        first, second = wanted(client, engine, 7, 8)
        engine.send(messages.LOST_PUSHES)
        engine.send(messages.encode_view(ViewAt(120, 0, second, 0, 0, 0)))
        client.decode.poll()
        assert client.decode.revision == 0
        engine.view(121, last_want=second)
        client.decode.poll()
        assert client.decode.revision == 121, "all was asked again, and looked at"

    def test_the_revision_comes_back_when_pushes_were_lost_and_the_connection_with_them(
        self, agent: FakeAgent, client: Client, engine: FakeEngineSocket
    ) -> None:
        wanted(client, engine, 7)
        engine.send(messages.LOST_PUSHES)
        engine.close()
        client.decode.poll()
        client.decode.poll()
        engine = agent.accept()
        engine.view(120)
        client.decode.poll()
        assert client.decode.revision == 120


class Restored(NamedTuple):
    """One wait was answered by an etcd, the other by what was restored, of which the agent has not said so yet."""

    old: int
    new: int
    engine: FakeEngineSocket


@pytest.fixture
def restored(agent: FakeAgent, client: Client, engine: FakeEngineSocket) -> Restored:
    """The connection was cut before it could; this is the next one."""
    old, new = wanted(client, engine, 7, 8)
    engine.resolved([answer(old, 101)], 101)
    client.decode.poll()
    engine.close()
    client.decode.poll()
    engine = agent.accept_next(client)
    engine.cluster_id = CLUSTER + 1
    engine.resolved([answer(new, 60, dp_rank=1, epoch=50)], 60)
    client.decode.poll()
    engine.close()
    client.decode.poll()
    engine = agent.accept_next(client)
    engine.cluster_id = CLUSTER + 1
    return Restored(old, new, engine)


def said(packets: list[bytes]) -> list[int]:
    """The waits in what a client says."""
    return [messages.decode_want(packet).id for packet in packets if packet[:1] == messages.WANT]


class TestAnotherHistory:
    """An agent that started after etcd was restored ends what is said to it as known, once it has asked etcd."""

    def test_what_a_restored_etcd_has_answered_is_said_when_the_agent_has_said_that_it_is_another(
        self, client: Client, restored: Restored
    ) -> None:
        hello, *more = restored.engine.packets()
        assert (Hello.decode(hello).cluster_id, Hello.decode(hello).revision) == (CLUSTER, 101)
        assert said(more) == [restored.old]
        restored.engine.send(messages.HISTORY_LOST)
        client.decode.poll()
        [want] = restored.engine.wants()
        assert (want.id, want.known_epoch, want.known_revision) == (restored.new, 50, 60)

    def test_no_revision_holds_when_a_wait_is_not_said(self, client: Client, restored: Restored) -> None:
        restored.engine.view(70, last_want=restored.old)
        client.decode.poll()
        assert client.decode.revision == 0, "whether the other has ended by then has not been asked"

    def test_no_revision_holds_when_another_room_was_wanted_before_the_wait_is_said(
        self, client: Client, restored: Restored
    ) -> None:
        *_, third = wanted(client, restored.engine, 9)
        restored.engine.send(messages.HISTORY_LOST)
        restored.engine.view(70, last_want=third)
        client.decode.poll()
        assert client.decode.revision == 0, "it is said only now"
        restored.engine.view(71, last_want=third)
        client.decode.poll()
        assert client.decode.revision == 71

    def test_what_a_restored_etcd_has_answered_is_not_said_when_the_connection_is_lost_with_the_word(
        self, agent: FakeAgent, client: Client, restored: Restored
    ) -> None:
        restored.engine.packets()  # all is read, else what is sent now is lost with the connection
        restored.engine.send(messages.HISTORY_LOST)
        restored.engine.close()
        client.decode.poll()
        client.decode.poll()
        hello, *more = agent.accept().packets()
        assert Hello.decode(hello).cluster_id != CLUSTER or restored.new not in said(more)

    def test_what_an_etcd_before_has_answered_is_said_to_be_its_when_its_end_is_lost(
        self, client: Client, engine: FakeEngineSocket
    ) -> None:
        [id] = wanted(client, engine, 7)
        engine.resolved([answer(id, 101)], 101)
        engine.send(messages.HISTORY_LOST)
        engine.cluster_id = CLUSTER + 1
        engine.view(60)
        engine.send(messages.LOST_PUSHES)
        client.decode.poll()
        [want] = engine.wants()
        assert (want.id, want.known_epoch, want.known_revision) == (id, 40, 0), "of no revision that counts"


class TestAdmission:
    def test_rooms_come_in_the_order_of_revision_and_room(self, client: Client, engine: FakeEngineSocket) -> None:
        ids = dict(zip((5, 3, 9, 1), wanted(client, engine, 5, 3, 9, 1), strict=True))
        engine.resolved([answer(ids[9], 102), answer(ids[5], 101), answer(ids[3], 101), answer(ids[1], 110)], 110)
        client.decode.poll()
        admission = client.decode.admit(105)
        assert [(a.revision, a.room) for a in admission.admitted] == [(101, 3), (101, 5), (102, 9)]
        assert admission.failed == []
        assert client.decode.admit(105).admitted == [], "each once"
        assert [a.room for a in client.decode.admit(110).admitted] == [1]

    def test_two_ranks_admit_the_same_when_events_came_in_another_order(
        self, agent: FakeAgent, socket_path: str
    ) -> None:

        admissions = []
        for order in ((0, 1, 2), (2, 1, 0)):
            with etcd_pd.connect(socket_path) as client:
                client.fileno()
                engine = agent.accept()
                ids = wanted(client, engine, 5, 3, 9)
                for at in order:
                    engine.resolved([answer(ids[at], 101 + at)], 110)
                engine.lost(ids[1], 108)
                client.decode.poll()
                steps = [client.decode.admit(revision) for revision in (102, 103, 110)]
                admissions.append([([a.room for a in s.admitted], [e.room for e in s.failed]) for s in steps])
        assert admissions[0] == admissions[1] == [([5, 3], []), ([9], []), ([], [3])]

    @pytest.mark.parametrize("name", ["p", "host:1"])
    def test_what_has_ended_by_then_is_failed_and_not_admitted(
        self, client: Client, engine: FakeEngineSocket, name: str
    ) -> None:
        [id] = wanted(client, engine, 77, instance=name)
        engine.say(messages.INSTANCE, id="p", number=1, names=["host:1", "p"], info=INFO, ranks=RANKS)
        engine.resolved([answer(id, 101)], 101)
        engine.lost(id, 105)
        client.decode.poll()
        admission = client.decode.admit(105)
        assert admission.admitted == []
        assert [type(error) for error in admission.failed] == [PrefillLost]

    def test_what_ends_later_is_admitted_all_the_same(self, client: Client, engine: FakeEngineSocket) -> None:
        [id] = wanted(client, engine, 77)
        engine.resolved([answer(id, 101)], 101)
        engine.lost(id, 105)
        client.decode.poll()
        assert [a.room for a in client.decode.admit(104).admitted] == [77]
        assert [e.room for e in client.decode.admit(105).failed] == [77]

    def test_failures_come_in_an_order_that_does_not_depend_on_their_dates(
        self, client: Client, engine: FakeEngineSocket
    ) -> None:
        """An agent that listed anew dates a loss later than others do."""
        first, second = wanted(client, engine, 7, 8)
        engine.lost(second, 101)
        engine.lost(first, 105)
        client.decode.poll()
        assert [error.room for error in client.decode.admit(105).failed] == [7, 8]

    def test_below_the_floor_of_any_rank_nothing_is_admitted(self, client: Client, engine: FakeEngineSocket) -> None:
        [id] = wanted(client, engine, 77)
        engine.resolved([answer(id, 101)], 101)
        engine.view(104, floor=103)
        client.decode.poll()
        assert client.decode.floor == 103
        assert client.decode.admit(102, client.decode.floor) == ([], [])
        assert [a.room for a in client.decode.admit(103, client.decode.floor).admitted] == [77]

    def test_what_a_clock_decided_is_not_in_it(self, client: Client, engine: FakeEngineSocket) -> None:
        [id] = wanted(client, engine, 77)
        client.decode.want("p", 78, timeout=0.05)
        engine.say(messages.ENDED, id=id, error="InstanceUnknown")
        ended: list[object] = []

        def both() -> bool:
            ended.extend(client.decode.poll())
            return len(ended) == 2

        wait_until(both, "both ends")
        assert client.decode.admit(10**6) == ([], [])

    def test_a_wait_that_is_done_is_not_admitted(self, client: Client, engine: FakeEngineSocket) -> None:
        [id] = wanted(client, engine, 77)
        engine.resolved([answer(id, 101)], 101)
        client.decode.poll()
        client.decode.done("p", 77)
        assert client.decode.admit(200).admitted == []


class TestInstances:
    def test_it_is_known_by_id_and_by_address(self, client: Client, engine: FakeEngineSocket) -> None:
        engine.say(messages.INSTANCE, id="p", number=1, names=["host:1", "p"], info=INFO, ranks=RANKS)
        client.decode.poll()
        found = client.decode.instance("host:1")
        assert found is not None and found == client.decode.instance("p")
        assert found.id == "p"
        assert found.info.topology.dp == 4
        assert found.endpoints(2) == (RankEndpoint(Rank(2), "10.0.0.1", 5002, "uuid", "serving", 40),)
        assert found.endpoints(3)[0].state == "draining"
        assert client.decode.instance("q") is None

    def test_it_is_forgotten_when_it_ends(self, client: Client, engine: FakeEngineSocket) -> None:
        engine.say(messages.INSTANCE, id="p", number=1, names=["host:1", "p"], info=INFO, ranks=RANKS)
        engine.say(messages.INSTANCE, id="p", number=1, names=["p"], info=None, ranks=[])
        client.decode.poll()
        assert client.decode.instance("p") is None

    def test_one_that_is_followed_is_described(self, client: Client, engine: FakeEngineSocket) -> None:
        client.decode.follow("host:1")
        assert engine.packets() == [messages.encode_follow("host:1")]
        engine.say(messages.INSTANCE, id="host:1", number=1, names=["host:1"], info=None, ranks=[])
        engine.say(messages.INSTANCE, id="p", number=1, names=["host:1", "p"], info=INFO, ranks=RANKS)
        unknown, known = client.decode.poll()
        assert unknown == Described("host:1", None)
        assert known == Described("host:1", client.decode.instance("p"))

    def test_a_decode_instance_makes_itself_visible(self, client: Client, engine: FakeEngineSocket) -> None:
        client.decode.announce("d", address="host:9")
        [packet] = engine.packets()
        assert packet[:1] == messages.DECODER
        assert content_of(packet) == {"instance": "d", "address": "host:9"}


def test_an_answer_says_that_it_is_stale_when_the_view_is(client: Client, engine: FakeEngineSocket) -> None:
    [id] = wanted(client, engine, 77)
    engine.resolved([answer(id, 101)], 101, view=STALE)
    [event] = client.decode.poll()
    assert isinstance(event, Resolved) and event.assignment.stale
    engine.view(102)
    client.decode.poll()
    known = client.decode.peek("p", 77)
    assert known and not known.stale, "since then it is known to hold"


class TestSilence:
    """A stopped agent's socket stays open: what it said last may be old."""

    def test_the_view_is_stale_when_the_agent_says_nothing_and_synced_when_it_speaks_again(
        self, client: Client, engine: FakeEngineSocket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        [id] = wanted(client, engine, 77, 78)[:1]
        engine.resolved([answer(id, 101)], 101)
        client.decode.poll()
        now = time.monotonic()
        monkeypatch.setattr("time.monotonic", lambda: now + messages.SILENCE_SECONDS - 0.5)
        assert client.decode.resolve_nowait("p", 78) is None and client.decode.view == "synced"
        monkeypatch.setattr("time.monotonic", lambda: now + messages.SILENCE_SECONDS + 0.5)
        with pytest.raises(ViewStale):
            client.decode.resolve_nowait("p", 78)
        known = client.decode.resolve_nowait("p", 77)
        assert known and known.stale
        engine.view(102)
        assert client.decode.resolve_nowait("p", 78) is None and client.decode.view == "synced"

    def test_the_view_is_synced_when_the_client_was_stopped_and_signs_lie_in_the_socket(
        self, client: Client, engine: FakeEngineSocket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted(client, engine, 77)
        engine.view(101)
        client.decode.poll()
        engine.view(102)
        now = time.monotonic()
        monkeypatch.setattr("time.monotonic", lambda: now + 100 * messages.SILENCE_SECONDS)
        client.decode.poll()
        assert client.decode.view == "synced"
