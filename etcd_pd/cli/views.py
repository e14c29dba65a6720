"""What etcd holds, read through the store port into plain data that is printed as a table or as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from ..keys import AgentKey, DecodeKey, Keys, PrefillKey, RankKey, RoomKey
from ..model import ASSIGNED, InstanceInfo, RankEndpoint, RoomValue

if TYPE_CHECKING:
    from ..records import KeyValue
    from ..store.base import Store

#: State of a key whose value is not of this version.
UNREADABLE = "unreadable"
#: State of a room whose rank is gone: nobody follows its key, which ends with its lease.
LOST = "lost"


async def list_rooms(store: Store, root: str) -> dict[str, Any]:
    """The rooms in etcd at one revision, each with the time its lease had left a moment later."""
    keys = Keys(root)
    listing, ranks = await asyncio.gather(store.list(keys.rooms()), store.list(keys.prefill("")))
    leases = sorted({kv.lease for kv in listing.kvs if kv.lease})
    seconds = dict(zip(leases, await asyncio.gather(*map(store.time_to_live, leases)), strict=True))
    epochs = {(key.instance, kv.create_revision) for kv in ranks.kvs if isinstance(key := keys.parse(kv.key), RankKey)}
    rooms = []
    for kv in listing.kvs:
        key = keys.parse(kv.key)
        if isinstance(key, RoomKey):
            rooms.append(_room(key, kv, seconds.get(kv.lease, 0), epochs))
    return {"root": root, "revision": listing.header.revision, "rooms": rooms}


async def list_instances(store: Store, root: str) -> dict[str, Any]:
    """Prefill instances with their ranks, decode instances and agents."""
    keys = Keys(root)
    prefill: dict[str, dict[str, Any]] = {}
    decode: list[dict[str, Any]] = []
    agents: list[dict[str, Any]] = []
    listings = await asyncio.gather(
        *(store.list(prefix) for prefix in (keys.prefill(""), keys.decode(""), keys.agent("")))
    )
    for kv in (kv for listing in listings for kv in listing.kvs):
        match keys.parse(kv.key):
            case PrefillKey(instance):
                prefill[instance] = {**_prefill(instance, kv), "ranks": prefill.get(instance, {}).get("ranks", [])}
            case RankKey(instance, rank):
                endpoint = RankEndpoint.from_json(rank, kv.value, kv.create_revision)
                # etcd lists an instance before its ranks; a rank without one is left over and dies with its lease
                prefill.setdefault(instance, {"id": instance, "state": "gone", "ranks": []})
                prefill[instance]["ranks"].append(_rank(str(rank), kv, endpoint))
            case DecodeKey(instance):
                decode.append({**_fields(kv), "id": instance, "lease": f"{kv.lease:x}"})
            case AgentKey(agent):
                agents.append({**_fields(kv), "id": agent, "lease": f"{kv.lease:x}"})
    return {"root": root, "prefill": list(prefill.values()), "decode": decode, "agents": agents}


def _room(key: RoomKey, kv: KeyValue, seconds_left: int, epochs: set[tuple[str, int]]) -> dict[str, Any]:
    value = RoomValue.from_json(kv.value)
    if value is None:
        state = UNREADABLE
    elif value.state == ASSIGNED and (key.instance, value.epoch) not in epochs:
        state = LOST
    else:
        state = value.state
    return {
        "instance": key.instance,
        "room": key.room,
        "dp_rank": value.dp_rank if value else None,
        "epoch": value.epoch if value else None,
        "state": state,
        "reason": value.reason if value else "",
        "revision": kv.create_revision,
        "lease": f"{kv.lease:x}",
        "seconds_left": seconds_left,
    }


def _prefill(instance: str, kv: KeyValue) -> dict[str, Any]:
    info = InstanceInfo.from_json(kv.value)
    if info is None:
        return {"id": instance, "state": UNREADABLE}
    return {
        "id": instance,
        "state": info.state,
        "incarnation": info.incarnation,
        "addresses": list(info.addresses),
        "dp_size": info.topology.dp,
        "policy": info.policy,
        "lease": f"{kv.lease:x}",
    }


def _rank(rank: str, kv: KeyValue, endpoint: RankEndpoint | None) -> dict[str, Any]:
    return {
        "rank": rank,
        "epoch": kv.create_revision,
        "state": endpoint.state if endpoint else UNREADABLE,
        "address": f"{endpoint.ip}:{endpoint.port}" if endpoint else "",
        "lease": f"{kv.lease:x}",
    }


def _fields(kv: KeyValue) -> dict[str, Any]:
    """A small JSON object's members, none where it is something else."""
    try:
        data = json.loads(kv.value)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
