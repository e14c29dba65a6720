"""What a gateway needs to know."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from ...config import bracketed, default_socket_path, split_address
from ...errors import ConfigError
from ...wire.limits import check_int, check_name


def _option(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class GatewaySettings:
    """Everything that one gateway needs to know. Each gateway serves one prefill instance."""

    instance: str = field(metadata={"help": "id of the prefill instance that it serves"})
    listen: str = _option("127.0.0.1:8998", "HOST:PORT: the engine's own host and bootstrap port")
    addresses: tuple[str, ...] = _option((), "further HOST:PORT that requests may carry as bootstrap address")
    socket_path: str = field(
        default_factory=default_socket_path, metadata={"help": "Unix socket of the agent", "name": "socket"}
    )
    engine_url: str = _option("", "engine's URL; empty: the host of listen, and the port that the engine registers")
    engine_health_interval_seconds: float = _option(1.0, "how often the engine's /health is asked")
    engine_health_failures: int = _option(3, "so many time-outs or refusals to serve in a row mean a dead engine")
    engine_startup_seconds: float = _option(1800.0, "how long a registered engine may take until /health answers")
    linger_seconds: float = _option(60.0, "how long ranks stay in etcd for a gateway that is restarted")
    bootstrap_timeout_seconds: float = _option(300.0, "the engine's own bootstrap timeout: rooms are kept so long")
    last_writer_wins: bool = _option(False, "let another rank take over a room that is owned, as SGLang's server does")
    query_wait_max_seconds: float = _option(30.0, "longest ?wait= of a query")
    token: str = field(
        default="",
        repr=False,
        metadata={"help": "bearer token that requests must carry", "secret": True, "name": "gateway_token"},
    )
    open_reads: bool = _option(False, "with a token: only requests that write must carry it", name="gateway_open_reads")
    tls_cert_file: str = _option("", "certificate to serve TLS with", name="gateway_cert_file")
    tls_key_file: str = _option("", "its key", name="gateway_key_file")

    def __post_init__(self) -> None:
        check_name("instance", self.instance)
        split_address("listen", self.listen, 1)
        for address in self.addresses:
            split_address("addresses", address, 1)
        check_int("engine_health_failures", self.engine_health_failures, 1, 1000)
        for name in ("engine_health_interval_seconds", "linger_seconds", "bootstrap_timeout_seconds"):
            _check_seconds(name, getattr(self, name), 0.01, 3600)
        _check_seconds("engine_startup_seconds", self.engine_startup_seconds, 0.01, 86400)
        _check_seconds("query_wait_max_seconds", self.query_wait_max_seconds, 0, 3600)
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ConfigError("gateway_cert_file", "needs gateway_key_file, and the other way round")
        for name in ("cert_file", "key_file"):
            path = getattr(self, f"tls_{name}")
            if path and not os.access(path, os.R_OK):
                raise ConfigError(f"gateway_{name}", f"cannot read {path!r}")

    @property
    def engine_host(self) -> str:
        """Where the engine listens, as it is written in a URL: where the gateway does, which has its bootstrap port."""
        host, _ = split_address("listen", self.listen)
        return bracketed({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))

    @property
    def all_addresses(self) -> tuple[str, ...]:
        """The addresses under which requests may name the instance; a wildcard is none."""
        host, _ = split_address("listen", self.listen)
        own = () if host in ("0.0.0.0", "::") else (self.listen,)
        return tuple(dict.fromkeys((*own, *self.addresses)))


def _check_seconds(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(name, f"must be a number of seconds in {low}..{high}, not {value!r}")
