"""The version of a whole cluster, which etcd tells over HTTP alone."""

from __future__ import annotations

import logging
import re
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from ..config import EtcdSettings
from .tls import connect

log = logging.getLogger(__name__)

#: Before the members have agreed on one, it is no version.
_VERSION = re.compile(rb'"etcdcluster":"([0-9]+\.[0-9]+\.[0-9]+)"')


def ask_version(settings: EtcdSettings) -> str:
    """``X.Y.0`` of the first member that tells; empty where none does. Blocks.

    It is that of the oldest member, or the one before where a downgrade was enabled.
    """
    for endpoint in settings.endpoints:
        try:
            found = _VERSION.search(_ask(settings, endpoint))
        except (OSError, HTTPException) as exc:
            log.info("etcd endpoint=%s does not tell the cluster's version: %s", endpoint, exc)
            continue
        if found:
            return found[1].decode()
    return ""


def _ask(settings: EtcdSettings, endpoint: str) -> bytes:
    parts, timeout = urlsplit(endpoint), settings.request_timeout_seconds
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=timeout)
    try:
        if settings.tls:
            connection.sock = connect(settings, endpoint, timeout)
        connection.request("GET", "/version")
        return connection.getresponse().read(1000)
    finally:
        connection.close()
