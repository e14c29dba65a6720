"""A restarted agent among so many live rooms: until it serves again, and what a room costs its memory.

The rooms are written beside the agents, under the epoch of a rank that lives, so that they resolve like any other.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import etcd_pd
from etcd_pd.core.keys import Keys
from etcd_pd.store import etcdrpc as rpc
from etcd_pd.wire.values import RoomValue

from . import harness
from .agents import AgentProcess
from .harness import Row, percentiles, spread
from .peers import DP_RANK, INSTANCE
from .peers.floor import BATCH, ROOMS_A_LEASE, channel
from .peers.ours import OurWriter
from .rig import FIRST_ROOM, Message
from .rounds import Plan, say, since

FULL, QUICK = 1_000_000, 100_000
#: Longest wait for a room, seconds; and how long the rooms' leases last.
RESOLVE_SECONDS, TTL = 120.0, 7200
#: Transactions in flight while rooms are written.
IN_FLIGHT = 2


def measure(plan: Plan) -> list[Row]:
    """Rows of ``restart.json``."""
    count = QUICK if plan.quick else FULL
    with ExitStack() as stack:
        etcd = stack.enter_context(harness.etcd_on_disk())
        empty = _empty_memory(etcd.endpoint)
        near = stack.enter_context(AgentProcess(etcd.endpoint, "prefill-0", ["--prefill-only"]))
        writer = OurWriter({"socket": near.socket_path})
        say(f"restart: writing {count} rooms")
        began = time.monotonic()
        write(etcd.endpoint, writer.epoch, count)
        say(f"restart: {count} rooms in {since(began)}")
        runs = [_serves(etcd.endpoint, number, count) for number in range(plan.rounds)]
        etcd_memory = harness.memory_bytes(etcd.process.pid)
        say("")
    memory = [(run["memory"] - empty) / count for run in runs]
    seconds = [run["seconds"] for run in runs]
    row = {
        "case": f"{count} live rooms",
        "rooms": count,
        "rounds": plan.rounds,
        "cpu_seconds": spread([run["cpu"] for run in runs], 2),
    }
    row |= {"seconds": spread(seconds, 2), "seconds_by_round": seconds, **percentiles(seconds)}
    row |= {"agent_bytes_per_room": spread(memory, 0), "etcd_bytes_per_room": round(etcd_memory / count)}
    return [row]


def _empty_memory(endpoint: str) -> int:
    with AgentProcess(endpoint, "empty") as agent:
        time.sleep(1.0)
        return harness.memory_bytes(agent.pid)


def _serves(endpoint: str, number: int, count: int) -> Message:
    """Start an agent and have an engine ask it for a room that was there before: seconds from the one to the answer."""
    room = FIRST_ROOM + (number * 7919) % count
    began = time.monotonic()
    with AgentProcess(endpoint, f"decode-{number}") as agent, etcd_pd.connect(agent.socket_path) as client:
        found = client.decode.resolve(INSTANCE, room, timeout=RESOLVE_SECONDS)
        seconds = round(time.monotonic() - began, 3)
        if found.dp_rank != DP_RANK:
            raise RuntimeError(f"room {room} resolved to {found}")
        used, memory = harness.cpu_seconds([agent.pid]), harness.memory_bytes(agent.pid)
    say(f"restart: round {number + 1}: {seconds:.1f} s")
    return {"seconds": seconds, "memory": memory, "cpu": used}


def write(endpoint: str, epoch: int, count: int) -> None:
    """Put so many rooms of a rank into etcd, full transactions, two in flight."""
    opened = channel({"endpoints": [endpoint]})
    kv, leases = rpc.KVStub(opened), rpc.LeaseStub(opened)
    keys, value = Keys("/etcd_pd/default"), RoomValue(DP_RANK, epoch).to_json()
    lease, flying = 0, list[Any]()
    for begin in range(0, count, BATCH):
        if begin % (ROOMS_A_LEASE // BATCH * BATCH) == 0:
            lease = leases.LeaseGrant(rpc.LeaseGrantRequest(TTL=TTL)).ID
        request = rpc.TxnRequest()
        for room in range(FIRST_ROOM + begin, FIRST_ROOM + min(begin + BATCH, count)):
            put = rpc.PutRequest(key=keys.room(INSTANCE, room), value=value, lease=lease)
            request.success.add().request_put.CopyFrom(put)
        flying.append(kv.Txn.future(request))
        if len(flying) == IN_FLIGHT:
            flying.pop(0).result()
    for future in flying:
        future.result()
    opened.close()
