"""The asyncio client with a fake agent: what only a broken agent shows."""

from __future__ import annotations

import asyncio

import pytest

from etcd_pd import aio, protocol
from etcd_pd.protocol import ResolvedWant
from tests.support.fake_agent import FakeAgent


@pytest.mark.asyncio
async def test_who_waits_is_answered_also_after_the_agent_talked_nonsense(agent: FakeAgent, socket_path: str) -> None:
    async with aio.connect(socket_path) as client:
        waiting = asyncio.create_task(client.decode.resolve("p", 7))
        while client.sync.state != "connected":
            await asyncio.sleep(0)
        nonsense = agent.accept()
        nonsense.send(protocol.REGISTERED + b"?")
        while not nonsense.has_left():
            await asyncio.sleep(0)
        while client.sync.state != "connected":
            await asyncio.sleep(0)
        sane = agent.accept()
        sane.resolved([ResolvedWant(1, 3, 5, 101, 7, 0)], 101)
        assert (await waiting).dp_rank == 3
