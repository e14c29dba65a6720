"""Whoever reaches the socket: bytes that mean harm close their own connection, and strangers are turned away."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from etcd_pd.agent.connection import Peer
from etcd_pd.errors import ConfigError
from etcd_pd.wire import messages
from etcd_pd.wire.limits import MAX_ROOM
from etcd_pd.wire.messages import WantedRoom
from tests.support.agent_in_memory import InMemory, running, until
from tests.support.packets import content_of, packet_of
from tests.support.raw_engine import HELLO, heard, is_closed, raw


def packet(kind: bytes, **message: Any) -> bytes:
    return packet_of(kind, message)


ANNOUNCE: dict[str, Any] = {
    "instance": "p",
    "rank": [0, 0, 0, 0],
    "topology": {"dp": 4, "cp": 1, "tp": 1, "pp": 1},
    "launch_id": "launch",
    "addresses": ["host:1"],
    "ip": "10.0.0.1",
    "port": 5000,
    "policy": "round_robin",
    "fingerprint": "",
}

HOSTILE = [
    b"\xff",
    b"H",
    b"H[]",
    b"A{}",
    packet(b"A", **ANNOUNCE | {"rank": [4, 0, 0, 0]}),
    packet(b"A", **ANNOUNCE | {"rank": ["../..", 0, 0, 0]}),
    packet(b"A", **ANNOUNCE | {"rank": 7}),
    packet(b"A", **ANNOUNCE | {"rank": [0] * 9}),
    packet(b"A", **ANNOUNCE | {"topology": {"dp": 10**9}}),
    packet(b"A", **ANNOUNCE | {"topology": {"xp": 1}}),
    packet(b"A", **ANNOUNCE | {"topology": "dp"}),
    packet(b"A", **ANNOUNCE | {"instance": "a/b"}),
    packet(b"A", **ANNOUNCE | {"addresses": 7}),
    packet(b"A", **ANNOUNCE | {"addresses": ["x"] * 1000}),
    packet(b"A", **ANNOUNCE | {"fingerprint": "\ud800"}),
    packet(b"A", **ANNOUNCE | {"fingerprint": "x" * 10_000}),
    packet(b"A", **ANNOUNCE | {"port": "5000"}),
    packet(b"A", **ANNOUNCE | {"key_epoch": 2**70}),
    packet(b"A", **ANNOUNCE | {"key_epoch": "x"}),
    packet(b"A", **ANNOUNCE | {"epoch": -1}),
    packet(b"A", **ANNOUNCE | {"linger": float("nan")}),
    packet(b"A", **ANNOUNCE) + b"}",
    b"E{}",
    b"V",
    b"V[]",
    packet(b"V", gone=1),
    packet(b"E", instance="a b", address=""),
    b"R1234567",
    b"L1",
    b"O1",
    b"F{}",
    packet(b"F", room="x", reason="r"),
    packet(b"F", room=-1, reason="r"),
    packet(b"F", room=MAX_ROOM + 1, reason="r"),
    packet(b"F", room=1, reason="\ud800"),
    packet(b"F", room=1, reason="x" * 10_000),
    packet(b"F", room=1, reason=None),
    packet(b"F", room=1, reason="r"),
    packet(b"F", room=1, reason="r", sequence=0),
    packet(b"F", room=1, reason="r", sequence="1"),
    packet(b"H", protocol=messages.VERSION, heartbeat=None, revision=-1),
    packet(b"H", protocol=messages.VERSION, heartbeat=None, revision=1, cluster_id=2**70),
    b"W",
    messages.encode_want(WantedRoom(1, 1, -1, 1.0, "")),
    messages.encode_want(WantedRoom(1, 1, -1, 1.0, "a/b")),
    messages.encode_want(WantedRoom(1, 1, -1, float("nan"), "p")),
    messages.encode_want(WantedRoom(1, 1, -1, 1.0, "p")) + b"\xff",
    b"X1",
    b"K\xff",
    b"K",
    packet(b"H", protocol=messages.VERSION, heartbeat="often"),
    packet(b"H", protocol=messages.VERSION, heartbeat=float("nan")),
    packet(b"H", protocol=messages.VERSION, heartbeat=-1),
    packet(b"H", protocol=messages.VERSION, heartbeat=1e-9),
    b"A" + b"[" * 60_000,
    b"A" * 65_537,
]


class TestHostilePackets:
    @pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
    @pytest.mark.asyncio
    async def test_they_close_that_connection_and_no_other(self, world: InMemory, hostile: bytes) -> None:
        prefill = await world.prefill(1)
        before = world.agent.stats.protocol_errors
        with raw(world.settings.socket_path) as sock:
            sock.send(HELLO)
            sock.send(hostile)
            await until(lambda: is_closed(sock), "it is closed")
        assert world.agent.stats.protocol_errors == before + 1
        await world.registered(prefill, 7)

    @pytest.mark.asyncio
    async def test_the_first_packet_must_be_hello(self, world: InMemory) -> None:
        with raw(world.settings.socket_path) as sock:
            sock.send(messages.PING)
            await until(lambda: is_closed(sock), "it is closed")

    @pytest.mark.asyncio
    async def test_a_client_is_refused_when_its_version_is_another(self, world: InMemory) -> None:
        with raw(world.settings.socket_path) as sock:
            sock.send(packet(b"H", protocol=99, heartbeat=None))
            answer = await until(lambda: heard(sock), "an answer")
            assert "99" in content_of(answer)["refused"]
            await until(lambda: is_closed(sock), "it is closed")

    @pytest.mark.asyncio
    async def test_rooms_of_who_announced_nothing_are_rejected(self, world: InMemory) -> None:
        with raw(world.settings.socket_path) as sock:
            sock.send(HELLO)
            for said in (b"R", b"L"):
                sock.send(messages.encode_room(said, 5, 1))
            sock.send(packet(b"F", room=5, reason="r"))
            sock.send(b"N{}")
            sock.send(b"O" + struct.pack("<qqqq", 5, 1, 1, 1))
            answer = await until(lambda: heard(sock, b"j"), "a rejection")
            assert content_of(answer)["room"] == 5
        assert world.room(5) is None

    @pytest.mark.asyncio
    async def test_one_that_leaves_at_once_is_no_matter(self, world: InMemory) -> None:
        for _ in range(20):
            raw(world.settings.socket_path).close()
        await world.prefill()


@pytest.mark.asyncio
async def test_peers_are_known_by_what_the_kernel_says() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        peer = Peer(ours)
        assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())


@pytest.mark.parametrize(("allowed", "served"), [((), False), ((0, os.getuid()), True)])
@pytest.mark.asyncio
async def test_others_are_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: tuple[int, ...], served: bool
) -> None:
    mode = 0o660 if allowed else 0o600
    async with running(tmp_path, allowed_uids=allowed, socket_mode=mode) as world:
        monkeypatch.setattr("etcd_pd.agent.server.os.getuid", lambda: os.geteuid() + 1)
        with raw(world.settings.socket_path) as sock:
            if served:
                sock.send(HELLO)
                await until(lambda: heard(sock), "a welcome")
            else:
                await until(lambda: is_closed(sock), "it is closed")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=80) | st.sampled_from(HOSTILE), min_size=1, max_size=8))
def test_no_bytes_stop_the_agent(tmp_path_factory: pytest.TempPathFactory, packets: list[bytes]) -> None:
    async def scenario() -> None:
        async with running(tmp_path_factory.mktemp("a")) as world:
            with raw(world.settings.socket_path) as sock:
                sock.send(HELLO)
                for hostile in packets:
                    try:
                        sock.send(hostile)
                    except OSError:
                        break
                await world.registered(await world.prefill(3, "unharmed", addresses=["other:1"]), MAX_ROOM)

    asyncio.run(scenario())


@pytest.mark.asyncio
async def test_a_socket_of_another_user_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as theirs:
        theirs.bind(str(path))
    monkeypatch.setattr("etcd_pd.agent.server.os.getuid", lambda: os.geteuid() + 1)
    with pytest.raises(ConfigError, match=f"{path} belongs to uid {os.geteuid()}"):
        async with running(tmp_path):
            pass
    assert path.exists()
