"""Bring an etcd back from a snapshot of itself, as an operator does after losing its disks."""

from __future__ import annotations

from typing import Any

from tests.support.etcd_server import EtcdServer

_SNAPSHOT, _RESTORED = "/snapshot.db", "/data/restored"
#: etcd's own default: a store restored under it has the cluster id that it had before.
SAME_CLUSTER = "etcd-cluster"


def save(server: EtcdServer) -> None:
    """Keep what the server has now, inside its container."""
    _run(server, "etcdctl", "snapshot", "save", _SNAPSHOT)


def restore(server: EtcdServer, cluster_token: str) -> None:
    """Kill the server, and make of what was saved what :func:`start` starts; with another token another cluster."""
    peer = "http://localhost:2380"
    has_etcdutl = _execute(server, "etcdutl", "version").exit_code == 0  # since 3.6 it alone restores
    _run(
        server,
        "etcdutl" if has_etcdutl else "etcdctl",
        *("snapshot", "restore", _SNAPSHOT, f"--data-dir={_RESTORED}", f"--name={server.name}"),
        *(f"--initial-cluster={server.name}={peer}", f"--initial-advertise-peer-urls={peer}"),
        f"--initial-cluster-token={cluster_token}",
    )
    server.kill()


def start(server: EtcdServer) -> None:
    """Start the server with what was saved."""
    server.restart_with(f"--data-dir={_RESTORED}")


def _run(server: EtcdServer, program: str, *arguments: str) -> None:
    done = _execute(server, program, *arguments)
    if done.exit_code != 0:
        raise RuntimeError(f"{program} {arguments[:2]}: {done.output!r}")


def _execute(server: EtcdServer, program: str, *arguments: str) -> Any:
    return server.container.exec_run([f"/usr/local/bin/{program}", *arguments], environment={"ETCDCTL_API": "3"})
