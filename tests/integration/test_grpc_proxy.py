"""A watch through ``etcd grpc-proxy`` that joins one which stands: the proxy answers it in etcd's place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Put
from etcd_pd.core.watch import Changes, Resume, Snapshot, WatchMachine, WatchState
from etcd_pd.reference.local.embedded import EmbeddedEtcd, find_etcd
from etcd_pd.reference.local.probe import http_ok
from etcd_pd.reference.local.process import Process
from etcd_pd.store.etcd import EtcdStore
from tests.support.ports import free_port

pytestmark = pytest.mark.integration


@contextmanager
def proxied(endpoint: str, directory: Path) -> Iterator[str]:
    """Where a proxy before an etcd listens."""
    port = free_port()
    command = [find_etcd(), "grpc-proxy", "start", f"--endpoints={endpoint}", f"--listen-addr=127.0.0.1:{port}"]
    command += [f"--advertise-client-url=127.0.0.1:{port}", f"--data-dir={directory / 'proxy'}"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    process = Process("etcd grpc-proxy", command, directory / "proxy.log", environ)
    try:
        process.wait_until(lambda: http_ok(f"http://127.0.0.1:{port}/health"), 20.0)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stop()


def store(endpoint: str) -> EtcdStore:
    return EtcdStore(EtcdSettings(endpoints=(endpoint,)))


def test_a_watch_goes_on_when_a_proxy_lets_it_join_another_and_names_no_cluster(tmp_path: Path) -> None:
    async def follow(direct: str, behind: str) -> None:
        async with store(direct) as writer, store(behind) as one, store(behind) as other:
            first = (await writer.txn([], [Put(b"/cell/a", b"1", 0)])).header.revision
            standing = await one.watch(b"/cell/", first)
            assert (await anext(aiter(standing))).created
            for _ in range(10):  # one that begins near the cell's last event may get a stream of its own
                await writer.txn([], [Put(b"/elsewhere", b"1", 0)])
                machine = WatchMachine()
                assert isinstance(machine.listed(await other.list(b"/cell/")), Snapshot)
                step = machine.next()
                assert isinstance(step, Resume)
                joined = await other.watch(b"/cell/", step.start_revision)
                responses = aiter(joined)
                created = await anext(responses)
                if created.header.cluster_id == 0:
                    break
                await joined.close()
            assert created.created and created.header.cluster_id == 0, "the proxy has answered"
            assert machine.received(created) is None
            assert machine.state is WatchState.SYNCED

            written = (await writer.txn([], [Put(b"/cell/a", b"2", 0)])).header.revision
            changes = machine.received(await anext(responses))
            assert isinstance(changes, Changes) and changes.revision == written
            for watch in (standing, joined):
                await watch.close()

    with EmbeddedEtcd.start() as etcd, proxied(etcd.endpoint, tmp_path) as behind:
        asyncio.run(asyncio.wait_for(follow(etcd.endpoint, behind), 30.0))
