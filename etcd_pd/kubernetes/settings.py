"""Frozen settings of the cluster's commands, in the style of :mod:`etcd_pd.config`: checked where they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from ..config import AgentSettings, EtcdSettings
from ..errors import ConfigError
from ..wire.limits import check_int, check_name

#: etcd's superuser.
ROOT = "root"


def _option(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


def _secret(help: str) -> Any:
    return field(default="", repr=False, metadata={"help": help, "secret": True})


def _check_pairs(name: str, words: tuple[str, ...]) -> None:
    if any(not all(word.partition("=")[::2]) for word in words):
        raise ConfigError(name, "must be pairs with an equals sign between")


@dataclass(frozen=True)
class CertSettings:
    """Which Secrets to keep, and what for."""

    namespace: str = _option("", "namespace of the Secrets; empty: the pod's own")
    authority_secret: str = _option("etcd-pd-ca", "Secret of the authority; nothing but this command reads it")
    server_secret: str = _option("", "Secret of etcd's members, as servers and as each other's peers; empty: none")
    server_names: tuple[str, ...] = _option((), "DNS names and IP addresses of the members")
    client_secrets: tuple[str, ...] = _option((), "USER=SECRET of each client; USER is the etcd user")
    secret_labels: tuple[str, ...] = _option((), "KEY=VALUE labels of the Secrets")
    validity_days: int = _option(365, "how long a certificate is valid")
    renew_before_days: int = _option(30, "how long before its end it is made anew")
    authority_validity_days: int = _option(3650, "how long the authority is valid")

    def __post_init__(self) -> None:
        if self.server_secret and not self.server_names:
            raise ConfigError("server_names", "must be given with server_secret")
        _check_pairs("client_secrets", self.client_secrets)
        _check_pairs("secret_labels", self.secret_labels)
        if not 0 < self.renew_before_days < self.validity_days < self.authority_validity_days:
            raise ConfigError("validity_days", "must be above renew_before_days and below authority_validity_days")


@dataclass(frozen=True)
class MemberSettings:
    """Which member this is, and where its files are."""

    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    member: str = _option("", "this member's name")
    initial_cluster: tuple[str, ...] = _option((), "NAME=PEER_URL of every member")
    data_dir: str = _option("/data/etcd", "where etcd keeps its data")
    config_base: str = _option("etcd.yaml", "etcd's configuration file, but for what is decided here")
    config_file: str = _option("/run/etcd-pd/etcd.yaml", "where to write the complete one")
    formed_file: str = _option("", "a file that exists once the cluster has been formed; empty: never")
    etcd_version: str = _option(
        "", "X.Y.Z of the etcd that starts then, no minor version below the cluster's; empty: any"
    )
    wait_seconds: float = _option(300.0, "how long to wait for the other members")

    def __post_init__(self) -> None:
        _check_pairs("initial_cluster", self.initial_cluster)
        if self.member not in self.peers:
            raise ConfigError("member", f"must be one of initial_cluster, not {self.member!r}")
        if self.etcd_version and not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", self.etcd_version):
            raise ConfigError("etcd_version", f"must be X.Y.Z, not {self.etcd_version!r}")

    @property
    def peers(self) -> dict[str, str]:
        """The members' peer URLs by name."""
        return dict(word.split("=", 1) for word in self.initial_cluster)

    @property
    def peer_url(self) -> str:
        """This member's own."""
        return self.peers[self.member]

    @property
    def client_url(self) -> str:
        """The endpoint on this member's host.

        Raises:
            ConfigError: there is none.
        """
        host = urlsplit(self.peer_url).hostname
        found = [endpoint for endpoint in self.etcd.endpoints if urlsplit(endpoint).hostname == host]
        if not found:
            raise ConfigError("etcd", f"has no endpoint on {host}")
        return found[0]

    @property
    def others(self) -> EtcdSettings | None:
        """How to reach the other members; None where there are none."""
        if len(self.peers) == 1:
            return None
        endpoints = tuple(endpoint for endpoint in self.etcd.endpoints if endpoint != self.client_url)
        return replace(self.etcd, endpoints=endpoints)


@dataclass(frozen=True)
class InitSettings:
    """The cell, its users, and how to reach etcd as root."""

    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    root: str = _option(AgentSettings.root, "key prefix of the cell")
    roles: bool = _option(True, "make roles and users, and enable authentication")
    prefill_user: str = _option("prefill", "user of prefill agents: the common name of their certificate")
    decode_user: str = _option("decode", "user of decode agents")
    instances: tuple[str, ...] = _option(
        (), "prefill instances that get a user each, of the same name, which may write its own keys alone"
    )
    root_password: str = _secret("root's password; empty: its certificate alone")
    prefill_password: str = _secret("prefill_user's password; empty: its certificate alone")
    decode_password: str = _secret("decode_user's password; empty: its certificate alone")
    namespace: str = _option("", "namespace of formed_config_map; empty: the pod's own")
    formed_config_map: str = _option("", "ConfigMap to write once the members have formed a cluster; empty: none")
    formed_owner: str = _option("", "StatefulSet with which formed_config_map is deleted; empty: it stays")
    wait_seconds: float = _option(600.0, "how long to wait for etcd")

    def __post_init__(self) -> None:
        AgentSettings(root=self.root)
        for name in (self.prefill_user, self.decode_user, *self.instances):
            check_name("instances", name)
        if ROOT in (self.prefill_user, self.decode_user, *self.instances):
            raise ConfigError("prefill_user", "must not be root")


@dataclass(frozen=True)
class FleetSettings:
    """Which fleets to end, and how to see that their pods are gone."""

    namespace: str = _option("", "namespace of the fleets; empty: the pod's own")
    deployments: tuple[str, ...] = _option((), "names of the Deployments")
    leader_worker_sets: tuple[str, ...] = _option((), "names of the LeaderWorkerSets")
    selector: str = _option("", "KEY=VALUE,... labels of their pods")
    wait_seconds: float = _option(180.0, "how long they may take")

    def __post_init__(self) -> None:
        if not self.deployments and not self.leader_worker_sets:
            raise ConfigError("deployments", "or leader_worker_sets must name at least one fleet")
        if not self.selector:
            raise ConfigError("selector", "must be given: without labels it would be every pod of the namespace")
        if not 0 < self.wait_seconds <= 86_400:
            raise ConfigError("wait_seconds", f"must be above 0 and at most 86400, not {self.wait_seconds:g}")


@dataclass(frozen=True)
class EnlistSettings:
    """Which pods are engines, and whose workers they become."""

    namespace: str = _option("", "namespace of the engine pods; empty: the pod's own")
    selector: str = _option("", "KEY=VALUE,... labels of the engine pods, of both roles")
    port: int = _option(30000, "port that the engines serve on")
    router: str = _option("http://localhost:8000", "URL of the router")
    poll_seconds: float = _option(1.0, "pause between two looks at the pods")

    def __post_init__(self) -> None:
        if not self.selector:
            raise ConfigError("selector", "must be given: without labels it would be every pod of the namespace")
        check_int("port", self.port, 1, 65535)
        parts = urlsplit(self.router)
        if parts.scheme != "http" or not parts.hostname or parts.path:
            raise ConfigError("router", f"must be http://HOST:PORT, not {self.router!r:.80}")
        if not 0 < self.poll_seconds <= 3600:
            raise ConfigError("poll_seconds", f"must be above 0 and at most 3600, not {self.poll_seconds:g}")
