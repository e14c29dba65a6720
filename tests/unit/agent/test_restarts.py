"""An agent ends and another takes its place: what engines hold, ended and follow, also where etcd went back."""

from __future__ import annotations

import asyncio
import copy
import time
from functools import partial
from pathlib import Path

import pytest

from etcd_pd import Announced, Described, Ended, PrefillLost, Rank, RankEnded, Registered, Resolved, Topology
from etcd_pd.core.records import Put
from etcd_pd.errors import StoreUnavailable
from etcd_pd.wire import messages
from etcd_pd.wire.values import FAILED
from tests.support.agent_in_memory import InMemory, running, until
from tests.support.packets import content_of, packet_of
from tests.support.raw_engine import heard, raw

pytestmark = pytest.mark.asyncio


async def test_what_was_failed_and_released_is_written_when_the_agent_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        prefill = await world.prefill()
        for room in range(20):
            await world.registered(prefill, room)
        for room in range(10):
            prefill.prefill.fail(room, "why")
            prefill.prefill.release(10 + room)
        await until(lambda: any(engine.said == 40 for engine in world.agent.server.connections), "all was said")
        world.clients.clear()
    values = [world.room(room) for room in range(20)]
    assert [value.state for value in values if value] == [FAILED] * 10, "and the released are gone"
    prefill.close()


async def test_what_could_not_be_written_is_said_to_the_next_agent(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        prefill = await world.prefill()
        for room in (1, 2):
            await world.registered(prefill, room)
        held = world.store.hold("txn")
        prefill.prefill.release(1)
        prefill.prefill.fail(2, "why")
        await until(lambda: sum(len(e.undurable) for e in world.agent.server.connections) == 2, "they were said")
        world.clients.clear()
        world.stop.set()
        await until(lambda: prefill.prefill.poll() == [] and prefill.state == "connecting", "the agent is gone")
    held.set()
    assert world.room(1) is not None
    async with running(tmp_path, world.store) as successor:
        successor.clients.append(prefill)
        await until(lambda: (prefill.prefill.poll(), successor.room(1) is None)[1], "it is released")
        await until(lambda: (value := successor.room(2)) is not None and value.state == FAILED, "it is failed")
        await until(lambda: (prefill.prefill.poll(), not len(prefill.prefill._intents))[1], "and that is acknowledged")


@pytest.mark.parametrize("named", [None, 0])
async def test_decode_is_notified_when_its_rank_died_while_its_agent_was_away(
    tmp_path: Path, named: int | None
) -> None:
    async with running(tmp_path, agent_id="decode") as world:
        prefill = await world.prefill()
        await world.registered(prefill, 7)
        decoder = world.client()
        decoder.decode.want("host:1", 7, dp_rank=named)
        found = (await world.event(decoder, Resolved)).assignment
        world.clients.remove(decoder)
    async with running(tmp_path, world.store) as successor:
        successor.clients.append(decoder)
        again = await successor.prefill(launch_id="another")
        ended = await successor.event(decoder, Ended)
        assert isinstance(ended.error, PrefillLost)
        assert (ended.error.dp_rank, ended.error.epoch) == (0, found.epoch)
        assert again.prefill.epoch != found.epoch


async def test_engines_learn_that_etcd_was_restored_when_their_agent_was_away(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        prefill, decoder = await world.prefill(), world.client()
        etcd = world.store.etcd
        before = (etcd.revision, dict(etcd.keys), list(etcd.history))
        epoch = prefill.prefill.epoch
        for room in range(50):
            await world.registered(prefill, room)
        decoder.decode.want("p", 7)
        await world.event(decoder, Resolved)
        world.clients.clear()
        world.stop.set()
        await until(lambda: prefill.prefill.poll() == [] and prefill.state == "connecting", "the agent is gone")
    etcd.revision, etcd.keys, etcd.history = before
    assert world.keys.rank("p", Rank(0)) in etcd.keys, "as it was before the rooms"
    async with running(tmp_path, world.store) as successor:
        successor.clients += [prefill, decoder]
        assert (await successor.event(prefill, RankEnded)).epoch == epoch
        assert isinstance((await successor.event(decoder, Ended)).error, PrefillLost)
        assert (await successor.event(prefill, Announced)).epoch != epoch
        again = await successor.registered(prefill, 7)
        assert again.epoch == prefill.prefill.epoch
        assert len(successor.agent.server.connections) == 2, "nobody was put out"


async def test_an_epoch_ends_when_a_restored_etcd_gives_the_same_number_to_the_next(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        prefill = await world.prefill()
        epoch = prefill.prefill.epoch
        await world.registered(prefill, 7)
        world.clients.clear()
    etcd = world.store.etcd
    etcd.revision, etcd.keys, etcd.history = epoch - 3, {}, []  # the agents' own key comes first, twice
    async with running(tmp_path, world.store) as successor:
        successor.clients.append(prefill)
        assert (await successor.event(prefill, RankEnded)).epoch == epoch
        assert (await successor.event(prefill, Announced)).epoch == epoch
        assert successor.room(7) is None
        await successor.registered(prefill, 7)
        assert successor.room(7) is not None


async def test_an_epoch_ends_when_etcd_was_restored_and_has_caught_up_before_the_rank_is_claimed(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as world:
        prefill = await world.prefill()
        backup = copy.deepcopy(world.store.etcd)
        epoch, key = prefill.prefill.epoch, world.keys.rank("p", Rank(0))
        await world.registered(prefill, 7)
        world.clients.clear()
    seen, former, world.store.etcd = prefill._seen.revision, backup.keys[key].lease, backup
    granting, calls = world.store.hold("grant"), world.store.calls
    async with running(tmp_path, world.store) as successor:
        successor.clients.append(prefill)
        await until(lambda: (prefill.prefill.poll(), prefill._seen.revision < seen)[1], "it is notified of the restore")
        while backup.revision <= seen:
            backup.txn([], [Put(b"/other", b"", 0)])
        granting.set()
        listed = calls.count("list")
        await until(lambda: calls.count("list") > listed + 2, "it has looked at the key")
        assert backup.keys[key].lease == former, "it is left to its lease"
        backup.revoke(former)
        assert (await successor.event(prefill, RankEnded)).epoch == epoch
        assert (await successor.event(prefill, Announced)).epoch != epoch


async def test_a_dead_epoch_stays_dead_when_its_engine_was_notified_and_its_agent_restarts(tmp_path: Path) -> None:
    async with running(tmp_path) as first:
        prefill = await first.prefill()
        epoch, key = prefill.prefill.epoch, first.keys.rank("p", Rank(0))
        backup = copy.deepcopy(first.store.etcd)
        first.clients.clear()
    store = first.store
    async with running(tmp_path, store) as second:
        second.clients.append(prefill)
        taken_over = second.agent.session
        await until(
            lambda: (prefill.prefill.poll(), store.etcd.keys[key].lease == taken_over.lease_id)[1], "it goes on"
        )
        await second.registered(prefill, 7)
        backup.cluster_id += 1
        for lease in backup._leases.values():
            lease.deadline = time.monotonic() + lease.ttl  # as a new leader does
        store.etcd = backup
        store.drop_watches()
        await second.event(prefill, RankEnded)
        await until(lambda: (prefill.prefill.poll(), prefill._seen.cluster_id == backup.cluster_id)[1], "it is synced")
        assert backup.keys[key].create_revision == epoch, "it has not expired yet"
        second.clients.clear()
    async with running(tmp_path, store) as third:
        third.clients.append(prefill)
        assert (await third.event(prefill, Announced)).epoch != epoch


async def test_following_is_answered_when_the_view_is_whole_and_not_before(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        prefill = await world.prefill()
        world.clients.clear()
    for _ in range(3):
        world.store.fail("list", StoreUnavailable("list", "not yet"))
    next_world = InMemory(tmp_path, world.store)
    serving = asyncio.create_task(next_world.agent.run(next_world.stop))
    decoder = next_world.client()
    try:
        await until(lambda: decoder.decode.poll() == [] and decoder.state == "connected", "it is there")
        decoder.decode.follow("p")
        described = await next_world.event(decoder, Described)
        assert described.instance is not None, "it was there all the time"
    finally:
        for client in (decoder, prefill):
            client.close()
        next_world.stop.set()
        await serving
        await next_world.store.close()


async def test_a_client_is_refused_with_what_to_upgrade_when_its_protocol_is_older(world: InMemory) -> None:
    for theirs, what in ((2, "engine's image"), (99, "upgrade the agent")):
        sock = raw(world.settings.socket_path)
        sock.send(packet_of(messages.HELLO, {"protocol": theirs, "heartbeat": None}))
        answer = await until(partial(heard, sock), "an answer")
        assert what in content_of(answer)["refused"]
        sock.close()


async def test_rooms_of_64_bits_are_registered_and_resolved(world: InMemory) -> None:
    prefill, decoder = await world.prefill(topology=Topology(dp=4)), world.client()
    for room in (2**63, 2**64 - 1):
        decoder.decode.want("p", room)
        assert isinstance(await world.registered(prefill, room), Registered)
        assert (await world.event(decoder, Resolved)).assignment.room == room


async def test_what_a_restore_brings_back_goes_when_its_process_is_gone(world: InMemory) -> None:
    prefill, decoder = await world.prefill(), world.client()
    decoder.decode.announce("d", address="10.0.0.9:1")
    etcd, keys = world.store.etcd, (world.keys.rank("p", Rank(0)), world.keys.prefill("p"), world.keys.decode("d"))
    await until(lambda: (decoder.decode.poll(), set(keys) <= set(etcd.keys))[1], "all stand")
    backup = copy.deepcopy(etcd)
    prefill.close()
    decoder.close()
    await until(lambda: not set(keys) & set(etcd.keys), "none does")
    world.store.etcd = backup
    world.store.drop_watches()
    await until(lambda: not set(keys) & set(backup.keys), "what came back has gone")
    again = await world.prefill()
    assert (await world.registered(again, 7)).epoch == again.prefill.epoch
