"""Rooms from prefill to decode through two agents and a real etcd."""

from __future__ import annotations

import json
from collections.abc import Iterator

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
    Registered,
    Rejected,
    Resolved,
    RoomConflict,
    RoomFailed,
    Topology,
)
from tests.support.agents import AgentProcess, announce, wait_for
from tests.support.etcd_server import EtcdServer
from tests.support.etcdctl import EtcdCtl
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

ID = "prefill-0"
ADDRESS = "prefill-0.test:8998"


class World:
    """Two agents of one cell, and what lies in etcd."""

    def __init__(self, ctl: EtcdCtl, root: str, near: AgentProcess, far: AgentProcess) -> None:
        self.ctl, self.root = ctl, root
        self.near, self.far = near, far
        self._clients: list[Client] = []

    def client(self, agent: AgentProcess) -> Client:
        self._clients.append(agent.client())
        return self._clients[-1]

    def prefill(self, dp_rank: int = 0, agent: AgentProcess | None = None, **changes: object) -> Client:
        client = self.client(agent or self.near)
        announce(client, dp_rank=dp_rank, **changes)  # type: ignore[arg-type]
        return client

    def decode(self, *rooms: int, instance: str = ID, agent: AgentProcess | None = None) -> Client:
        client = self.client(agent or self.far)
        for room in rooms:
            client.decode.want(instance, room)
        return client

    def key(self, room: int) -> str:
        return f"{self.root}/v1/rooms/{ID}/{room}"

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def world(etcd: EtcdServer, root: str) -> Iterator[World]:
    ttl = "--session-ttl-seconds=5"
    with (
        AgentProcess(etcd.endpoint, root, "near", ttl) as near,
        AgentProcess(etcd.endpoint, root, "far", ttl, "--instance-timeout-seconds=0.5") as far,
    ):
        world = World(etcd.ctl, root, near, far)
        yield world
        world.close()


def registered(client: Client, room: int) -> Registered:
    client.prefill.register(room)
    return wait_for(client, Registered)


@pytest.mark.parametrize("instance", [ID, ADDRESS])
def test_decode_learns_the_rank_of_a_room(world: World, instance: str) -> None:
    prefill = world.prefill(dp_rank=3)
    decode = world.decode(77, instance=instance)
    prefill.prefill.register(77)
    event = wait_for(decode, Resolved)  # read at once: a client that does not look for 2 s calls its view stale
    found = wait_for(prefill, Registered)
    kv = world.ctl.get(world.key(77))
    assert kv is not None
    assert (kv.create_revision, kv.lease) == (found.token, found.lease_id)
    assert json.loads(kv.value) == {"dp_rank": 3, "epoch": prefill.prefill.epoch, "state": "assigned"}
    assert event.assignment == etcd_pd.Assignment(
        ID, 77, 3, prefill.prefill.epoch, found.token, found.lease_id, "registry"
    )
    described = decode.decode.instance(instance)
    assert described is not None
    assert [(e.ip, e.port) for e in described.endpoints(3)] == [("127.0.0.1", 9003)]


def test_the_lease_of_a_room_outlives_the_bootstrap_timeout(world: World) -> None:
    found = registered(world.prefill(), 77)
    lease = world.ctl.lease(found.lease_id)
    assert lease.ttl >= 300
    assert lease.keys == (world.key(77),)


def test_a_released_room_s_key_and_lease_go(world: World) -> None:
    prefill = world.prefill()
    found = registered(prefill, 77)
    prefill.prefill.release(77)
    wait_until(lambda: world.ctl.get(world.key(77)) is None, "its key is gone")
    wait_until(lambda: found.lease_id not in world.ctl.leases(), "its lease is gone")


def test_a_failed_room_says_why(world: World) -> None:
    prefill, decode = world.prefill(), world.decode(77)
    prefill.prefill.fail(77, "out of memory")
    ended = wait_for(decode, Ended)
    assert isinstance(ended.error, RoomFailed) and ended.error.reason == "out of memory"


def test_many_rooms_in_any_order(world: World) -> None:
    prefills = [world.prefill(dp) for dp in range(4)]
    rooms = [2**63 - 1 - n * 7919 for n in range(1000)]
    decode = world.decode(*rooms)
    for number, room in enumerate(rooms):
        prefills[number % 4].prefill.register(room)
    resolved: dict[int, int] = {}

    def all_of_them() -> bool:
        for client in prefills:
            client.prefill.poll()
        events = decode.decode.poll()
        resolved.update((e.assignment.room, e.assignment.dp_rank) for e in events if isinstance(e, Resolved))
        return len(resolved) == len(rooms)

    wait_until(all_of_them, "all are resolved", timeout=20)
    assert resolved == {room: number % 4 for number, room in enumerate(rooms)}
    assert world.ctl.count_prefix(f"{world.root}/v1/rooms/") == len(rooms)
    leases = {kv.lease for kv in world.ctl.get_prefix(f"{world.root}/v1/rooms/")}
    assert len(leases) <= 3


def test_siblings_on_two_nodes_share_rank_and_room(world: World) -> None:
    topology = Topology(dp=2, tp=2)
    clients = [world.client(world.near), world.client(world.far)]
    for tp, client in enumerate(clients):
        client.prefill.announce(
            ID,
            rank=Rank(1, 0, tp),
            topology=topology,
            launch_id="l",
            addresses=[ADDRESS],
            ip="127.0.0.1",
            port=9000 + tp,
        )
    announced = [wait_for(client, Announced) for client in clients]
    assert announced[0] == announced[1], "one incarnation, one epoch"
    tokens = {registered(client, 7).token for client in clients}
    assert len(tokens) == 1
    decode = world.decode(7)
    assert wait_for(decode, Resolved).assignment.dp_rank == 1
    clients[1].close()
    ended = wait_for(decode, Ended)
    assert isinstance(ended.error, PrefillLost) and ended.error.dp_rank == 1


@pytest.mark.parametrize("together", [True, False])
def test_two_ranks_never_own_one_room(world: World, together: bool) -> None:
    first, second = world.prefill(0), world.prefill(1, world.near if together else world.far)
    owner = registered(first, 7)
    second.prefill.register(7)
    rejected = wait_for(second, Rejected)
    assert isinstance(rejected.error, RoomConflict)
    assert rejected.error.holder == f"{ID}/0@{first.prefill.epoch}"
    assert registered(second, 8).room == 8
    kv = world.ctl.get(world.key(7))
    assert kv is not None and kv.create_revision == owner.token


def test_a_race_for_rooms_has_one_winner_each(world: World) -> None:
    clients = [world.prefill(0, world.near), world.prefill(1, world.far)]
    rooms = range(200)
    for room in rooms:
        for client in clients:
            client.prefill.register(room)
    outcomes: dict[int, list[type]] = {room: [] for room in rooms}

    def both() -> bool:
        for client in clients:
            for event in client.prefill.poll():
                assert isinstance(event, (Registered, Rejected))
                outcomes[event.room].append(type(event))
        return all(len(kinds) == 2 for kinds in outcomes.values())

    wait_until(both, "everybody is answered", timeout=20)
    assert {tuple(sorted(kind.__name__ for kind in kinds)) for kinds in outcomes.values()} == {
        ("Registered", "Rejected")
    }


def test_what_a_dead_rank_left_may_be_taken_over(world: World) -> None:
    first = world.prefill(0)
    token = registered(first, 7).token
    first.close()
    second = world.prefill(1, world.far)
    taken = registered(second, 7)
    assert taken.token > token
    assert wait_for(world.decode(7), Resolved).assignment.dp_rank == 1


def test_a_dead_rank_s_rooms_are_lost_also_to_who_asks_later(world: World) -> None:
    first, _ = world.prefill(0), world.prefill(1)
    registered(first, 7)
    epoch = first.prefill.epoch
    first.close()
    wait_until(lambda: not world.ctl.get(f"{world.root}/v1/prefill/{ID}/ranks/0.0.0.0"), "its key is gone")
    ended = wait_for(world.decode(7), Ended)
    assert isinstance(ended.error, PrefillLost)
    assert (ended.error.dp_rank, ended.error.epoch) == (0, epoch)


def test_drain_ends_with_the_last_room(world: World) -> None:
    prefill = world.prefill(0)
    for room in (7, 8):
        registered(prefill, room)
    prefill.prefill.drain()
    with pytest.raises(etcd_pd.RankDraining):
        prefill.prefill.register(9)
    wait_until(
        lambda: "draining" in world.ctl.get(f"{world.root}/v1/prefill/{ID}/ranks/0.0.0.0").value,  # type: ignore[union-attr]
        "etcd says so",
    )
    prefill.prefill.release(7)
    prefill.prefill.fail(8, "r")
    wait_for(prefill, Drained)


class TestLadder:
    """The registry is asked only where the rank cannot be told otherwise: no room is registered here."""

    def test_a_named_rank(self, world: World) -> None:
        world.prefill(2)
        decode = world.decode()
        decode.decode.want(ID, 7, dp_rank=2)
        found = wait_for(decode, Resolved).assignment
        assert (found.dp_rank, found.source) == (2, "named")

    def test_a_single_rank(self, world: World) -> None:
        world.prefill(topology=Topology(dp=1))
        found = wait_for(world.decode(12345), Resolved).assignment
        assert (found.dp_rank, found.source) == (0, "single-rank")

    def test_follow_bootstrap_room(self, world: World) -> None:
        for dp in range(4):
            world.prefill(dp, policy="follow_bootstrap_room")
        decode = world.decode(*range(1000, 1004))
        found = {a.room: a for a in (wait_for_each(decode, 4))}
        assert {room: (a.dp_rank, a.source) for room, a in found.items()} == {
            room: (room % 4, "follow-bootstrap-room") for room in range(1000, 1004)
        }

    def test_a_computed_rank_is_lost_with_its_process(self, world: World) -> None:
        prefill = world.prefill(topology=Topology(dp=1))
        decode = world.decode(7)
        wait_for(decode, Resolved)
        prefill.close()
        assert isinstance(wait_for(decode, Ended).error, PrefillLost)

    def test_an_unknown_instance(self, world: World) -> None:
        assert isinstance(wait_for(world.decode(7, instance="nobody:1"), Ended).error, InstanceUnknown)

    def test_one_that_appears_in_time(self, world: World) -> None:
        decode = world.decode(7, agent=world.near)
        registered(world.prefill(), 7)
        assert wait_for(decode, Resolved).assignment.room == 7


def wait_for_each(client: Client, count: int) -> list[etcd_pd.Assignment]:
    found: list[etcd_pd.Assignment] = []

    def look() -> bool:
        found.extend(event.assignment for event in client.decode.poll() if isinstance(event, Resolved))
        return len(found) == count

    wait_until(look, f"{count} answers")
    return found
