"""A look at one member, by etcd3: a single call for whom waiting is right, the command line."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import grpc

from ..config import EtcdSettings, bracketed
from ..core.records import MemberStatus
from . import etcdrpc as rpc
from .convert import read_status
from .papers import Papers
from .refusals import translate

rpc.install()

import etcd3  # noqa: E402  (its own stubs do not load on a current protobuf: ours must stand in their place first)


def ask_one(settings: EtcdSettings, endpoint: str) -> MemberStatus:
    """What the member at an endpoint says of itself. Blocks; asked once, of no other.

    Raises:
        StoreError: it does not answer, or these credentials may not ask.
    """
    papers = Papers(settings)
    client = _connect(settings, endpoint, papers)
    timeout = settings.request_timeout_seconds
    try:
        metadata = _authenticate(client, settings.username, papers, timeout)
        return read_status(client.maintenancestub.Status(rpc.StatusRequest(), timeout=timeout, metadata=metadata))
    except grpc.RpcError as exc:
        raise translate("status", exc.code(), exc.details() or "", endpoint) from exc
    finally:
        client.close()


def _connect(settings: EtcdSettings, endpoint: str, papers: Papers) -> Any:
    parts = urlsplit(endpoint)
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if settings.server_name:
        options.append(("grpc.ssl_target_name_override", settings.server_name))
    # user and password stay out of it: etcd3 sends its token only over TLS
    return etcd3.client(
        host=bracketed(parts.hostname or ""),
        port=parts.port,
        ca_cert=papers.authorities if settings.tls else None,
        cert_cert=settings.cert_file or None,
        cert_key=settings.key_file or None,
        grpc_options=options,
    )


def _authenticate(client: Any, username: str, papers: Papers, timeout: float) -> tuple[tuple[str, str], ...]:
    if not papers.has_secret:
        return ()
    token = papers.token()
    if not token:
        request = rpc.AuthenticateRequest(name=username, password=papers.password())
        token = rpc.AuthStub(client.channel).Authenticate(request, timeout=timeout).token
    return (("token", token),)
