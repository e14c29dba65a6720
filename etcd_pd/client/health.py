"""``python3 -m etcd_pd.client.health started|alive|ready``: the probes of an agent, through its socket.

``started``: it takes connections. ``alive``: its event loop answers. ``ready``: it has seen all of etcd once. None
asks etcd itself: an agent that is cut off still answers what it knows, and must be neither restarted nor taken out of
service.
"""

from __future__ import annotations

import os
import sys

from ..config import default_socket_path
from ..errors import AgentUnavailable
from .visit import visit

PROBES = ("started", "alive", "ready")
#: Below the probes' own time-out, so that the reason reaches the log of whoever probes.
TIMEOUT_SECONDS = 4.0


def main(arguments: list[str]) -> int:
    """Exit status 0 where the probe passes; else the reason goes to stderr."""
    if len(arguments) != 1 or arguments[0] not in PROBES:
        print(f"usage: python3 -m etcd_pd.client.health {'|'.join(PROBES)}", file=sys.stderr)
        return 2
    try:
        reason = check(arguments[0], os.environ.get("ETCD_PD_SOCKET") or default_socket_path())
    except AgentUnavailable as exc:
        reason = str(exc)
    if reason:
        print(reason, file=sys.stderr)
    return 1 if reason else 0


def check(probe: str, socket_path: str) -> str:
    """Why a probe fails; empty where it passes.

    Raises:
        AgentUnavailable: nothing answers.
    """
    with visit(socket_path, TIMEOUT_SECONDS) as agent:
        if probe == "started":
            return ""
        welcome = agent.greet()
        if probe == "ready" and not welcome.synced:
            return "the agent has not seen etcd yet"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
