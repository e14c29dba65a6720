"""One agent on an in-memory store: engines in, etcd out, and everything that may go wrong between them."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from pathlib import Path

import pytest

import etcd_pd
from etcd_pd import (
    Announced,
    Client,
    Drained,
    Ended,
    InstanceUnknown,
    PrefillLost,
    Rank,
    RankEnded,
    Registered,
    Rejected,
    Resolved,
    RoomConflict,
    RoomFailed,
    RoomsNotWatched,
    Topology,
)
from etcd_pd.core.records import Delete, Put
from etcd_pd.errors import LeaseNotFound, StoreBusy, StoreRejected, StoreTimeout, StoreUnavailable
from etcd_pd.wire import messages
from etcd_pd.wire.limits import MAX_ROOM
from etcd_pd.wire.messages import WantedRoom
from etcd_pd.wire.values import RoomValue
from tests.support.agent_in_memory import InMemory, running, until
from tests.support.memory_etcd import MemoryEtcd
from tests.support.memory_store import MemoryStore
from tests.support.packets import packet_of
from tests.support.raw_engine import HELLO, heard, is_closed, packets, raw

pytestmark = pytest.mark.asyncio

TIMEOUT = StoreTimeout("txn", "no answer")
DOWN = StoreUnavailable("txn", "nobody listens")


def decode(world: InMemory, *rooms: int, instance: str = "p") -> Client:
    """A client that wants rooms."""
    client = world.client()
    for room in rooms:
        client.decode.want(instance, room)
    return client


class TestTheWay:
    async def test_a_room_travels_from_prefill_to_decode(self, world: InMemory) -> None:
        prefill = await world.prefill(dp_rank=2)
        client = decode(world, 77)
        found = await world.registered(prefill, 77)
        event = await world.event(client, Resolved)
        assert event.assignment == etcd_pd.Assignment(
            "p", 77, 2, prefill.prefill.epoch, found.token, found.lease_id, "registry"
        )
        prefill.prefill.release(77)
        await until(lambda: world.room(77) is None, "its key is gone")

    async def test_a_failed_room_fails_its_waits(self, world: InMemory) -> None:
        prefill, client = await world.prefill(), decode(world, 77, 78)
        await world.registered(prefill, 77)
        await world.event(client, Resolved)
        for room in (77, 78):
            prefill.prefill.fail(room, f"reason {room}")
            ended = await world.event(client, Ended)
            assert isinstance(ended.error, RoomFailed)
            assert (ended.error.room, ended.error.reason) == (room, f"reason {room}")

    async def test_who_waits_is_notified_at_once_when_an_engine_ends(self, world: InMemory) -> None:
        prefill, other = await world.prefill(0), await world.prefill(1)
        client = decode(world, 77, 78)
        await world.registered(prefill, 77)
        await world.registered(other, 78)
        for _ in range(2):
            await world.event(client, Resolved)
        prefill.close()
        ended = await world.event(client, Ended)
        assert isinstance(ended.error, PrefillLost)
        assert (ended.error.room, ended.error.dp_rank) == (77, 0)
        assert client.decode.resolve_nowait("p", 78) is not None, "the other rank's rooms go on"

    async def test_nothing_is_left_when_the_last_rank_ended(self, world: InMemory) -> None:
        (await world.prefill()).close()
        await until(lambda: not world.store.etcd.scan(world.keys.prefill("p")).kvs, "its keys are gone")

    async def test_siblings_are_all_answered(self, world: InMemory) -> None:
        topology = Topology(dp=1, tp=4)
        clients = [world.client() for _ in range(4)]
        for tp, client in enumerate(clients):
            world.announce(client, rank=Rank(0, 0, tp), topology=topology, port=5000 + tp)
        epochs = {(await world.event(client, Announced)).epoch for client in clients}
        assert len(epochs) == 1, "one rank, one epoch"
        for client in clients:
            client.prefill.register(7)
        tokens = {(await world.event(client, Registered)).token for client in clients}
        assert len(tokens) == 1

    async def test_losing_one_sibling_ends_the_rank_for_all(self, world: InMemory) -> None:
        topology = Topology(dp=2, tp=2)
        clients = [world.client() for _ in range(2)]
        for tp, client in enumerate(clients):
            world.announce(client, rank=Rank(1, 0, tp), topology=topology, port=5000 + tp)
        for client in clients:
            await world.event(client, Announced)
        clients[1].close()
        assert isinstance(await world.event(clients[0], RankEnded), RankEnded)

    async def test_two_instances_own_a_room_each_and_two_ranks_do_not(self, world: InMemory) -> None:
        first, second, other = [await world.prefill(n, i) for n, i in ((0, "p"), (1, "p"), (0, "q"))]
        await world.registered(first, 7)
        await world.registered(other, 7)
        second.prefill.register(7)
        rejected = await world.event(second, Rejected)
        assert isinstance(rejected.error, RoomConflict)
        assert rejected.error.holder == f"p/0@{first.prefill.epoch}"

    async def test_drain_ends_when_the_last_room_did(self, world: InMemory) -> None:
        prefill = await world.prefill()
        await world.registered(prefill, 7)
        prefill.prefill.drain()
        key = world.keys.rank("p", Rank(0))
        await until(lambda: b"draining" in world.store.etcd.keys[key].value, "etcd knows")
        assert prefill.prefill.poll() == []
        prefill.prefill.release(7)
        await world.event(prefill, Drained)

    async def test_a_failed_room_does_not_hold_up_a_drain(self, world: InMemory) -> None:
        prefill = await world.prefill()
        await world.registered(prefill, 7)
        prefill.prefill.fail(7, "r")
        prefill.prefill.drain()
        await world.event(prefill, Drained)

    async def test_draining_at_once_is_no_conflict_with_oneself(self, world: InMemory) -> None:
        client = world.client()
        world.announce(client)
        client.prefill.drain()
        await world.event(client, Drained)
        await world.event(client, Announced)

    async def test_an_unknown_instance_is_said_soon(self, tmp_path: Path) -> None:
        async with running(tmp_path, instance_timeout_seconds=0.1) as world:
            ended = await world.event(decode(world, 7, instance="nowhere:1"), Ended)
            assert isinstance(ended.error, InstanceUnknown)
            assert ended.error.instance == "nowhere:1"

    async def test_but_not_while_the_agent_is_cut_off(self, tmp_path: Path) -> None:
        async with running(tmp_path, instance_timeout_seconds=0.1) as world:
            world.store.hold("watch")
            world.store.drop_watches()
            await until(lambda: world.agent.watcher.state.value == "stale", "it is stale")
            client = decode(world, 7, instance="nowhere:1")
            await asyncio.sleep(0.3)
            assert client.decode.poll() == []
            world.store.hold("watch").set()
            await world.event(client, Ended)


class TestUnknownOutcomes:
    @pytest.mark.parametrize("done", [True, False])
    async def test_of_an_announcement(self, world: InMemory, done: bool) -> None:
        """What its own lost answer left in etcd is no predecessor to wait for."""
        client = world.client()
        world.store.fail("txn", TIMEOUT, done=done)
        world.announce(client)
        await world.event(client, Announced)
        await world.registered(client, 7)

    @pytest.mark.parametrize("done", [True, False])
    async def test_of_an_announcement_whose_engine_then_ends(self, world: InMemory, done: bool) -> None:
        client = world.client()
        world.store.fail("txn", TIMEOUT, done=done)
        gate = world.store.hold("txn")
        world.announce(client)
        client.fileno()
        await until(lambda: world.agent.announcer.ranks, "it is being announced")
        client.close()
        await until(lambda: not world.agent.announcer.ranks, "it left")
        gate.set()
        await until(lambda: not world.agent.announcer.background.tasks, "everything was said")
        assert not world.store.etcd.scan(world.keys.prefill("p")).kvs

    @pytest.mark.parametrize("done", [True, False])
    async def test_of_registrations(self, world: InMemory, done: bool) -> None:
        prefill = await world.prefill()
        world.store.fail("txn", TIMEOUT, done=done)
        found = await world.registered(prefill, 7)
        assert world.store.etcd.keys[world.keys.room("p", 7)].create_revision == found.token

    async def test_of_a_withdrawal(self, world: InMemory) -> None:
        prefill = await world.prefill()
        world.store.fail("txn", TIMEOUT, done=True)
        prefill.close()
        await until(lambda: not world.store.etcd.scan(world.keys.prefill("p")).kvs, "its keys are gone")

    async def test_etcd_is_down_for_a_while(self, world: InMemory) -> None:
        prefill = await world.prefill()
        for op in ("grant", "txn", "read", "txn", "read"):
            world.store.fail(op, DOWN)
        for room in range(100):
            prefill.prefill.register(room)
        rooms: set[int] = set()
        while len(rooms) < 100:
            rooms.add((await world.event(prefill, Registered)).room)

    async def test_and_registrations_wait_only_so_long(self, tmp_path: Path) -> None:
        async with running(tmp_path, registration_timeout_seconds=0.3) as world:
            prefill = await world.prefill()
            for _ in range(200):
                world.store.fail("grant", DOWN)
            prefill.prefill.register(7)
            rejected = await world.event(prefill, Rejected)
            assert isinstance(rejected.error, etcd_pd.RegistrationTimeout)
            world.store._faults.clear()
            await world.registered(prefill, 7)

    async def test_a_room_is_seen_and_nothing_is_stale_when_the_watch_moves_to_another_connection(
        self, tmp_path: Path
    ) -> None:
        async with running(tmp_path, watch_silence_seconds=0.3) as world:
            prefill, client = await world.prefill(), decode(world, 7)
            states: list[str] = []
            world.agent.watcher._on_state = lambda state: states.append(state.value)
            (before,) = world.store._watches
            world.store.move()
            await until(lambda: world.store._watches and before not in world.store._watches, "another watch")
            await world.registered(prefill, 7)
            await world.event(client, Resolved)
            assert states == [] and len(world.store._watches) == 1

    async def test_the_watch_stays_when_none_can_be_opened_on_the_other_connection(self, tmp_path: Path) -> None:
        async with running(tmp_path, watch_silence_seconds=0.3) as world:
            prefill, client = await world.prefill(), decode(world, 7)
            (before,) = world.store._watches
            for _ in range(3):
                world.store.fail("watch", DOWN)
            world.store.move()
            await until(lambda: world.store.calls.count("watch") > 3, "it was tried")
            assert before in world.store._watches
            await world.registered(prefill, 7)
            await world.event(client, Resolved)

    async def test_a_refused_room_costs_the_others_nothing(self, world: InMemory) -> None:
        prefill = await world.prefill()
        gate = world.store.hold("txn")
        for _ in range(2):
            world.store.fail("txn", StoreRejected("txn", "no space"))
        for room in range(2):
            prefill.prefill.register(room)
        gate.set()
        rejected = await world.event(prefill, Rejected)
        assert rejected.room in (0, 1)
        assert (await world.event(prefill, Registered)).room == 1 - rejected.room

    async def test_a_registration_waits_and_a_release_goes_on_when_etcd_is_full(self, world: InMemory) -> None:
        prefill = await world.prefill()
        await world.registered(prefill, 7)
        full = StoreBusy("txn", "mvcc: database space exceeded")
        world.store.refuse = lambda op, puts: full if puts else None
        prefill.prefill.register(8)
        prefill.prefill.release(7)
        await until(lambda: world.room(7) is None, "the release is written")
        assert world.room(8) is None
        world.store.refuse = None
        assert (await world.event(prefill, Registered)).room == 8

    async def test_a_registration_is_given_up_in_time_when_etcd_stays_full(self, tmp_path: Path) -> None:
        async with running(tmp_path, registration_timeout_seconds=0.5) as world:
            prefill = await world.prefill()
            world.store.refuse = lambda op, puts: StoreBusy(op, "too many requests")
            prefill.prefill.register(8)
            rejected = await world.event(prefill, Rejected)
            assert isinstance(rejected.error, etcd_pd.RegistrationTimeout)

    async def test_a_deadline_is_kept_when_leases_cannot_be_revoked(self, tmp_path: Path) -> None:
        async with running(tmp_path, registration_timeout_seconds=0.5, bucket_max_rooms=1) as world:
            prefill = await world.prefill()
            for room in range(5):
                await world.registered(prefill, room)
            revoking = world.store.hold("revoke")
            for room in range(5):
                prefill.prefill.release(room)
            await until(
                lambda: world.store.calls.count("revoke") == 4, "all are being revoked but the one that takes rooms"
            )
            world.store.refuse = lambda op, puts: StoreBusy(op, "full") if puts else None
            prefill.prefill.register(9)
            rejected = await world.event(prefill, Rejected)
            assert isinstance(rejected.error, etcd_pd.RegistrationTimeout) and not revoking.is_set()
            revoking.set()

    async def test_a_failure_arrives_and_one_line_says_why_it_is_late_when_etcd_is_full(
        self, world: InMemory, caplog: pytest.LogCaptureFixture
    ) -> None:
        prefill, client = await world.prefill(), decode(world, 7)
        await world.registered(prefill, 7)
        await world.event(client, Resolved)
        for _ in range(3):
            world.store.fail("txn", StoreBusy("txn", "mvcc: database space exceeded"))
        prefill.prefill.fail(7, "out of memory")
        ended = await world.event(client, Ended)
        assert isinstance(ended.error, etcd_pd.RoomFailed) and ended.error.reason == "out of memory"
        assert caplog.text.count("database space exceeded") == 1


class TestLog:
    async def test_an_idle_agent_is_silent_when_nothing_changes(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("etcd_pd.agent.agent.SUMMARY_SECONDS", 0.02)
        caplog.set_level("INFO")
        async with running(tmp_path) as world:
            prefill = await world.prefill()
            await world.registered(prefill, 7)
            await until(lambda: "summary registered=1" in caplog.text, "what was done is summed up")
            await until(lambda: "engines=1" in caplog.text.splitlines()[-1], "and the last change")
            looks = world.store.calls.count("keep_alive")
            lines = caplog.text.count("summary")
            await until(lambda: world.store.calls.count("keep_alive") > looks, "some time passed")
            assert caplog.text.count("summary") <= lines + 1

    async def test_a_failed_room_leaves_a_line_at_both_ends_with_its_reason(
        self, world: InMemory, caplog: pytest.LogCaptureFixture
    ) -> None:
        prefill, client = await world.prefill(), decode(world, 7)
        await world.registered(prefill, 7)
        await world.event(client, Resolved)
        prefill.prefill.fail(7, "out of memory")
        await world.event(client, Ended)
        lines = [record.getMessage() for record in caplog.records if record.name.endswith("incidents")]
        assert lines == ["RoomFailed room=7 instance=p dp_rank=0: out of memory"], "one agent has both ends here"


class TestLeases:
    async def test_a_revoked_session_means_a_new_epoch(self, world: InMemory) -> None:
        prefill = await world.prefill()
        epoch = prefill.prefill.epoch
        client = decode(world, 7)
        await world.registered(prefill, 7)
        await world.event(client, Resolved)
        world.store.etcd.revoke(world.agent.session.lease_id)
        world.store.publish()
        ended = await world.event(client, Ended)
        assert isinstance(ended.error, PrefillLost)
        assert (await world.event(prefill, Announced)).epoch > epoch

    async def test_rooms_share_a_lease_that_goes_when_they_do(self, world: InMemory) -> None:
        prefill = await world.prefill()
        leases = {(await world.registered(prefill, room)).lease_id for room in range(5)}
        assert len(leases) == 1
        for room in range(5):
            prefill.prefill.release(room)
        await until(lambda: not leases & set(world.store.etcd.leases()), "the empty lease is revoked")

    async def test_a_bucket_revoked_by_hand_is_replaced(self, world: InMemory) -> None:
        prefill = await world.prefill()
        first = await world.registered(prefill, 1)
        world.store.etcd.revoke(first.lease_id)
        second = await world.registered(prefill, 2)
        assert second.lease_id != first.lease_id
        assert world.room(1) is None and world.room(2) is not None
        prefill.prefill.release(1)
        prefill.prefill.drain()
        prefill.prefill.release(2)
        await world.event(prefill, Drained)

    async def test_a_lease_lost_between_grant_and_use_is_replaced(self, world: InMemory) -> None:
        prefill = await world.prefill()
        await world.registered(prefill, 1)
        world.store.fail("txn", LeaseNotFound("txn"))
        await world.registered(prefill, 2)

    async def test_no_more_rooms_than_a_bucket_may_hold(self, tmp_path: Path) -> None:
        async with running(tmp_path, bucket_max_rooms=10) as world:
            prefill = await world.prefill()
            for room in range(100):
                prefill.prefill.register(room)
            for _ in range(100):
                found = await world.event(prefill, Registered)
            leases = [kv.lease for kv in world.store.etcd.scan(world.keys.rooms()).kvs]
            assert len(leases) == 100 and found.lease_id in leases
            assert max(leases.count(lease) for lease in leases) <= 10


class TestWatch:
    async def test_events_of_the_meantime_arrive_when_the_agent_is_back(self, world: InMemory) -> None:
        prefill = await world.prefill()
        client = decode(world, 7)
        await until(lambda: client.decode.poll() == [] and client.decode.revision, "the agent has looked at the want")
        gate = world.store.hold("watch")
        world.store.drop_watches()
        await until(lambda: client.decode.poll() == [] and client.decode.view == "stale", "it is said")
        epoch = prefill.prefill.epoch
        world.store.etcd.txn([], [Put(world.keys.room("p", 7), RoomValue(0, epoch).to_json(), 0)])
        with pytest.raises(etcd_pd.ViewStale):
            client.decode.resolve_nowait("p", 7)
        gate.set()
        await world.event(client, Resolved)
        await until(lambda: client.decode.poll() == [] and client.decode.view == "synced", "it is synced")

    async def test_also_after_a_compaction(self, world: InMemory) -> None:
        prefill, client = await world.prefill(), decode(world, 7, 8)
        await world.registered(prefill, 8)
        await world.event(client, Resolved)
        gate = world.store.hold("watch")
        world.store.drop_watches()
        await until(lambda: world.agent.watcher.state.value == "stale", "it is stale")
        etcd, epoch = world.store.etcd, prefill.prefill.epoch
        etcd.txn([], [Put(world.keys.room("p", 7), RoomValue(0, epoch).to_json(), 0)])
        etcd.txn([], [Delete(world.keys.rank("p", Rank(0)))])
        etcd.compact()
        gate.set()
        lost = {(await world.event(client, Ended)).error.room for _ in range(2)}
        assert lost == {7, 8}
        assert world.agent.watcher.resyncs == 2
        assert (await world.event(prefill, Announced)).epoch > epoch

    async def test_a_frozen_server_is_noticed(self, tmp_path: Path) -> None:
        async with running(tmp_path, watch_silence_seconds=0.3) as world:
            watches = world.store.calls.count("watch")
            for watch in list(world.store._watches):
                watch.freeze()
            await until(lambda: world.store.calls.count("watch") > watches, "another watch")
            await until(lambda: world.agent.watcher.state.value == "synced", "it is synced")

    async def test_a_quiet_one_is_left_alone(self, tmp_path: Path) -> None:
        async with running(tmp_path, watch_silence_seconds=0.3) as world:
            await asyncio.sleep(1.0)
            assert world.store.calls.count("watch") == 1

    async def test_large_revisions_come_in_fragments(self, tmp_path: Path) -> None:
        store = MemoryStore(fragment=1)
        async with running(tmp_path, store) as world:
            prefill = await world.prefill()
            client = decode(world, *range(50))
            for room in range(50):
                prefill.prefill.register(room)
            rooms: set[int] = set()
            while len(rooms) < 50:
                rooms.add((await world.event(client, Resolved)).assignment.room)

    async def test_another_history_starts_everything_anew(self, world: InMemory) -> None:
        prefill, client = await world.prefill(), decode(world, 7)
        await world.registered(prefill, 7)
        await world.event(client, Resolved)
        world.store.etcd = MemoryEtcd(cluster_id=99)
        world.store.drop_watches()
        ended = await world.event(client, Ended)
        assert isinstance(ended.error, PrefillLost)
        await world.event(prefill, Announced)
        await world.registered(prefill, 8)

    async def test_an_older_store_with_the_same_numbers_is_no_way_back(self, world: InMemory) -> None:
        """A restored etcd may give a rank the very epoch that it had: what was known is lost all the same."""
        prefill, client = await world.prefill(), decode(world, 7, 8)
        before = prefill.prefill.epoch
        await world.registered(prefill, 7)
        await world.event(client, Resolved)
        for _ in range(20):
            await world.store.txn([], [Put(b"/cell/v1/elsewhere", b"", 0)])
        gate = world.store.hold("watch")
        world.store.etcd = MemoryEtcd(time.monotonic)
        world.store.etcd.txn([], [Put(b"/cell/v1/elsewhere", b"", 0)])
        world.store.drop_watches()
        key = world.keys.rank("p", Rank(0))
        await until(lambda: key in world.store.etcd.keys, "the rank is announced there before that is known")
        assert world.store.etcd.keys[key].create_revision == before
        gate.set()
        assert (await world.event(client, Ended)).error.room == 7
        assert (await world.event(prefill, RankEnded)).epoch == before
        await world.event(prefill, Announced)
        await world.registered(prefill, 8)
        assert (await world.event(client, Resolved)).assignment.room == 8, "nothing of it was lost"

    async def test_a_room_is_not_taken_over_on_the_word_of_another_history(self, world: InMemory) -> None:
        """Its holder's epoch is unknown to a view that has not heard of the restore yet, and lives."""
        prefill = await world.prefill(1)
        snapshot = copy.deepcopy(world.store.etcd)
        for _ in range(20):
            await world.store.txn([], [Put(b"/cell/v1/elsewhere", b"", 0)])
        await until(lambda: world.agent.view.revision == world.store.etcd.revision, "the view is ahead")
        key, own = world.keys.room("p", 7), world.keys.rank("p", Rank(1))
        epoch = snapshot.txn([], [Put(world.keys.rank("p", Rank(0)), snapshot.keys[own].value, 0)]).header.revision
        token = snapshot.txn([], [Put(key, RoomValue(0, epoch).to_json(), 0)]).header.revision
        world.store.etcd = snapshot
        prefill.prefill.register(7)
        await until(lambda: world.store.calls.count("read") > 1, "it was looked at")
        assert snapshot.keys[key].create_revision == token

    async def test_nothing_counts_as_withdrawn_when_a_restored_session_ends_whose_processes_live(
        self, world: InMemory
    ) -> None:
        prefill, rank = await world.prefill(), world.keys.rank("p", Rank(0))
        backup = copy.deepcopy(world.store.etcd)
        backup.cluster_id, lease_id = 99, backup.keys[rank].lease
        world.store.etcd = backup
        world.store.drop_watches()
        await world.event(prefill, RankEnded)
        await world.event(prefill, Announced)
        assert lease_id not in backup.leases()
        gone = [event.key for event in backup.history if event.kv is None]
        assert gone.index(world.keys.agent("agent")) < gone.index(rank), "as when it expires"

    async def test_an_engine_that_ends_amid_another_history_leaves_nothing(self, world: InMemory) -> None:
        prefill = await world.prefill()
        gate = world.store.hold("watch")
        world.store.etcd = MemoryEtcd(time.monotonic, cluster_id=99)
        world.store.drop_watches()
        key = world.keys.rank("p", Rank(0))
        await until(lambda: key in world.store.etcd.keys, "the rank is announced there before that is known")
        writes = world.store.hold("txn")
        gate.set()
        await until(lambda: key not in world.store.etcd.keys, "that is known: its session there is over")
        prefill.close()
        await until(lambda: not world.agent.announcer.ranks, "it left")
        writes.set()
        await until(lambda: not world.store.etcd.scan(world.keys.prefill("p")).kvs, "its keys are gone")

    async def test_waiting_for_the_view_does_not_flood_etcd(self, world: InMemory) -> None:
        prefill = await world.prefill()
        gate = world.store.hold("watch")
        world.store.drop_watches()
        await until(lambda: world.agent.watcher.state.value == "stale", "it is stale")
        world.store.etcd.txn([], [Put(world.keys.room("p", 7), RoomValue(3, 1).to_json(), 0)])
        before = len(world.store.calls)
        prefill.prefill.register(7)
        await asyncio.sleep(0.5)
        assert len(world.store.calls) - before < 200
        gate.set()
        await world.event(prefill, Registered)


class TestTheEnd:
    async def test_without_engines_nothing_is_left(self, tmp_path: Path) -> None:
        async with running(tmp_path) as world:
            prefill = await world.prefill()
            await world.registered(prefill, 7)
            prefill.close()
            await until(lambda: not world.agent.server.connections, "it left")
        assert world.store.etcd.keys == {}
        assert world.store.etcd.leases() == []
        assert not os.path.exists(world.settings.socket_path)

    async def test_with_engines_everything_is_left_to_a_successor(self, tmp_path: Path) -> None:
        async with running(tmp_path) as world:
            prefill = await world.prefill()
            found = await world.registered(prefill, 7)
            epoch = prefill.prefill.epoch
            decoder = decode(world, 7, 8)
            await world.event(decoder, Resolved)
            world.clients.clear()
            world.stop.set()
            await until(lambda: prefill.prefill.poll() == [] and prefill.state == "connecting", "the agent is gone")
        assert world.keys.rank("p", Rank(0)) in world.store.etcd.keys
        async with running(tmp_path, world.store) as successor:
            assert successor.settings.socket_path == world.settings.socket_path
            successor.clients += [prefill, decoder]
            again = await successor.registered(prefill, 8)
            assert (prefill.prefill.epoch, again.token > found.token) == (epoch, True)
            assert (await successor.event(decoder, Resolved)).assignment.room == 8
            assert decoder.decode.resolve_nowait("p", 7) is not None
            prefill.prefill.release(7)
            await until(lambda: successor.room(7) is None, "what its predecessor wrote is released")

    async def test_a_part_that_fails_ends_the_agent(self, tmp_path: Path) -> None:
        """A bug must not look like quiet."""

        class Broken(MemoryStore):
            async def keep_alive(self, lease_id: int) -> int:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            async with running(tmp_path, Broken(), session_ttl_seconds=5) as world:
                await until(lambda: not os.path.exists(world.settings.socket_path), "the agent ended")


class TestLots:
    async def test_all_or_nothing(self, world: InMemory) -> None:
        one, two = await world.prefill(0), await world.prefill(1)
        one.prefill.register_lot(range(120))
        assert len({(await world.event(one, Registered)).token for _ in range(120)}) == 1
        two.prefill.register_lot([200, 119, 201])
        for _ in range(3):
            error = (await world.event(two, Rejected)).error
            assert isinstance(error, RoomConflict) and error.room == 119
        assert world.room(200) is None and world.room(201) is None
        two.prefill.register_lot([200, 201])
        assert (await world.event(two, Registered)).token == (await world.event(two, Registered)).token

    async def test_a_lot_beyond_its_bound_is_no_protocol_of_ours(self, world: InMemory) -> None:
        with raw(world.settings.socket_path) as sock:
            sock.send(HELLO)
            sock.send(messages.encode_lot((room, room + 1) for room in range(121)))
            await until(lambda: is_closed(sock), "it is shown the door")


class TestBounds:
    async def test_a_slow_engine_asks_again_when_it_lost_pushes(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running(tmp_path, push_queue_max_bytes=65_536) as world:
            prefill = await world.prefill()
            slow, quick = world.client(), world.client()
            rooms = range(8_000)
            for room in rooms:
                slow.decode.want("p", room)

            def wants() -> int:
                slow.decode.poll()
                return sum(len(engine.wants) for engine in world.agent.server.connections)

            await until(lambda: wants() == len(rooms), "every want was heard")
            for room in rooms:
                prefill.prefill.register(room)
                if room % 100 == 0:
                    await world.registered(prefill, MAX_ROOM - room)
                    quick.decode.want("p", MAX_ROOM - room)
                    assert (await world.event(quick, Resolved)).assignment.room == MAX_ROOM - room
            assert "pushes dropped" in caplog.text
            resolved: set[int] = set()

            def catch_up() -> bool:
                resolved.update(e.assignment.room for e in slow.decode.poll() if isinstance(e, Resolved))
                prefill.prefill.poll()
                return len(resolved) == len(rooms)

            await until(catch_up, "the slow one has every answer in the end")

    async def test_an_engine_that_reads_nothing_at_all_is_cut_off(self, tmp_path: Path) -> None:
        """Else what must arrive, the state of the instances that it follows, would pile up for ever."""
        async with running(tmp_path, push_queue_max_bytes=65_536) as world:
            deaf = world.client()
            deaf.decode.follow("p")
            await until(lambda: deaf.fileno() >= 0 and world.agent.server.connections, "it is connected")
            [connection] = world.agent.server.connections
            state = packet_of(messages.INSTANCE, {"id": "p", "padding": "x" * 60_000})
            for _ in range(100):
                connection.send(state)
            await until(lambda: connection.closed, "the agent has given it up")
            prefill = await world.prefill()
            deaf.decode.want("p", 7)
            await world.registered(prefill, 7)
            assert (await world.event(deaf, Resolved)).assignment.room == 7, "when it reads again it is served again"

    async def test_an_engine_that_promised_signs_of_life_is_dead_without(self, world: InMemory) -> None:
        prefill, client = await world.prefill(), decode(world, 7)
        wedged = world.client(heartbeat=0.2)
        world.announce(wedged, 1)
        await world.event(wedged, Announced)
        await world.registered(wedged, 7)
        await world.event(client, Resolved)
        ended = await world.event(client, Ended)
        assert isinstance(ended.error, PrefillLost) and ended.error.dp_rank == 1
        assert prefill.prefill.epoch == world.agent.view.epoch("p", 0)

    async def test_more_registrations_than_may_wait_are_refused(self, tmp_path: Path) -> None:
        async with running(tmp_path, queue_max_rooms=10) as world:
            prefill = await world.prefill()
            gate = world.store.hold("grant")
            for room in range(50):
                prefill.prefill.register(room)
            rejected = await world.event(prefill, Rejected)
            assert isinstance(rejected.error, etcd_pd.AgentBusy)
            gate.set()
            await world.event(prefill, Registered)


class TestInFlight:
    async def test_two_full_transactions_and_no_more(self, tmp_path: Path) -> None:
        async with running(tmp_path, batch_max_rooms=2) as world:
            prefill = await world.prefill()
            await world.registered(prefill, 100)  # its lease serves the others
            gate, before = world.store.hold("txn"), world.store.calls.count("txn")
            for room in range(10):
                prefill.prefill.register(room)
            await until(lambda: len(world.agent.book) == 6, "all that can be is under way")
            assert world.store.calls.count("txn") == before + 2
            gate.set()
            tokens = [(await world.event(prefill, Registered)).token for _ in range(10)]
            assert len(set(tokens)) == 5, "two rooms a transaction"

    async def test_rooms_gather_behind_one_that_is_not_full(self, tmp_path: Path) -> None:
        async with running(tmp_path) as world:
            prefill = await world.prefill()
            gate, before = world.store.hold("txn"), world.store.calls.count("txn")
            prefill.prefill.register(0)
            await until(lambda: world.store.calls.count("txn") == before + 1, "it is under way")
            for room in range(1, 10):
                prefill.prefill.register(room)
            await until(lambda: len(world.agent.book) == 9, "the others wait")
            assert world.store.calls.count("txn") == before + 1
            gate.set()
            tokens = [(await world.event(prefill, Registered)).token for _ in range(10)]
            assert len(set(tokens)) == 2


class TestPrefillOnly:
    async def test_rooms_are_registered_and_no_event_arrives_when_the_agent_serves_prefill_alone(
        self, tmp_path: Path
    ) -> None:
        async with running(tmp_path, prefill_only=True) as world:
            prefill = await world.prefill()
            found = await world.registered(prefill, 7)
            other = await world.prefill(1)
            assert other.prefill.epoch > found.token, "what is no room is heard of"
            assert len(world.agent.view.rooms) == 0
            assert world.agent.view.revision >= other.prefill.epoch

    async def test_a_wait_ends_with_the_reason_and_the_engine_keeps_its_rank(self, tmp_path: Path) -> None:
        async with running(tmp_path, prefill_only=True) as world:
            prefill = await world.prefill()
            epoch = prefill.prefill.epoch
            prefill.decode.announce("d", address="10.0.0.9:1")
            prefill.decode.want("p", 7)
            ended = await world.event(prefill, Ended)
            assert isinstance(ended.error, RoomsNotWatched) and "prefill_only" in str(ended.error)
            assert (await world.registered(prefill, 7)).epoch == epoch, "nothing else has ended"

    async def test_a_dead_epochs_room_is_taken_over(self, tmp_path: Path) -> None:
        """Though the agent never comes to hear of the room itself."""
        async with running(tmp_path, prefill_only=True) as world:
            prefill, other = await world.prefill(0), await world.prefill(1)
            token = (await world.registered(prefill, 7)).token
            prefill.close()
            await until(lambda: not world.agent.view.epoch("p", 0), "it is known to be gone")
            assert (await world.registered(other, 7)).token > token
            assert world.room(7) == RoomValue(1, other.prefill.epoch)

    async def test_a_living_epochs_room_is_not(self, tmp_path: Path) -> None:
        async with running(tmp_path, prefill_only=True) as world:
            prefill, other = await world.prefill(0), await world.prefill(1)
            await world.registered(prefill, 7)
            other.prefill.register(7)
            assert isinstance((await world.event(other, Rejected)).error, RoomConflict)

    async def test_an_older_store_is_noticed_by_the_rooms_that_were_written(self, tmp_path: Path) -> None:
        async with running(tmp_path, prefill_only=True) as world:
            prefill = await world.prefill()
            snapshot, epoch = copy.deepcopy(world.store.etcd), prefill.prefill.epoch
            for room in range(5):
                await world.registered(prefill, room)
            world.store.etcd = snapshot
            world.store.drop_watches()
            assert (await world.event(prefill, RankEnded)).epoch == epoch
            await world.event(prefill, Announced)
            await world.registered(prefill, 1)


class TestDuplicates:
    async def test_a_second_process_of_a_rank_does_not_harm_the_first_by_leaving(self, world: InMemory) -> None:
        first = await world.prefill()
        await world.registered(first, 7)
        second = world.client()
        world.announce(second, port=9999)
        second.fileno()
        await until(lambda: len(world.agent.announcer.ranks) == 2, "it is being announced")
        second.close()
        await until(lambda: len(world.agent.announcer.ranks) == 1, "it left")
        first.prefill.release(7)
        await until(lambda: world.room(7) is None, "the first one's room is still its own")
        assert first.prefill.epoch == world.agent.view.epoch("p", 0)


class TestGroups:
    """Rule 11: what a rank vouches for with its revision has arrived there."""

    async def test_a_new_want_is_looked_at_before_the_revision_holds(self, world: InMemory) -> None:
        prefill = await world.prefill()
        found = await world.registered(prefill, 7)
        client = world.client()
        await until(lambda: client.decode.poll() == [] and client.decode.revision >= found.token, "it is synced")
        client.decode.want("p", 7)
        assert client.decode.revision == 0
        admission = client.decode.admit(found.token)
        assert admission == ([], [])
        await until(lambda: client.decode.poll() is not None and client.decode.revision, "it was looked at")
        assert [a.room for a in client.decode.admit(client.decode.revision).admitted] == [7]

    async def test_a_quiet_cell_comes_past_an_agents_list(self, world: InMemory, tmp_path: Path) -> None:
        """A group admits nothing below the largest floor, so an agent that has listed moves all the others on."""
        client = world.client()
        await until(lambda: client.decode.poll() == [] and client.decode.revision, "it is synced")
        world.store.etcd.txn([], [Put(b"/another/cell", b"", 0)])
        directory = tmp_path / "other"
        directory.mkdir()
        async with running(directory, world.store, agent_id="other") as other:
            late = other.client()
            await until(lambda: late.decode.poll() == [] and late.decode.floor, "it has listed")
            floor = late.decode.floor
            assert client.decode.floor < floor
            await until(lambda: client.decode.poll() == [] and client.decode.revision >= floor, "the first is past it")

    @pytest.mark.parametrize("said", [messages.encode_ping(9), messages.PING, messages.encode_follow("p")])
    async def test_nothing_overtakes_the_answer_to_a_want(self, world: InMemory, said: bytes) -> None:
        prefill = await world.prefill()
        await world.registered(prefill, 7)
        with raw(world.settings.socket_path) as sock:
            sock.send(HELLO)
            await until(lambda: heard(sock, messages.VIEW), "it is let in")
            sock.send(messages.encode_want(WantedRoom(1, 7, -1, 60.0, "p")))
            sock.send(said)
            told: list[bytes] = []
            last = messages.INSTANCE if said[:1] == messages.FOLLOW else messages.VIEW

            def answered() -> bool:
                told.extend(packets(sock))
                kinds = [packet[:1] for packet in told]
                return messages.RESOLVED in kinds and last in kinds[kinds.index(messages.RESOLVED) :]

            await until(answered, "both answers")
            before = told[: next(n for n, packet in enumerate(told) if packet[:1] == messages.RESOLVED)]
            assert not [packet for packet in before if packet[:1] == messages.VIEW]
            assert len([packet for packet in before if packet[:1] == messages.INSTANCE]) <= 1, "its own introduction"

    async def test_a_late_want_is_admitted_as_it_was_and_then_failed(self, world: InMemory) -> None:
        prefill = await world.prefill()
        early, late = decode(world, 7), world.client()
        token = (await world.registered(prefill, 7)).token
        await world.event(early, Resolved)
        prefill.prefill.fail(7, "a fault")
        await world.event(early, Ended)
        late.decode.want("p", 7)
        await world.event(late, Ended)
        for client in (early, late):
            [admitted] = client.decode.admit(token).admitted
            assert (admitted.room, admitted.revision, admitted.instance) == (7, token, "p")
            assert [error.room for error in client.decode.admit(client.decode.revision).failed] == [7]

    async def test_no_revision_is_pushed_ahead_when_something_ended_at_it(self, world: InMemory) -> None:
        """One list resolves a room and ends another: a rank that has heard half of it does not vouch for the whole."""
        prefill, other = await world.prefill(0), await world.prefill(1)
        await world.registered(other, 8)
        with raw(world.settings.socket_path) as sock:
            sock.send(HELLO)
            for id, room in ((1, 7), (2, 8)):
                sock.send(messages.encode_want(WantedRoom(id, room, -1, 60.0, "p")))
            await until(lambda: heard(sock, messages.RESOLVED), "the room that is there")
            gate = world.store.hold("watch")
            world.store.drop_watches()
            await until(lambda: world.agent.watcher.state.value == "stale", "it is stale")
            etcd = world.store.etcd
            etcd.txn([], [Delete(world.keys.rank("p", Rank(1)))])
            value = RoomValue(0, prefill.prefill.epoch).to_json()
            written = etcd.txn([], [Put(world.keys.room("p", 7), value, 0)]).header.revision
            etcd.compact()
            packets(sock)
            gate.set()
            said: list[bytes] = []

            def revision() -> int:
                said.extend(packets(sock))
                return _last_revision(said)

            await until(lambda: revision() >= written, "all of it")
        kinds = [packet[:1] for packet in said]
        vouching = next(number for number in range(len(said)) if _last_revision(said[: number + 1]) >= written)
        assert kinds.index(messages.RESOLVED) < vouching
        assert kinds.index(messages.ENDED) < vouching


def _last_revision(said: list[bytes]) -> int:
    """The highest that the agent vouched for."""
    views = [packet for packet in said if packet[:1] in (messages.VIEW, messages.RESOLVED)]
    return max((messages.decode_view(packet).revision for packet in views), default=0)
