"""The connection: it never blocks, keeps what it may, and says everything again to a new agent."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

import etcd_pd
from etcd_pd import (
    AgentBusy,
    AgentUnavailable,
    Announced,
    Client,
    ConfigError,
    ProtocolError,
    Rank,
    Registered,
    Topology,
)
from etcd_pd.wire import messages
from etcd_pd.wire.messages import AdoptedRoom, ResolvedWant
from tests.support.children import child
from tests.support.fake_agent import FakeAgent, FakeEngineSocket
from tests.support.packets import content_of
from tests.support.waiting import wait_until


def announce(client: Client, instance: str = "p") -> None:
    client.prefill.announce(
        instance,
        rank=Rank(1),
        topology=Topology(dp=2),
        launch_id="launch",
        addresses=["host:1"],
        ip="10.0.0.1",
        port=5000,
    )


class TestOpening:
    def test_connect_touches_nothing(self, agent: FakeAgent, client: Client) -> None:
        assert client.state == "connecting"
        assert not agent.has_visitor()

    def test_the_first_call_opens_it_and_says_hello(self, agent: FakeAgent, client: Client) -> None:
        assert client.prefill.poll() == []
        [hello] = agent.accept().packets()
        content = content_of(hello)
        assert content.pop("process")
        assert content == {"protocol": messages.VERSION, "heartbeat": None}
        assert client.state == "connected"

    def test_without_an_agent_nothing_blocks_and_nothing_raises(self, client: Client) -> None:
        assert client.fileno() == -1
        assert [*client.prefill.poll(), *client.decode.poll()] == []
        announce(client)
        client.prefill.register(1)
        client.decode.want("p", 1)
        assert client.state == "connecting"

    def test_an_attempt_is_not_made_at_every_call(
        self, agent: FakeAgent, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("etcd_pd.client.connection.RECONNECT_SECONDS", 3600.0)
        agent.stop()
        client.prefill.poll()
        agent.start()
        client.prefill.poll()
        assert not agent.has_visitor()

    def test_its_descriptor_is_readable_when_an_event_waits(self, client: Client, engine: FakeEngineSocket) -> None:
        poller = select.poll()
        poller.register(client.fileno(), select.POLLIN)
        assert poller.poll(0) == []
        engine.view(101)
        assert poller.poll(1000)
        client.decode.poll()
        assert poller.poll(0) == []

    def test_the_path_may_come_from_the_environment(
        self, agent: FakeAgent, socket_path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ETCD_PD_SOCKET", socket_path)
        with etcd_pd.connect() as client:
            assert client.fileno() >= 0

    def test_its_repr_says_state_view_and_revision(self, client: Client, engine: FakeEngineSocket) -> None:
        assert repr(client) == "<Client connected view=synced revision=100>"


class TestArguments:
    def test_a_socket_must_be_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ETCD_PD_SOCKET", raising=False)
        with pytest.raises(ConfigError) as caught:
            etcd_pd.connect()
        assert caught.value.field == "socket_path"

    @pytest.mark.parametrize("heartbeat", [0, -1, 0.01, 1e9, float("nan"), "1"])
    def test_heartbeats(self, heartbeat: float) -> None:
        with pytest.raises(ConfigError) as caught:
            etcd_pd.connect("x", heartbeat=heartbeat)
        assert caught.value.field == "heartbeat"

    @pytest.mark.parametrize("limit", [0, -1, 1.5])
    def test_queue_limits(self, limit: int) -> None:
        with pytest.raises(ConfigError) as caught:
            etcd_pd.connect("x", queue_limit=limit)
        assert caught.value.field == "queue_limit"


class TestFullSocket:
    def test_packets_queue_and_then_the_caller_is_refused_when_the_socket_is_full(
        self, agent: FakeAgent, socket_path: str
    ) -> None:
        with etcd_pd.connect(socket_path, queue_limit=50) as client:
            announce(client)
            engine = agent.accept()
            said: list[int] = []
            with pytest.raises(AgentBusy) as caught:
                for room in range(100_000):
                    client.decode.want("p", room)
                    said.append(room)
            assert caught.value.limit == 50
            heard: list[int] = []
            while len(heard) < len(said):
                heard += [want.room for want in engine.wants()]
                client.decode.poll()
            assert heard == said, "in order, and what was refused was not queued"
            client.decode.want("p", 100_000)
            assert [want.room for want in engine.wants()] == [100_000]

    def test_unanswered_registrations_are_bounded_too(self, agent: FakeAgent, socket_path: str) -> None:
        with etcd_pd.connect(socket_path, queue_limit=3) as client:
            announce(client)
            for room in range(3):
                client.prefill.register(room)
            with pytest.raises(AgentBusy):
                client.prefill.register(3)
            engine = agent.accept()
            engine.registered((1, 1, 1))
            client.prefill.poll()
            client.prefill.register(3)

    def test_a_wait_is_forgotten_later_when_the_queue_was_full(self, agent: FakeAgent, socket_path: str) -> None:
        with etcd_pd.connect(socket_path, queue_limit=1) as client:
            client.decode.want("p", 1)
            engine = agent.accept()
            with pytest.raises(AgentBusy):
                for room in range(2, 100_000):
                    client.decode.want("p", room)
            client.decode.done("p", 1)
            client.decode.done("p", 2)
            done: list[int] = []
            while len(done) < 3:
                done += [id for p in engine.packets() if p[:1] == messages.DONE for id in messages.decode_done(p)]
                client.decode.poll()
                client.decode.done("p", 3)
            assert sorted(done) == [1, 2, 3]

    def test_lost_pushes_that_cannot_all_be_asked_for_again_are_on_a_new_connection(
        self, agent: FakeAgent, socket_path: str
    ) -> None:
        with etcd_pd.connect(socket_path, queue_limit=10) as client:
            engine, wanted = agent.accept_next(client), set[int]()
            for room in range(5_000):  # more than socket and queue hold at once
                client.decode.want("p", room)
                wanted.update(want.room for want in engine.wants())
            engine.send(messages.LOST_PUSHES)
            client.decode.poll()
            engine, again = agent.accept_next(client), set[int]()
            while again != wanted:
                again.update(want.room for want in engine.wants())
                client.decode.poll()


class TestLosing:
    @pytest.mark.parametrize("call", ["want", "done", "follow", "register", "release", "fail"])
    def test_an_agent_that_has_just_died_raises_in_no_call(
        self, agent: FakeAgent, client: Client, engine: FakeEngineSocket, call: str
    ) -> None:
        announce(client)
        client.decode.want("p", 1)
        agent.stop()
        side = client.decode if call in ("want", "done", "follow") else client.prefill
        arguments = {"follow": ("p",), "fail": (1, "r")}.get(call, ("p", 1) if side is client.decode else (1,))
        getattr(side, call)(*arguments)


class TestReconnecting:
    def test_everything_is_said_again(self, agent: FakeAgent, client: Client, engine: FakeEngineSocket) -> None:
        announce(client)
        client.decode.announce("d", address="host:9")
        for room in (1, 2, 3):
            client.prefill.register(room)
        engine.announced(42)
        engine.registered((1, 101, 7), (2, 102, 7))
        client.prefill.poll()
        client.prefill.release(2)
        for room in (5, 6, 7):
            client.decode.want("p", room)
        client.decode.done("p", 5)
        client.decode.follow("q")
        agent.stop()
        client.prefill.poll()
        assert client.state == "connecting"
        agent.start()
        client.prefill.poll()
        packets = agent.accept().packets()
        assert b"".join(packet[:1] for packet in packets) == b"HAORLE" + b"WWKP"
        message = content_of(packets[1])
        assert (message["instance"], message["epoch"], message["incarnation"]) == ("p", 42, "uuid")
        known = [AdoptedRoom(1, 42, 101, 7), AdoptedRoom(2, 42, 102, 7)]
        assert messages.decode_adopted(packets[2]) == known, "also what is to be released"
        assert messages.decode_rooms(packets[3]) == [(3, 3)], "what was not answered is asked again"
        assert messages.decode_rooms(packets[4]) == [(2, 4)], "nor was that acknowledged"
        assert [messages.decode_want(packet).room for packet in packets[6:8]] == [6, 7]

    def test_a_release_is_said_to_every_agent_until_it_is_durable(self, agent: FakeAgent, client: Client) -> None:
        announce(client)
        engine = agent.accept()
        client.prefill.register(1)
        engine.announced(42)
        engine.registered((1, 101, 7))
        client.prefill.poll()
        agent.stop()
        client.prefill.poll()
        client.prefill.release(1)
        agent.start()
        client.prefill.poll()
        for _ in range(2):
            engine = agent.accept()
            assert engine.kinds() == b"HAOL", "adopted, so that it can be released"
            agent.stop()
            client.prefill.poll()
            agent.start()
            client.prefill.poll()
        agent.accept().send(messages.encode_durable(2))
        client.prefill.poll()
        agent.stop()
        client.prefill.poll()
        agent.start()
        client.prefill.poll()
        assert agent.accept().kinds() == b"HA"

    def test_a_release_that_finds_the_agent_gone_is_not_lost(self, agent: FakeAgent, client: Client) -> None:
        announce(client)
        engine = agent.accept()
        client.prefill.register(1)
        engine.announced(42)
        engine.registered((1, 101, 7))
        client.prefill.poll()
        agent.stop()
        agent.start()
        client.prefill.release(1)
        client.prefill.poll()
        assert agent.accept().kinds() == b"HAOL"

    def test_a_failure_between_two_agents_is_not_lost(self, agent: FakeAgent, client: Client) -> None:
        announce(client)
        agent.stop()
        client.prefill.poll()
        client.prefill.fail(9, "why")
        agent.start()
        client.prefill.poll()
        packets = agent.accept().packets()
        assert b"".join(packet[:1] for packet in packets) == b"HAF"
        assert content_of(packets[2]) == {"room": 9, "reason": "why", "sequence": 1}

    def test_a_draining_rank_stays_one(self, agent: FakeAgent, client: Client, engine: FakeEngineSocket) -> None:
        announce(client)
        client.prefill.drain()
        agent.stop()
        client.prefill.poll()
        agent.start()
        client.prefill.poll()
        assert agent.accept().kinds() == b"HAN"

    def test_announcing_is_said_once(self, agent: FakeAgent, client: Client) -> None:
        announce(client)
        assert agent.accept().kinds() == b"HA"

    def test_lost_pushes_are_asked_for_again(self, client: Client, engine: FakeEngineSocket) -> None:
        announce(client)
        client.prefill.register(1)
        client.decode.want("p", 2)
        client.decode.want("p", 3)
        engine.resolved([ResolvedWant(1, 0, 5, 101, 7, 0)], 101)
        client.decode.poll()
        engine.packets()
        engine.send(messages.LOST_PUSHES)
        client.decode.poll()
        assert engine.kinds() == b"RWWP"
        assert client.decode.revision == 0, "not known until the agent has looked at every wait again"
        engine.registered((1, 101, 7))
        engine.view(150)
        assert client.prefill.poll() == [Registered(1, 101, 7, 42)]
        assert client.decode.revision == 150

    def test_closing_is_for_good(self, agent: FakeAgent, client: Client, engine: FakeEngineSocket) -> None:
        client.close()
        assert engine.has_left()
        assert client.prefill.poll() == []
        assert client.fileno() == -1
        assert not agent.has_visitor()

    def test_closing_is_said_and_detaching_is_not(self, agent: FakeAgent, socket_path: str) -> None:
        for end, said in ((Client.close, b"HB"), (Client.detach, b"H")):
            client = etcd_pd.connect(socket_path)
            client.fileno()
            end(client)
            assert agent.accept().kinds() == said


class TestHeartbeat:
    def test_a_silent_engine_gives_signs_of_life(self, agent: FakeAgent, socket_path: str) -> None:
        with etcd_pd.connect(socket_path, heartbeat=0.1) as client:
            client.prefill.poll()
            engine = agent.accept()
            assert content_of(engine.packets()[0])["heartbeat"] == 0.1

            def beats() -> bool:
                client.prefill.poll()
                return messages.PING in engine.packets()

            wait_until(beats, "a ping")

    def test_without_one_it_gives_none(self, client: Client, engine: FakeEngineSocket) -> None:
        for _ in range(20):
            client.prefill.poll()
        assert engine.packets() == []


class TestFork:
    def test_a_child_does_not_hold_the_socket(self, client: Client, engine: FakeEngineSocket) -> None:
        """Else the agent could not see its parent die."""
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(writes)
                os.read(reads, 1)
            finally:
                os._exit(0)
        os.close(reads)
        try:
            client.detach()
            wait_until(engine.has_left, "the connection ends, though the child lives")
        finally:
            os.close(writes)
            os.waitpid(child, 0)

    def test_the_parent_keeps_its_connection(self, client: Client, engine: FakeEngineSocket) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        engine.view(123)
        client.decode.poll()
        assert client.decode.revision == 123

    def test_the_child_s_copy_stays_closed(self, agent: FakeAgent, client: Client, engine: FakeEngineSocket) -> None:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                client.prefill.poll()
                client.decode.want("p", 1)
                status = 0 if client.fileno() == -1 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not agent.has_visitor()


class TestHostileAgent:
    @pytest.mark.parametrize(
        "packet",
        [
            b"?",
            b"h",
            b"h[]",
            b"a{}",
            b'a{"epoch":1}',
            b"u{}",
            b'u{"error":"InstanceConflict"}',
            b"e{}",
            b"j{}",
            b'j{"room":1,"error":"RoomConflict"}',
            b"r123",
            b"s",
            b"s123",
            b"v1",
            b"v" + bytes(8) + b"\x09" + bytes(8),
            b"x{}",
            b'x{"id":[]}',
            b"i{}",
            b'i{"id":"p","number":1,"names":["p"],"info":{},"ranks":[]}',
            b'i{"id":"p","number":1,"names":3,"info":null,"ranks":[]}',
            b'i{"id":"p","number":[],"names":["p"],"info":null,"ranks":[]}',
            b"\xff\xff",
        ],
    )
    def test_nonsense_is_a_protocol_error_and_the_connection_is_made_anew(
        self, agent: FakeAgent, client: Client, engine: FakeEngineSocket, packet: bytes
    ) -> None:
        announce(client)
        client.decode.want("p", 1)
        engine.send(packet)
        with pytest.raises(ProtocolError):
            client.prefill.poll()
        assert engine.has_left()
        assert client.prefill.poll() == []
        assert agent.accept().kinds() == b"HAWP"

    def test_an_answer_from_an_unknown_source_is_nonsense(self, client: Client, engine: FakeEngineSocket) -> None:
        client.decode.want("p", 1)
        engine.resolved([ResolvedWant(1, 0, 1, 1, 1, 200)], 101)
        with pytest.raises(ProtocolError):
            client.decode.poll()

    def test_what_nobody_asked_for_is_passed_over(self, client: Client, engine: FakeEngineSocket) -> None:
        engine.resolved([ResolvedWant(99, 0, 1, 1, 1, 0)], 101)
        engine.lost(99, 101)
        engine.send(next(messages.encode_registered([(5, 1, 1, 1, 1)])))
        engine.say(messages.REJECTED, room=5, error="RankLost", epoch=1, sequence=1)
        engine.send(messages.encode_durable(99))
        engine.announced(7)
        assert [*client.prefill.poll(), *client.decode.poll()] == []

    def test_another_version_is_said_and_every_wait_still_ends(
        self, agent: FakeAgent, client: Client, engine: FakeEngineSocket
    ) -> None:
        client.decode.want("p", 1, timeout=0.05)
        engine.say(messages.WELCOME, refused="the agent speaks protocol 9")
        with pytest.raises(AgentUnavailable, match="protocol 9"):
            client.prefill.poll()
        with pytest.raises(etcd_pd.RoomTimeout):
            client.decode.resolve("p", 1)

    def test_rooms_that_wait_for_a_full_socket_are_merged(self, client: Client, engine: FakeEngineSocket) -> None:
        """The agent pays for each packet, and it is behind already."""
        announce(client)
        engine.packets()
        rooms = list(range(9000))  # far more than any socket holds
        for room in rooms:
            client.prefill.register(room)
        packets: list[bytes] = []

        def heard() -> list[int]:
            client.prefill.poll()
            packets.extend(engine.packets())
            return [room for packet in packets for room, _ in messages.decode_rooms(packet)]

        wait_until(lambda: len(heard()) == len(rooms), "every room is heard of")
        assert heard() == rooms
        assert {packet[:1] for packet in packets} == {messages.REGISTER}
        assert len(packets) < len(rooms) / 2

    def test_a_flood_does_not_hold_the_caller(self, client: Client, engine: FakeEngineSocket) -> None:
        sent = 0
        try:
            while True:
                engine.view(200 + sent)
                sent += 1
        except BlockingIOError:
            pass
        client.decode.poll()
        assert client.decode.revision < 200 + sent - 1 or sent <= 256
        while client.decode.revision < 200 + sent - 1:
            client.decode.poll()


@pytest.mark.integration
def test_it_works_where_nothing_else_is_installed(agent: FakeAgent, socket_path: str, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    project = Path(etcd_pd.__file__).parents[1]
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=60)
    python = str(venv / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", str(project)]
    subprocess.run(install, check=True, timeout=120)
    program = f"""if True:
        import importlib.metadata, sys, time, etcd_pd
        assert "site-packages" in etcd_pd.__file__, etcd_pd.__file__
        installed = {{d.metadata["Name"].lower() for d in importlib.metadata.distributions()}}
        assert installed <= {{"etcd-pd", "pip", "setuptools"}}, installed
        client = etcd_pd.connect({socket_path!r})
        client.prefill.announce("p", rank=etcd_pd.Rank(0), topology=etcd_pd.Topology(), launch_id="l",
                                addresses=["h:1"], ip="ip", port=1)
        while not (events := client.prefill.poll()):
            time.sleep(0.01)
        print(events)
    """
    with child([python, "-I", "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        engine = wait_until(lambda: _accepted(agent), "the client connects", timeout=30)
        wait_until(lambda: messages.ANNOUNCE in engine.kinds(), "it announces")
        engine.welcome()
        engine.announced(42)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.strip() == str([Announced("p", "uuid", 42)])


def _accepted(agent: FakeAgent) -> FakeEngineSocket | None:
    try:
        return agent.accept()
    except BlockingIOError:
        return None
