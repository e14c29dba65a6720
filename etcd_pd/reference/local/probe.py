"""Whether something on this machine answers."""

from __future__ import annotations

import socket
import urllib.request

_TIMEOUT_SECONDS = 2.0
#: Loopback is never reached through the proxy that the environment may name.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def http_ok(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with _direct.open(url, timeout=_TIMEOUT_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def agent_answers(socket_path: str) -> bool:
    """Whether an agent takes connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(_TIMEOUT_SECONDS)
        try:
            probe.connect(socket_path)
        except OSError:
            return False
        return True
