"""The asyncio client with a fake agent: what only a broken agent shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from etcd_pd import AgentUnavailable, Rank, RegistrationError, ResolveError, RoomTimeout, Topology
from etcd_pd.client import aio
from etcd_pd.wire import messages
from etcd_pd.wire.messages import ResolvedWant
from tests.support.fake_agent import FakeAgent


@pytest.mark.asyncio
async def test_who_waits_is_answered_also_after_the_agent_talked_nonsense(agent: FakeAgent, socket_path: str) -> None:
    async with aio.connect(socket_path) as client:
        waiting = asyncio.create_task(client.decode.resolve("p", 7))
        while client.sync.state != "connected":
            await asyncio.sleep(0)
        nonsense = agent.accept()
        nonsense.send(messages.REGISTERED + b"?")
        while not nonsense.has_left():
            await asyncio.sleep(0)
        while client.sync.state != "connected":
            await asyncio.sleep(0)
        sane = agent.accept()
        sane.resolved([ResolvedWant(1, 3, 5, 101, 7, 0)], 101)
        assert (await waiting).dp_rank == 3


async def connected(client: aio.AsyncClient) -> None:
    while client.sync.state != "connected":
        await asyncio.sleep(0)


def announced(client: aio.AsyncClient) -> None:
    given = {"rank": Rank(0), "topology": Topology(), "launch_id": "l", "addresses": ["h:1"], "ip": "10.0.0.1"}
    client.sync.prefill.announce("p", port=1, **given)  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_nothing_is_kept_when_a_wait_is_cancelled(agent: FakeAgent, socket_path: str) -> None:
    async with aio.connect(socket_path) as client:
        for room in range(50):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.decode.resolve("p", room), 0.001)
        assert len(client.decode._resolved) == 0
        two = [asyncio.create_task(client.decode.resolve("p", 7)) for _ in range(2)]
        await asyncio.sleep(0)
        two[0].cancel()
        await connected(client)
        engine = agent.accept()
        await asyncio.sleep(0.01)
        [id] = [want.id for want in engine.wants() if want.room == 7]
        engine.resolved([ResolvedWant(id, 3, 5, 101, 7, 0)], 101)
        assert (await two[1]).dp_rank == 3, "who waits beside it is answered"


@pytest.mark.asyncio
async def test_later_waits_end_when_the_agent_refused_this_client(agent: FakeAgent, socket_path: str) -> None:
    async with aio.connect(socket_path) as client:
        waiting = asyncio.create_task(client.decode.resolve("p", 7))
        await connected(client)
        agent.accept().say(messages.WELCOME, refused="another version")
        for awaitable in (waiting, client.decode.resolve("p", 8), client.decode.follow("p")):
            with pytest.raises(AgentUnavailable, match="another version"):
                await asyncio.wait_for(awaitable, 10.0)


@pytest.mark.asyncio
@pytest.mark.parametrize("end", ["release", "fail"])
async def test_a_registration_ends_when_its_room_is_ended_first(agent: FakeAgent, socket_path: str, end: str) -> None:
    async with aio.connect(socket_path) as client:
        announced(client)
        waiting = asyncio.create_task(client.prefill.register(7))
        await asyncio.sleep(0)
        if end == "release":
            client.prefill.release(7)
        else:
            client.prefill.fail(7, "aborted")
        with pytest.raises(RegistrationError, match="before it was registered"):
            await asyncio.wait_for(waiting, 10.0)


@pytest.mark.asyncio
async def test_whoever_awaits_a_room_is_answered_when_it_is_done_with(agent: FakeAgent, socket_path: str) -> None:
    async with aio.connect(socket_path) as client:
        waiting = asyncio.create_task(client.decode.resolve("p", 7))
        losing = asyncio.create_task(client.decode.lost("p", 7))
        await asyncio.sleep(0)
        client.decode.done("p", 7)
        with pytest.raises(ResolveError, match="done with"):
            await asyncio.wait_for(waiting, 10.0)
        assert "done with" in str(await asyncio.wait_for(losing, 10.0))


@pytest.mark.asyncio
async def test_lost_says_why_when_the_room_has_ended_before(agent: FakeAgent, socket_path: str) -> None:
    async with aio.connect(socket_path) as client:
        with pytest.raises(RoomTimeout):
            await client.decode.resolve("p", 7, timeout=0.001)
        assert isinstance(await asyncio.wait_for(client.decode.lost("p", 7), 10.0), RoomTimeout)


@pytest.mark.asyncio
async def test_closing_ends_when_a_packet_arrives_in_the_same_moment(
    agent: FakeAgent, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    add_reader = loop.add_reader

    def add(descriptor: int, callback: Callable[[], None]) -> None:
        def read_and_close() -> None:
            callback()
            task.cancel()  # as close() does

        add_reader(descriptor, read_and_close)

    async with aio.connect(socket_path) as client:
        assert client._task is not None
        task = client._task
        monkeypatch.setattr(loop, "add_reader", add)
        await connected(client)
        agent.accept().send(messages.DRAINED)
        await asyncio.wait([task], timeout=2)
        ended = task.cancelled()
        task.cancel()
        assert ended
