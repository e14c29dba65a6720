"""Frozen settings, one spelling for flag, environment variable and Helm value.

A field ``session_ttl_seconds`` is the flag ``--session-ttl-seconds``, the environment variable
``ETCD_PD_SESSION_TTL_SECONDS`` and the Helm value ``sessionTtlSeconds``. Each field's ``help`` is what
``--help`` and the settings table in the README show. Values are checked where the object is made.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from .errors import ConfigError
from .wire.limits import check_int, check_name, check_seconds

#: How a lease's time is divided, as in etcd's own client: keepalives are sent every third of the granted TTL.
KEEPALIVES_PER_TTL = 3
#: Hosts that are this machine.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: etcd grants no shorter lease with default election settings (ceil(1.5 x 1 s election timeout)).
MIN_TTL_SECONDS = 2


def switch(name: str, default: str) -> bool:
    """Whether an environment variable turns something on; ``default`` where it is not set."""
    return os.environ.get(name, default) not in ("", "0", "false")


def default_socket_path() -> str:
    """Where the agent listens unless set otherwise: ``$XDG_RUNTIME_DIR/etcd-pd.sock``, else under ``/tmp`` by uid."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(runtime, "etcd-pd.sock") if runtime else f"/tmp/etcd-pd-{os.getuid()}/agent.sock"


def _option(default: Any, help: str, **more: Any) -> Any:
    metadata = {"help": help, **more}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class EtcdSettings:
    """How to reach etcd."""

    endpoints: tuple[str, ...] = _option(
        ("http://127.0.0.1:2379",), "etcd endpoints, http:// or https://, in the order of first use", name="etcd"
    )
    username: str = _option("", "etcd user; empty: none, or the client certificate's common name", name="etcd_username")
    password: str = field(
        default="", repr=False, metadata={"help": "etcd password", "secret": True, "name": "etcd_password"}
    )
    password_file: str = _option(
        "", "file that holds the password, read again whenever it is needed", name="etcd_password_file"
    )
    token_file: str = _option(
        "", "file that holds a token for etcd, in place of user and password; read again", name="etcd_token_file"
    )
    ca_file: str = _option("", "CA certificate that etcd's certificate must descend from", name="etcd_ca_file")
    cert_file: str = _option("", "client certificate", name="etcd_cert_file")
    key_file: str = _option("", "client certificate's key", name="etcd_key_file")
    server_name: str = _option(
        "", "name in etcd's certificate, where it is not that of the endpoint", name="etcd_server_name"
    )
    spread: bool = _option(
        True,
        "spread the agents of a cell evenly over etcd's members, also at client URLs that these advertise",
        name="etcd_spread",
    )
    request_timeout_seconds: float = _option(
        1.5, "longest wait for one etcd answer before another endpoint is tried", name="etcd_request_timeout_seconds"
    )

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ConfigError("etcd", "needs at least one endpoint")
        schemes = {_check_endpoint(endpoint) for endpoint in self.endpoints}
        if len(schemes) > 1:
            raise ConfigError("etcd", "endpoints must be all http:// or all https://")
        if schemes == {"http"} and (self.ca_file or self.cert_file):
            raise ConfigError("etcd", "certificates are set, so endpoints must be https://")
        if bool(self.cert_file) != bool(self.key_file):
            raise ConfigError("etcd_cert_file", "needs etcd_key_file, and the other way round")
        if self.password and self.password_file:
            raise ConfigError("etcd_password_file", "stands in place of etcd_password, not beside it")
        if bool(self.username) != bool(self.password or self.password_file):
            raise ConfigError("etcd_username", "needs etcd_password or etcd_password_file, and the other way round")
        if self.token_file and self.username:
            raise ConfigError("etcd_token_file", "stands in place of etcd_username and its password, not beside them")
        if schemes == {"http"} and self.server_name:
            raise ConfigError("etcd_server_name", "is looked for in a certificate, so endpoints must be https://")
        for name in ("ca_file", "cert_file", "key_file", "password_file", "token_file"):
            path = getattr(self, name)
            if path and not os.access(path, os.R_OK):
                raise ConfigError(f"etcd_{name}", f"cannot read {path!r}")
        check_seconds("etcd_request_timeout_seconds", self.request_timeout_seconds, 0.1, 60)

    @property
    def tls(self) -> bool:
        """Whether the endpoints speak TLS."""
        return self.endpoints[0].startswith("https://")

    @property
    def shows_secrets(self) -> bool:
        """Whether a password or a token leaves this machine unencrypted."""
        secret = bool(self.username or self.token_file)
        return secret and not self.tls and any(urlsplit(url).hostname not in LOOPBACK for url in self.endpoints)


@dataclass(frozen=True)
class AgentSettings:
    """Everything that one agent needs to know."""

    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    socket_path: str = _option(default_socket_path, "Unix socket on which engines reach the agent", name="socket")
    agent_id: str = _option(lambda: f"{socket.gethostname()}-{os.getpid()}", "this agent's name in etcd")
    root: str = _option("/etcd_pd/default", "key prefix of the cell: one model deployment, whose agents share a watch")
    session_ttl_seconds: int = _option(
        5, "TTL of the lease under this agent's instances and ranks: how long a lost node goes unnoticed"
    )
    bootstrap_timeout_seconds: float = _option(300.0, "the engine's own bootstrap timeout: a room's lease outlives it")
    registration_timeout_seconds: float = _option(10.0, "how long a registration may wait for etcd before it fails")
    instance_timeout_seconds: float = _option(10.0, "how long decode waits for an unknown instance to appear")
    bucket_max_rooms: int = _option(1000, "most rooms on one lease: an expiring lease stalls etcd by about 4 us a key")
    batch_max_rooms: int = _option(120, "most rooms in one transaction (etcd allows 128 operations)")
    queue_max_rooms: int = _option(100_000, "most registrations that wait for etcd before new ones are refused")
    push_queue_max_bytes: int = _option(4_194_304, "most bytes that wait for one slow engine before pushes are dropped")
    watch_silence_seconds: float = _option(2.0, "how long the watch may be silent before another endpoint is tried")
    startup_timeout_seconds: float = _option(60.0, "how long a starting agent waits for etcd before it gives up")
    prefill_only: bool = _option(
        False, "serve prefill engines alone: no room is watched, which costs etcd and this node nothing then"
    )
    idle_exit_seconds: float = _option(0.0, "end this long after the last engine left; 0: never")
    socket_mode: int = _option(0o600, "mode of the socket, 0600 or 0660", octal=True)
    allowed_uids: tuple[int, ...] = _option((), "users beside its own whose processes the agent serves")
    metrics_listen: str = _option(
        "127.0.0.1:9479",
        "HOST:PORT that answers Prometheus at /metrics; host *: IPv4 and IPv6; port 0: any, see the log; empty: none",
    )

    def __post_init__(self) -> None:
        check_name("agent_id", self.agent_id)
        if not self.root.startswith("/") or self.root.endswith("/") or not self.root.isprintable():
            raise ConfigError("root", f"must start with a slash and not end with one, not {self.root!r}")
        if len(os.fsencode(self.socket_path)) > 107:
            raise ConfigError("socket", "a Unix socket's path has at most 107 bytes")
        check_int("session_ttl_seconds", self.session_ttl_seconds, MIN_TTL_SECONDS, 3600)
        self._check_renewal()
        check_seconds("bootstrap_timeout_seconds", self.bootstrap_timeout_seconds, 1, 86400)
        check_seconds("registration_timeout_seconds", self.registration_timeout_seconds, 0.1, 3600)
        check_seconds("instance_timeout_seconds", self.instance_timeout_seconds, 0.1, 3600)
        check_int("bucket_max_rooms", self.bucket_max_rooms, 1, 10_000)
        check_int("batch_max_rooms", self.batch_max_rooms, 1, 120)
        check_int("queue_max_rooms", self.queue_max_rooms, 1, 10_000_000)
        check_int("push_queue_max_bytes", self.push_queue_max_bytes, 65_536, 1 << 30)
        check_seconds("watch_silence_seconds", self.watch_silence_seconds, 0.2, 3600)
        check_seconds("startup_timeout_seconds", self.startup_timeout_seconds, 0.1, 86400)
        check_seconds("idle_exit_seconds", self.idle_exit_seconds, 0, 86400)
        if self.socket_mode not in (0o600, 0o660):
            raise ConfigError("socket_mode", "must be 0600 or 0660")
        if self.allowed_uids and self.socket_mode != 0o660:
            raise ConfigError("allowed_uids", "needs socket_mode 0660")
        if self.metrics_listen:
            split_address("metrics_listen", self.metrics_listen)

    def _check_renewal(self) -> None:
        """A keepalive that fails once, by a time-out, must still be repeated in time."""
        slowest = self.session_ttl_seconds / KEEPALIVES_PER_TTL + 2 * self.etcd.request_timeout_seconds
        if slowest >= self.session_ttl_seconds:
            rule = f"2 x etcd_request_timeout_seconds + a third of it must be less than it ({slowest:.1f} s)"
            raise ConfigError("session_ttl_seconds", rule)

    @property
    def room_ttl_seconds(self) -> int:
        """TTL of a bucket lease: a bucket of age TTL/16 still outlives the bootstrap timeout, with 5 s to spare."""
        return int(self.bootstrap_timeout_seconds * 16 / 15) + 5

    @property
    def bucket_max_age_seconds(self) -> float:
        """How long rooms are added to one bucket lease."""
        return self.room_ttl_seconds / 16


def option_name(setting: Any) -> str:
    """The spelling of a dataclass field as flag and environment variable, with underscores."""
    return str(setting.metadata.get("name", setting.name))


def describe(settings: Any) -> dict[str, Any]:
    """Settings by their option name for a log line; secrets are replaced by ``***`` where set."""
    found: dict[str, Any] = {}
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if hasattr(value, "__dataclass_fields__"):
            found.update(describe(value))
        elif setting.metadata.get("secret"):
            found[option_name(setting)] = "***" if value else ""
        else:
            found[option_name(setting)] = value
    return found


def split_address(field: str, address: str, lowest_port: int = 0) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` (``[HOST]:PORT`` for IPv6).

    Raises:
        ConfigError: it is not of this form.
    """
    host, _, port = check_name(field, address).rpartition(":")
    if not host or not port.isdecimal() or not lowest_port <= int(port) < 65536:
        raise ConfigError(field, f"must be HOST:PORT, not {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bracketed(host: str) -> str:
    """A host as it stands before a port: an address of IPv6 in brackets, whether it has them already or not."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _check_endpoint(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.username is not None:  # endpoints are shown and logged
        raise ConfigError("etcd", "an endpoint holds no user: set etcd_username and etcd_password")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port or parts.path not in ("", "/"):
        raise ConfigError("etcd", f"an endpoint is http://HOST:PORT or https://HOST:PORT, not {endpoint!r}")
    return parts.scheme
