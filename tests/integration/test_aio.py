"""The client for asyncio hosts, through a real agent and a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import etcd_pd
from etcd_pd.client import aio
from tests.support.agents import AgentProcess
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.integration


@pytest.fixture
def agent(etcd: EtcdServer, root: str) -> Iterator[AgentProcess]:
    # a short session, since an impostor is refused only after a predecessor's session would have ended
    short = ("--session-ttl-seconds=2", "--etcd-request-timeout-seconds=0.5")
    with AgentProcess(etcd.endpoint, root, "agent", *short) as process:
        yield process


async def announced(client: aio.AsyncClient, dp_rank: int = 1, launch_id: str = "launch-1") -> etcd_pd.Announced:
    return await client.prefill.announce(
        "prefill-0",
        rank=etcd_pd.Rank(dp_rank),
        topology=etcd_pd.Topology(dp=4),
        launch_id=launch_id,
        addresses=["10.0.0.1:8998"],
        ip="127.0.0.1",
        port=9000,
    )


@pytest.mark.asyncio
async def test_a_room_is_resolved_by_id_and_by_address(agent: AgentProcess) -> None:
    async with aio.connect(agent.socket_path) as prefill, aio.connect(agent.socket_path) as decode:
        epoch = (await announced(prefill)).epoch
        waiting = asyncio.create_task(decode.decode.resolve("10.0.0.1:8998", 7))
        registered = await prefill.prefill.register(7)
        assignment = await waiting
        assert (assignment.instance, assignment.dp_rank, assignment.epoch) == ("prefill-0", 1, epoch)
        assert (assignment.revision, assignment.lease_id) == (registered.token, registered.lease_id)
        assert await decode.decode.resolve("prefill-0", 7) == assignment


@pytest.mark.asyncio
async def test_registering_again_gives_the_same_token(agent: AgentProcess) -> None:
    async with aio.connect(agent.socket_path) as client:
        await announced(client)
        assert await client.prefill.register(7) == await client.prefill.register(7)


@pytest.mark.asyncio
async def test_a_room_of_another_rank_is_a_conflict(agent: AgentProcess) -> None:
    async with aio.connect(agent.socket_path) as one, aio.connect(agent.socket_path) as two:
        epoch = (await announced(one, 1)).epoch
        await announced(two, 2)
        await one.prefill.register(7)
        with pytest.raises(etcd_pd.RoomConflict) as caught:
            await two.prefill.register(7)
        assert caught.value.holder == f"prefill-0/1@{epoch}"


@pytest.mark.asyncio
async def test_another_launch_is_refused_while_the_first_lives(agent: AgentProcess) -> None:
    async with aio.connect(agent.socket_path) as one, aio.connect(agent.socket_path) as two:
        await announced(one)
        with pytest.raises(etcd_pd.InstanceConflict):
            await announced(two, launch_id="launch-2")


@pytest.mark.asyncio
async def test_the_loss_of_a_rank_reaches_who_waits_and_who_was_answered(agent: AgentProcess) -> None:
    async with aio.connect(agent.socket_path) as decode:
        async with aio.connect(agent.socket_path) as prefill:
            await announced(prefill)
            await prefill.prefill.register(7)
            await decode.decode.resolve("prefill-0", 7)
            answered = asyncio.create_task(decode.decode.lost("prefill-0", 7))
            unanswered = asyncio.create_task(decode.decode.resolve("prefill-0", 8))
        assert isinstance(await answered, etcd_pd.PrefillLost)
        with pytest.raises(etcd_pd.PrefillLost):
            await unanswered


@pytest.mark.asyncio
async def test_a_wait_ends_at_its_own_deadline(agent: AgentProcess) -> None:
    async with aio.connect(agent.socket_path) as prefill, aio.connect(agent.socket_path) as decode:
        await announced(prefill)
        with pytest.raises(etcd_pd.RoomTimeout):
            await decode.decode.resolve("prefill-0", 9, timeout=0.2)


@pytest.mark.asyncio
async def test_closing_answers_whoever_still_waits(agent: AgentProcess) -> None:
    client = aio.connect(agent.socket_path)
    async with client:
        waiting = asyncio.create_task(client.decode.resolve("prefill-0", 9))
        await asyncio.sleep(0)
    with pytest.raises(etcd_pd.AgentUnavailable):
        await waiting


@pytest.mark.asyncio
async def test_drain_ends_with_the_last_room(agent: AgentProcess) -> None:
    async with aio.connect(agent.socket_path) as client:
        await announced(client)
        await client.prefill.register(7)
        draining = asyncio.create_task(client.prefill.drain())
        await asyncio.sleep(0)
        with pytest.raises(etcd_pd.RankDraining):
            await client.prefill.register(8)
        client.prefill.release(7)
        await draining
