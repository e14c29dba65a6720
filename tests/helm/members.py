"""etcd members in containers, started as the chart's pods start them: `etcd-pd etcd-member` first, then its file.

Each has an address of its own in 127.0.0.0/8, on the host's network.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import docker
import yaml

from etcd_pd.config import EtcdSettings
from etcd_pd.errors import StoreUnavailable
from etcd_pd.kubernetes.certs import keep_certificates
from etcd_pd.kubernetes.member import prepare
from etcd_pd.kubernetes.settings import CertSettings, MemberSettings
from etcd_pd.store.admin import EtcdAdmin
from tests.helm.secrets import MemoryApi, tls_settings
from tests.support.etcd_server import _LABEL, _owner, image
from tests.support.ports import free_port

#: A name in every member's certificate that is nowhere its address.
SERVER_NAME = "etcd.cell.test"
USERS = ("root", "prefill", "decode")


class Cell:
    """Some members with TLS, and everybody's certificates.

    Args:
        directory: for files.
        size: how many members.
        tls: whether they speak TLS and want client certificates.
        config: further keys of etcd's configuration.
    """

    def __init__(self, directory: Path, size: int, tls: bool = True, config: Mapping[str, Any] | None = None) -> None:
        self.directory, self.tls, self._more = directory, tls, dict(config or {})
        self.names = [f"etcd-{number}" for number in range(size)]
        self._docker = docker.from_env()
        self._containers: dict[str, Any] = {}
        scheme = "https" if tls else "http"
        client, peer, metrics = free_port(), free_port(), free_port()
        self._hosts = {name: f"127.0.0.{number + 1}" for number, name in enumerate(self.names)}
        self.endpoints = tuple(f"{scheme}://{host}:{client}" for host in self._hosts.values())
        self._peers = {name: f"{scheme}://{host}:{peer}" for name, host in self._hosts.items()}
        self._metrics = metrics
        if tls:
            self.make_certificates()

    def __enter__(self) -> Cell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._containers):
            self.stop(name)
        self._docker.close()

    def settings(self, user: str, endpoints: tuple[str, ...] = ()) -> EtcdSettings:
        """How a user reaches etcd."""
        endpoints = endpoints or self.endpoints
        return tls_settings(self.directory / user, endpoints) if self.tls else EtcdSettings(endpoints=endpoints)

    @property
    def formed(self) -> Path:
        """The file that says that the cluster was formed."""
        return self.directory / "formed"

    def form(self) -> None:
        """Say that the cluster was formed, as the init Job does."""

        async def ask() -> int:
            async with EtcdAdmin(self.settings("root")) as admin:
                return await admin.cluster_id()

        self.formed.write_text(f"{asyncio.run(ask()):x}")

    def prepare(self, name: str, wait: float = 20.0, version: str = "") -> str:
        """What the init container does before an etcd of a version; the state that etcd is to start in."""
        base = self.directory / f"{name}-base.yaml"
        base.write_text(yaml.safe_dump(self._config(name)))
        settings = MemberSettings(
            etcd=self.settings("root"),
            member=name,
            initial_cluster=tuple(f"{each}={url}" for each, url in self._peers.items()),
            data_dir=str(self.data(name)),
            config_base=str(base),
            config_file=str(self.directory / f"{name}.yaml"),
            formed_file=str(self.formed),
            etcd_version=version,
            wait_seconds=wait,
        )
        return asyncio.run(prepare(settings))

    def start(self, name: str, image_name: str = "") -> None:
        """Start etcd with the file that prepare() wrote, of another image where one is named."""
        self._containers[name] = self._docker.containers.run(
            image_name or image(),
            ["/usr/local/bin/etcd", f"--config-file={self.directory / f'{name}.yaml'}"],
            detach=True,
            network_mode="host",
            user=str(os.getuid()),
            volumes={str(self.directory): {"bind": str(self.directory), "mode": "rw"}},
            labels={_LABEL: _owner()},
        )

    def stop(self, name: str) -> None:
        """End a member; its data stays."""
        self._containers.pop(name).remove(force=True)

    def wipe(self, name: str) -> None:
        """Lose a member's volume."""
        shutil.rmtree(self.data(name))

    def data(self, name: str) -> Path:
        """A member's data directory."""
        return self.directory / f"{name}-data"

    def logs(self, name: str) -> str:
        """What a member says."""
        return str(self._containers[name].logs(tail=60).decode())

    def etcdctl(self, name: str, *arguments: str) -> str:
        """etcdctl as root, in a member's container."""
        root, endpoint = self.directory / "root", self.endpoints[self.names.index(name)]
        files = [f"--cacert={root}/ca.crt", f"--cert={root}/tls.crt", f"--key={root}/tls.key"] if self.tls else []
        command = ["/usr/local/bin/etcdctl", f"--endpoints={endpoint}", *files, *arguments]
        done = self._containers[name].exec_run(command, environment={"ETCDCTL_API": "3"})
        assert done.exit_code == 0, done.output
        return str(done.output.decode())

    def member_ids(self) -> dict[str, int]:
        """The ids of the started members, once all are."""

        async def ask() -> dict[str, int]:
            async with EtcdAdmin(self.settings("root")) as admin:
                deadline = time.monotonic() + 30
                while True:
                    try:
                        members = [member for member in await admin.members() if member.started]
                    except StoreUnavailable:
                        members = []
                    if len(members) == len(self.names):
                        return {member.name: member.id for member in members}
                    assert time.monotonic() < deadline, f"not all members started; {self.logs(self.names[-1])}"
                    await asyncio.sleep(0.1)

        return asyncio.run(ask())

    def _config(self, name: str) -> dict[str, Any]:
        index = self.names.index(name)
        config: dict[str, Any] = {
            "data-dir": str(self.data(name)),
            "listen-client-urls": self.endpoints[index],
            "listen-peer-urls": self._peers[name],
            "listen-metrics-urls": f"http://{self._hosts[name]}:{self._metrics}",
            "initial-cluster-token": "test",
            "logger": "zap",
            "log-level": "warn",
            **self._more,
        }
        if self.tls:
            files = self.directory / "etcd"
            security = {
                "cert-file": str(files / "tls.crt"),
                "key-file": str(files / "tls.key"),
                "trusted-ca-file": str(files / "ca.crt"),
                "client-cert-auth": True,
            }
            config |= {"client-transport-security": security, "peer-transport-security": dict(security)}
        return config

    def make_certificates(self) -> None:
        """An authority and everybody's certificates, in place of those that are there."""
        self.secrets = api = MemoryApi()
        settings = CertSettings(
            authority_secret="ca",
            server_secret="etcd",
            server_names=(*self._hosts.values(), SERVER_NAME),
            client_secrets=tuple(f"{user}={user}" for user in USERS),
        )
        for name in keep_certificates(settings, api):
            api.mount(name, self.directory / name)
