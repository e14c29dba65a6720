"""TLS with etcd by the standard library, which says why a handshake failed; gRPC's own words say little."""

from __future__ import annotations

import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from ..config import EtcdSettings

#: How long etcd may take to refuse a client certificate after the handshake (TLS 1.3 has no earlier moment), seconds.
REFUSAL_SECONDS = 0.5


def connect(settings: EtcdSettings, endpoint: str, timeout: float) -> ssl.SSLSocket:
    """A connection to an endpoint. Blocks.

    Raises:
        ssl.SSLError: either side refuses the other's certificate, or one of our files is none.
        OSError: a file cannot be read, or nobody listens.
    """
    context = ssl.create_default_context(cafile=settings.ca_file or None)
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    parts = urlsplit(endpoint)
    with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=timeout) as plain:
        return context.wrap_socket(plain, server_hostname=settings.server_name or parts.hostname)


def handshake(settings: EtcdSettings, timeout: float) -> dict[str, Any]:
    """The certificate of the first endpoint, as :meth:`ssl.SSLSocket.getpeercert` has it. Blocks.

    Raises:
        ssl.SSLError, OSError: as for :func:`connect`.
    """
    with connect(settings, settings.endpoints[0], timeout) as wrapped:
        wrapped.settimeout(REFUSAL_SECONDS)
        try:
            wrapped.recv(1)
        except TimeoutError:
            pass  # it waits for us to speak: nothing was refused
        return wrapped.getpeercert() or {}


def trouble(settings: EtcdSettings, timeout: float = 2.0) -> str:
    """What is wrong between us and the first endpoint as far as TLS goes; empty where nothing is."""
    if not settings.tls:
        return ""
    try:
        handshake(settings, timeout)
    except ssl.SSLError as exc:
        return f"TLS: {exc}"
    except OSError as exc:
        return str(exc)
    return ""
