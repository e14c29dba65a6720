"""Engines that have seen an etcd before a restore, and an agent that starts after it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from etcd_pd import Announced, Client, PrefillLost, Rank, RankEnded, Resolved
from etcd_pd.core.records import KeyValue, Put
from etcd_pd.wire import messages
from tests.support.agent_in_memory import InMemory, running, until

pytestmark = pytest.mark.asyncio


def replace_etcd(world: InMemory) -> None:
    """Another etcd, without anything, is at the same address."""
    etcd = world.store.etcd
    etcd.cluster_id += 1
    etcd.keys, etcd.history, etcd._leases = dict[bytes, KeyValue](), [], {}


async def taken_over(world: InMemory, prefill: Client) -> list[object]:
    """What an engine is notified of until its rank hangs on the session of this agent."""
    key, events = world.keys.rank("p", Rank(0)), list[object]()

    def is_taken_over() -> bool:
        events.extend(prefill.prefill.poll())
        kv = world.store.etcd.keys.get(key)
        return kv is not None and kv.lease == world.agent.session.lease_id

    await until(is_taken_over, "its rank stands")
    return events


@pytest.mark.parametrize("learns", [True, False])
async def test_an_epoch_outlives_its_agent_when_it_was_announced_before_its_engine_was_to_learn_of_a_restore(
    tmp_path: Path, learns: bool
) -> None:
    async with running(tmp_path) as first:
        prefill = await first.prefill()
        first.clients.clear()
    store = first.store
    replace_etcd(first)
    failing = first.fail_reads(first.keys.agent("agent"))  # so that no agent can compare histories
    async with running(tmp_path, store) as second:
        second.clients.append(prefill)
        await second.event(prefill, Announced)
        epoch = prefill.prefill.epoch
        if learns:
            failing.clear()
            (engine,) = second.agent.server.connections
            await until(lambda: (prefill.prefill.poll(), engine.seen is None)[1], "it is notified")
        await second.registered(prefill, 8)
        second.clients.clear()
    failing.clear()
    async with running(tmp_path, store) as third:
        third.clients.append(prefill)
        events = await taken_over(third, prefill)
        assert not [event for event in events if isinstance(event, RankEnded)]
        assert prefill.prefill.epoch == epoch


async def test_a_wait_that_an_etcd_before_has_answered_ends_when_the_connection_breaks_before_its_end_is_said(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as world:
        prefill, decoder = await world.prefill(), world.client()
        for _ in range(50):
            world.store.etcd.txn([], [Put(b"/other", b"", 0)])
        await world.registered(prefill, 8)
        decoder.decode.want("p", 8)
        await world.event(decoder, Resolved)
        (engine,) = [one for one in world.agent.server.connections if one.wants]
        send = engine.send

        def cut_after_the_history(packet: bytes) -> None:
            send(packet)
            if packet[:1] == messages.HISTORY_LOST:
                engine.push = lambda packets: None  # type: ignore[method-assign]
                asyncio.get_running_loop().call_soon(engine.close, "cut")

        engine.send = cut_after_the_history  # type: ignore[method-assign]
        world.store.etcd = type(world.store.etcd)(world.store.etcd._clock, world.store.etcd.cluster_id + 1)
        world.store.drop_watches()

        def is_lost() -> bool:
            decoder.decode.poll()
            try:
                decoder.decode.peek("p", 8)
            except PrefillLost:
                return True
            return False

        await until(is_lost, "it ends, though the revision that it was answered at is far off")
