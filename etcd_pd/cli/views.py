"""What etcd holds, read through the store port into plain data that is printed as a table or as JSON."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Union

from ..config import bracketed
from ..core.keys import AgentKey, DecodeKey, Keys, PrefillKey, RankKey, RoomKey
from ..core.records import MAX_TXN_OPS, LeaseTimes
from ..kubernetes.round_trip import PREFIX
from ..wire.values import ASSIGNED, FAILED, InstanceInfo, Rank, RankEndpoint, RoomValue, Topology
from .etcd_view import describe_etcd
from .from_agent import AgentCell, Memory
from .verdict import count, judge

if TYPE_CHECKING:
    from ..config import EtcdSettings
    from ..core.records import KeyValue
    from ..store.admin import EtcdAdmin

#: Where a cell is read: in etcd, or where that does not answer, at an agent.
Source = Union["EtcdAdmin", AgentCell]

#: The time of a key that hangs on no lease.
NO_LEASE = LeaseTimes(0, 0)
#: State of a key whose value is not of this version.
UNREADABLE = "unreadable"
#: State of a room whose rank is gone: nobody follows its key, which ends with its lease.
LOST = "lost"
#: All states that a room is shown in.
ROOM_STATES = (ASSIGNED, FAILED, LOST, UNREADABLE)


async def list_rooms(store: Source, root: str, instance: str = "") -> dict[str, Any]:
    """The rooms in etcd at one revision, or one instance's, each with the time its lease had left a moment later."""
    keys = Keys(root)
    listing, ranks = await asyncio.gather(store.list(keys.rooms(instance)), store.list(keys.prefill("")))
    rooms = await _rooms(store, keys, listing.kvs, ranks.kvs)
    return {"root": root, "revision": listing.header.revision, "rooms": rooms}


async def find_room(store: Source, root: str, room: int) -> dict[str, Any]:
    """Every key of one room: room numbers are an instance's own, so there may be several."""
    keys = Keys(root)
    ranks = await store.list(keys.prefill(""))
    instances = sorted({key.instance for kv in ranks.kvs if isinstance(key := keys.parse(kv.key), PrefillKey)})
    found: list[KeyValue] = []
    for start in range(0, len(instances), MAX_TXN_OPS):
        chunk = instances[start : start + MAX_TXN_OPS]
        found += (await store.read([keys.room(instance, room) for instance in chunk])).kvs
    if not found:  # what is left of an instance that is gone
        listing = await store.list(keys.rooms())
        found = [kv for kv in listing.kvs if isinstance(key := keys.parse(kv.key), RoomKey) and key.room == room]
    return {"root": root, "room": str(room), "lives": await _rooms(store, keys, found, ranks.kvs)}


async def describe_cell(
    store: Source, settings: EtcdSettings, root: str, memory: Memory | None, *, rooms: bool = True
) -> dict[str, Any]:
    """What is wrong, etcd, instances with the number of rooms that each rank holds, agents, and rooms by state.

    Of what an agent knows: ``etcd`` is None, and ``rooms`` where it follows none, or they are not asked for.
    """
    if isinstance(store, AgentCell):
        found = {**await read_cell(store, root, memory, rooms=rooms), "etcd": None}
    else:
        etcd, cell = await asyncio.gather(describe_etcd(store, settings), read_cell(store, root, memory, rooms=rooms))
        found = {**cell, "etcd": etcd}
    return {"problems": [problem._asdict() for problem in judge(found)], "counts": count(found), **found}


async def read_cell(store: Source, root: str, memory: Memory | None, *, rooms: bool = True) -> dict[str, Any]:
    """The cell's part of it."""
    if not rooms or (isinstance(store, AgentCell) and not store.follows_rooms):
        found = {**await list_instances(store, root), "rooms": None}
    else:
        cell, listed = await asyncio.gather(list_instances(store, root), list_rooms(store, root))
        found = {**cell, "rooms": _count_rooms(cell, listed)}
    return {**found, "memory": _remember(memory, found) if memory else None}


def _remember(memory: Memory, found: dict[str, Any]) -> dict[str, Any]:
    """Who is gone as an agent remembers it, but for those who are back, which it may not have heard of yet."""
    back = {("rank", one["id"], rank["rank"]) for one in found["prefill"] for rank in one["ranks"]}
    for kind, present in (("prefill", found["prefill"]), ("decode", found["decode"]), ("agent", found["agents"])):
        back |= {(kind, one["id"], None) for one in present if one.get("state") != "gone"}
    gone = [one for one in memory.gone if (one["kind"], one["name"], one["rank"]) not in back]
    gone = [one for one in gone if not one["name"].startswith(PREFIX)]  # of a doctor's or a test's, which nobody misses
    return memory.as_json(gone)


def _count_rooms(cell: dict[str, Any], rooms: dict[str, Any]) -> dict[str, int]:
    """Note of each rank how many rooms it holds; how many there are in each state."""
    held = Counter((room["instance"], room["dp_rank"]) for room in rooms["rooms"] if room["state"] == ASSIGNED)
    for instance in cell["prefill"]:
        for rank in instance["ranks"]:
            rank["rooms"] = held[instance["id"], int(rank["rank"].partition(".")[0])]
    states = Counter(room["state"] for room in rooms["rooms"])
    return {state: states[state] for state in ROOM_STATES}


async def _rooms(
    store: Source, keys: Keys, rooms: Iterable[KeyValue], ranks: Iterable[KeyValue]
) -> list[dict[str, Any]]:
    leases = sorted({kv.lease for kv in rooms if kv.lease})
    times = dict(zip(leases, await asyncio.gather(*map(store.lease_times, leases)), strict=True))
    epochs = {(key.instance, kv.create_revision) for kv in ranks if isinstance(key := keys.parse(kv.key), RankKey)}
    found = [(key, kv) for kv in rooms if isinstance(key := keys.parse(kv.key), RoomKey)]
    return [_room(key, kv, times.get(kv.lease, NO_LEASE), epochs) for key, kv in found]


async def list_instances(store: Source, root: str) -> dict[str, Any]:
    """Prefill instances with their ranks, decode instances and agents."""
    keys = Keys(root)
    prefill: dict[str, dict[str, Any]] = {}
    topologies: dict[str, Topology] = {}
    decode: list[dict[str, Any]] = []
    agents: list[dict[str, Any]] = []
    listings = await asyncio.gather(
        *(store.list(prefix) for prefix in (keys.prefill(""), keys.decode(""), keys.agent("")))
    )
    for kv in (kv for listing in listings for kv in listing.kvs):
        match keys.parse(kv.key):
            case PrefillKey(instance):
                info = InstanceInfo.from_json(kv.value)
                topologies[instance] = info.topology if info else Topology()
                prefill[instance] = {
                    **_prefill(instance, info, kv),
                    "ranks": prefill.get(instance, {}).get("ranks", []),
                }
            case RankKey(instance, rank):
                endpoint = RankEndpoint.from_json(rank, kv.value, kv.create_revision)
                # etcd lists an instance before its ranks; a rank without one is left over and dies with its lease
                prefill.setdefault(instance, {"id": instance, "state": "gone", "ranks": []})
                prefill[instance]["ranks"].append(_rank(rank, topologies.get(instance), kv, endpoint))
            case DecodeKey(instance):
                decode.append({**_fields(kv), "id": instance, "lease": f"{kv.lease:x}"})
            case AgentKey(agent):
                agents.append({**_fields(kv), "id": agent, "lease": f"{kv.lease:x}"})
    leases = sorted({int(entry["lease"], 16) for entry in (*decode, *agents)})
    times = dict(zip(leases, await asyncio.gather(*map(store.lease_times, leases)), strict=True))
    for entry in (*decode, *agents):
        lease = times[int(entry["lease"], 16)]
        entry["seconds_left"], entry["ttl_seconds"] = (lease.left, lease.granted) if lease else (None, None)
    return {"root": root, "prefill": list(prefill.values()), "decode": decode, "agents": agents}


def _room(key: RoomKey, kv: KeyValue, lease: LeaseTimes | None, epochs: set[tuple[str, int]]) -> dict[str, Any]:
    value = RoomValue.from_json(kv.value)
    if value is None:
        state = UNREADABLE
    elif value.state == ASSIGNED and (key.instance, value.epoch) not in epochs:
        state = LOST
    else:
        state = value.state
    return {
        "instance": key.instance,
        "room": str(key.room),  # 64 bits: more than the numbers of jq and JavaScript hold
        "dp_rank": value.dp_rank if value else None,
        "epoch": value.epoch if value else None,
        "state": state,
        "reason": value.reason if value else "",
        "revision": kv.create_revision,
        "changed_revision": kv.mod_revision,
        "lease": f"{kv.lease:x}",
        "seconds_left": lease.left if lease else None,
        # etcd keeps no times: a room is younger than its lease, by at most a sixteenth of the lease's TTL
        "lease_age_seconds": lease.granted - lease.left if lease else None,
    }


def _prefill(instance: str, info: InstanceInfo | None, kv: KeyValue) -> dict[str, Any]:
    if info is None:
        return {"id": instance, "state": UNREADABLE}
    return {
        "id": instance,
        "state": info.state,
        "incarnation": info.incarnation,
        "addresses": list(info.addresses),
        "dp_size": info.topology.dp,
        "processes": info.topology.dp * info.topology.endpoints_per_rank,
        "policy": info.policy,
        "lease": f"{kv.lease:x}",
    }


def _rank(rank: Rank, topology: Topology | None, kv: KeyValue, endpoint: RankEndpoint | None) -> dict[str, Any]:
    return {
        "rank": str(rank),
        "name": rank.name(topology or Topology()),
        "epoch": kv.create_revision,
        "state": endpoint.state if endpoint else UNREADABLE,
        "address": f"{bracketed(endpoint.ip)}:{endpoint.port}" if endpoint else "",
        "lease": f"{kv.lease:x}",
    }


def _fields(kv: KeyValue) -> dict[str, Any]:
    """A small JSON object's members, none where it is something else."""
    try:
        data = json.loads(kv.value)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
