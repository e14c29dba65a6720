"""A cluster of three etcd members on loopback, with TLS between all, certificates for users, and the cell's roles."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from etcd_pd.config import EtcdSettings
from etcd_pd.kubernetes.authority import Identity, issue, make_authority
from etcd_pd.kubernetes.roles import initialize
from etcd_pd.kubernetes.settings import InitSettings
from etcd_pd.reference.local.embedded import find_etcd
from etcd_pd.reference.local.process import Process, free_ports

from .harness import data_directory
from .rig import Where

MEMBERS = 3
SERVER, USERS = "etcd", ("root", "prefill", "decode")
HOST = "127.0.0.1"


@contextmanager
def secured_cluster() -> Iterator[Where]:
    """The cluster, on disk; gone afterwards."""
    data_directory().mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="cluster-", dir=data_directory()))
    try:
        with ExitStack() as stack:
            _make_papers(home)
            yield _start(stack, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _make_papers(home: Path) -> None:
    now, valid = datetime.now(timezone.utc), timedelta(days=1)
    authority = make_authority("benchmark", now, valid)
    for name in (SERVER, *USERS):
        pair = issue(authority, Identity(name, (HOST,) if name == SERVER else ()), now, valid)
        (home / name).mkdir(mode=0o700)
        files = {"ca.crt": authority.certificate, "tls.crt": pair.certificate, "tls.key": pair.key}
        for file, content in files.items():
            (home / name / file).write_bytes(content)


def _start(stack: ExitStack, home: Path) -> Where:
    ports = free_ports(2 * MEMBERS)
    clients, peers = ([f"https://{HOST}:{port}" for port in ports[part::2]] for part in (0, 1))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    pids: dict[str, tuple[int, ...]] = {}
    for number in range(MEMBERS):
        command = _command(home, number, clients[number], peers)
        member = Process(f"etcd-{number}", command, home / f"etcd-{number}.log", environ)
        stack.callback(member.stop)
        pids[f"etcd {number}"] = (member.pid,)
    papers: dict[str, Any] = {part: str(home / "root" / file) for part, file in _FILES.items()}
    root = EtcdSettings(endpoints=tuple(clients), **papers)
    asyncio.run(initialize(InitSettings(etcd=root, wait_seconds=30)))
    return Where(tuple(clients), pids, home)


_FILES = {"ca_file": "ca.crt", "cert_file": "tls.crt", "key_file": "tls.key"}


def _command(home: Path, number: int, client: str, peers: list[str]) -> list[str]:
    names = {"cert-file": "tls.crt", "key-file": "tls.key", "trusted-ca-file": "ca.crt"}
    files = {flag: home / SERVER / name for flag, name in names.items()}
    return [
        find_etcd(),
        f"--name=etcd-{number}",
        f"--data-dir={home / f'etcd-{number}'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peers[number]}",
        f"--initial-advertise-peer-urls={peers[number]}",
        "--initial-cluster=" + ",".join(f"etcd-{each}={url}" for each, url in enumerate(peers)),
        "--client-cert-auth",
        "--peer-client-cert-auth",
        *(f"--{flag}={path}" for flag, path in files.items()),
        *(f"--peer-{flag}={path}" for flag, path in files.items()),
        "--logger=zap",
        "--log-level=error",
    ]
