"""Free TCP ports on loopback."""

from __future__ import annotations

import random
import socket

# Below the range that Linux takes outgoing ports from: a port found here is not taken by somebody's connection a moment
# later, and is still free when a killed server wants it back.
_FIRST, _LAST = 20_000, 32_000
_given: set[int] = set()


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on and that this process has not been given before."""
    for _ in range(1_000):
        port = random.randint(_FIRST, _LAST)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError(f"no free port between {_FIRST} and {_LAST}")
