"""Instances that vanish and come back, that end for good, and that share an address: whose rooms decode is given."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from etcd_pd import (
    Announced,
    Described,
    Ended,
    InstanceUnknown,
    PrefillLost,
    Rank,
    Registered,
    Resolved,
    RoomTimeout,
    Topology,
)
from etcd_pd.core.records import Delete, Put
from etcd_pd.wire.values import InstanceInfo, RankEndpoint
from tests.support.agent_in_memory import InMemory, running, until

pytestmark = pytest.mark.asyncio


async def test_a_wait_is_not_called_unknown_when_a_rank_stands_whose_instance_is_missing(tmp_path: Path) -> None:
    async with running(tmp_path, instance_timeout_seconds=0.1) as world:
        standing = RankEndpoint(Rank(0), "10.0.0.1", 9, "start").to_json()
        world.store.etcd.txn([], [Put(b"/cell/v1/prefill/p/ranks/0.0.0.0", standing, 0)])
        world.store.publish()
        await until(lambda: "p" in world.agent.view.instances, "the rank is seen")
        decoder = world.client()
        decoder.decode.want("h:1", 7, timeout=0.5)
        ended = await world.event(decoder, Ended)
        assert isinstance(ended.error, RoomTimeout)


async def test_no_wait_is_lost_when_the_session_is_lost_and_the_rank_comes_back(world: InMemory) -> None:
    prefill, decoder = await world.prefill(), world.client()
    for room in range(100):
        decoder.decode.want("host:1", room)
    await until(lambda: world.agent.view.waits._pending, "decode waits")
    epoch = prefill.prefill.epoch
    world.store.etcd.revoke(world.agent.session.lease_id)
    world.store.publish()
    again = await world.event(prefill, Announced)
    assert again.epoch != epoch
    for room in range(100):
        prefill.prefill.register(room)
    found: list[object] = []

    def hear() -> bool:
        prefill.prefill.poll()
        found.extend(decoder.decode.poll())
        return len(found) >= 100

    await until(hear, "answers")
    assert {event.assignment.epoch for event in found if isinstance(event, Resolved)} == {again.epoch}
    assert not [event for event in found if isinstance(event, Ended)]


async def test_a_wait_ends_when_its_instance_vanished_and_does_not_come_back(tmp_path: Path) -> None:
    async with running(tmp_path, instance_timeout_seconds=0.2) as world:
        decoder, etcd = world.client(), world.store.etcd
        info = InstanceInfo("i1", "launch", ("host:1",), Topology(dp=4), "round_robin")
        etcd.txn([], [Put(world.keys.prefill("p"), info.to_json(), 0)])
        world.store.publish()
        decoder.decode.want("p", 7)
        await until(lambda: world.agent.view.waits._pending, "decode waits")
        etcd.txn([], [Delete(world.keys.prefill("p"))])
        world.store.publish()
        assert isinstance((await world.event(decoder, Ended)).error, InstanceUnknown)


async def test_a_wait_is_lost_at_once_when_the_last_process_of_its_instance_ends(world: InMemory) -> None:
    prefill, decoder = await world.prefill(), world.client()
    decoder.decode.want("p", 7)
    await until(lambda: world.agent.view.waits._pending, "decode waits")
    prefill.close()
    ended = await world.event(decoder, Ended)
    assert isinstance(ended.error, PrefillLost) and ended.error.dp_rank == -1
    await until(
        lambda: not any(key.startswith(world.keys.prefill("p")) for key in world.store.etcd.keys), "no key left"
    )


async def test_the_same_launch_can_start_again_when_its_instance_has_ended(world: InMemory) -> None:
    first = await world.prefill()
    first.close()
    second = await world.prefill()
    assert (await world.registered(second, 7)).epoch == second.prefill.epoch


async def test_the_newest_claimant_of_an_address_answers_when_an_older_one_ends(world: InMemory) -> None:
    older, decoder = await world.prefill(instance="old"), world.client()
    decoder.decode.follow("host:1")
    assert (await world.event(decoder, Described)).instance is not None
    await world.prefill(instance="new", launch_id="another")
    await until(
        lambda: (decoder.decode.poll(), (found := decoder.decode.instance("host:1")) and found.id == "new")[1],
        "the new one is known",
    )
    older.close()
    await until(lambda: world.agent.view.find("old") is None, "the older one has ended")
    await asyncio.sleep(0.01)
    told = [event.instance for event in decoder.decode.poll() if isinstance(event, Described)]
    assert None not in told
    found = decoder.decode.instance("host:1")
    assert found and found.id == "new"


async def test_a_room_is_attributed_to_its_own_instance_when_another_claims_the_address(world: InMemory) -> None:
    older, decoder = await world.prefill(instance="old"), world.client()
    for room in (1, 2):
        decoder.decode.want("host:1", room)
    await until(lambda: world.agent.view.waits._pending, "decode waits")
    await world.registered(older, 1)
    assert (await world.event(decoder, Resolved)).assignment.instance == "old"
    newer = await world.prefill(instance="new", launch_id="another")
    decoder.decode.want("host:1", 3)
    newer.prefill.register(3)
    await world.event(newer, Registered)
    assert (await world.event(decoder, Resolved)).assignment.instance == "new"
    await world.registered(older, 2)
    assert (await world.event(decoder, Resolved)).assignment.instance == "old"
