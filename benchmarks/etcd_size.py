"""What a room costs etcd until it compacts: ``make bench-etcd-size``, the figure behind docs/operations.md.

An agent registers and releases rooms on a local etcd, and the growth of its database is divided by their number. etcd
keeps both revisions of a key, and what it knows of the lease, until they are older than its compaction retention; it
looks once every retention, so there is at most twice as much history.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import etcd_pd
from etcd_pd.config import EtcdSettings
from etcd_pd.reference.local.embedded import EmbeddedEtcd
from etcd_pd.store.admin import EtcdAdmin

from .agents import AgentProcess

RATES = (10, 100, 1000, 3000)
INSTANCE, FIRST_ROOM = "cell-etcd-pd-prefill-7d4b9c6f8-x2x9k", 10**18
#: Rooms that live at the same time: registered, and not yet handed over.
IN_FLIGHT = 200


def main() -> int:
    """Print the cost of a room, and what it means for a quota."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.etcd_size", description="What a room costs etcd.")
    parser.add_argument("--rooms", type=int, default=30_000, help="how many to register and release")
    parser.add_argument("--retention-seconds", type=float, default=300, help="etcd.compactionRetention")
    parser.add_argument("--quota-mebibytes", type=float, default=2048, help="etcd.quota")
    options = parser.parse_args()
    with EmbeddedEtcd.start() as etcd, AgentProcess(etcd.endpoint, "size") as agent:
        before = database_size(etcd.endpoint)
        seconds = register_and_release(agent.socket_path, options.rooms)
        after = database_size(etcd.endpoint)
    cost = (after - before) / options.rooms
    print(f"{options.rooms} rooms registered and released in {seconds:.0f} s")
    print(f"etcd's database grew from {before / 1e6:.2f} MB to {after / 1e6:.2f} MB: {cost:.0f} bytes a room")
    history = 2 * options.retention_seconds
    print(f"with a retention of {options.retention_seconds:.0f} s, and so at most {history:.0f} s of history:")
    for rate in RATES:
        print(f"  {rate:6} rooms/s  {rate * history * cost / 2**20:8.1f} MiB")
    full = options.quota_mebibytes * 2**20 / (history * cost)
    print(f"a quota of {options.quota_mebibytes:.0f} MiB is full at {full:.0f} rooms/s")
    return 0


def register_and_release(socket_path: str, count: int) -> float:
    """So many rooms, one after the other, a few in flight; the seconds that it took."""
    started = time.monotonic()
    with etcd_pd.connect(socket_path) as client:
        client.prefill.announce(
            INSTANCE,
            rank=etcd_pd.Rank(1),
            topology=etcd_pd.Topology(dp=4),
            launch_id="size",
            addresses=["10.0.0.7:8998"],
            ip="10.0.0.7",
            port=9,
        )
        sent = registered = 0
        while registered < count:
            if client.prefill.epoch and sent < count and sent - registered < IN_FLIGHT:
                client.prefill.register(FIRST_ROOM + sent)
                sent += 1
                continue
            for event in client.prefill.poll():
                if isinstance(event, etcd_pd.Registered):
                    client.prefill.release(event.room)
                    registered += 1
                elif isinstance(event, etcd_pd.Rejected):
                    raise event.error
            time.sleep(0.0005)
    return time.monotonic() - started


def database_size(endpoint: str) -> int:
    """Bytes of etcd's database that hold data."""

    async def ask() -> int:
        async with EtcdAdmin(EtcdSettings(endpoints=(endpoint,))) as admin:
            return (await admin.status()).db_size_in_use

    return asyncio.run(ask())


if __name__ == "__main__":
    sys.exit(main())
