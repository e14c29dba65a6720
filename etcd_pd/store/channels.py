"""The channels to etcd's endpoints: one is used at a time, until a call or a stream fails on it."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from ..config import EtcdSettings
from . import etcdrpc

etcdrpc.install()

import etcd3  # noqa: E402  (its own stubs do not load on a current protobuf: ours must stand in their place first)

#: gRPC's own defaults wait up to two minutes before they look for a restarted server again.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 10_000),  # etcd refuses pings more frequent than every 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Channels:
    """Opened when they are needed first.

    Attributes:
        current: number of the endpoint in use.
    """

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self.current = 0
        self._clients: dict[int, Any] = {}
        self._stubs: dict[tuple[int, str], Any] = {}
        self._written_at: tuple[int, ...] = ()

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._settings.endpoints[self.current]

    def turn_from(self, endpoint: int) -> None:
        """Turn to another endpoint, unless that was done already: many calls find the same one silent."""
        if endpoint == self.current:
            self.current = (self.current + 1) % len(self._settings.endpoints)
            if self._written_at != _written_at(self._settings):
                # a channel keeps the certificates that it began with, and they were renewed since
                self._clients.clear()
                self._stubs.clear()

    def close(self) -> None:
        """Close all."""
        clients, self._clients = self._clients, {}
        self._stubs.clear()
        for client in clients.values():
            client.close()

    def stub(self, service: str) -> Any:
        """A service of etcd's, at the endpoint in use."""
        key = (self.current, service)
        if key not in self._stubs:
            if self.current not in self._clients:
                self._clients[self.current] = self._connect(self.endpoint)
            stub_class = getattr(etcdrpc, f"{service}Stub")
            self._stubs[key] = stub_class(self._clients[self.current].channel)
        return self._stubs[key]

    def _connect(self, endpoint: str) -> Any:
        parts = urlsplit(endpoint)
        host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
        settings = self._settings
        if not self._clients:
            self._written_at = _written_at(settings)
        # user and password stay out of it: etcd3 asks for one token, in its constructor, and never renews it
        return etcd3.client(
            host=host,
            port=parts.port,
            ca_cert=(settings.ca_file or "/etc/ssl/certs/ca-certificates.crt") if settings.tls else None,
            cert_cert=settings.cert_file or None,
            cert_key=settings.key_file or None,
            grpc_options=CHANNEL_OPTIONS,
        )


def _written_at(settings: EtcdSettings) -> tuple[int, ...]:
    """When the files of the certificates were written; 0 for one that cannot be seen."""
    found = []
    for path in filter(None, (settings.ca_file, settings.cert_file, settings.key_file)):
        try:
            found.append(os.stat(path).st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)
